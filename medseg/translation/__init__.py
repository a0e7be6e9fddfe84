"""Scans of one kind made from scans of another: contrast, scanner, slice thickness.

=====================  ==========================================================================
``pix2pix``            from some modalities of a subject to another one, learned from pairs
``cyclegan``           from one cohort's looks to another's, learned without pairs
``super_resolution``   thin slices whose averages are the thick ones that were measured
=====================  ==========================================================================

``slices`` makes network inputs of volumes, ``generator`` and ``resolution`` hold the networks,
``adversary`` the discriminator, ``objectives`` what the one training loop minimises, ``model`` a
trained translator in a folder, ``fit`` and ``apply`` the two ends. To add a method, add its
objective and its network, and one branch in ``fit`` and in ``model``.
"""
