"""nnU-Net v2 on the subsets of a finished experiment, for the time that medseg's arm took.

``__main__`` and ``data`` run beside medseg, ``worker`` in the environment that has nnU-Net.
"""
