"""Training: one loop, what it minimises, where it can resume, and the methods of transfer.

To add an objective, write a class with the two members of
:class:`medseg.training.objective.Objective`; the loop does not change.
"""
