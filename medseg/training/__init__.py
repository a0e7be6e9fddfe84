"""Training: one loop, what it minimises, where it can resume, and the methods of transfer.

To add an objective, write a class with the two members of
:class:`medseg.training.objective.Objective`; the loop does not change. One that a configuration may
name has a line in :mod:`medseg.training.objectives` too, where also what it needs is put together:
pretraining without masks, more scans, a teacher.
"""
