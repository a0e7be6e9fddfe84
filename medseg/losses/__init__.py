"""What training minimises: pure functions of logits and targets, one value per case.

To add a loss: a function here that returns one value per case and leaves out what is not known,
its weight in `medseg.losses.segmentation.LossSettings`, and its term in ``segmentation_loss``.
"""
