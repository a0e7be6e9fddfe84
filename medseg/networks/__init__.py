"""Segmentation networks, built from blocks; a `ConvFactory` is the seam for other convolutions.

To add a network: one file here with a class that fulfils
`medseg.networks.network.SegmentationNetwork` and takes ``conv: ConvFactory``, its numbers as a
function in ``presets.py``, one line in the catalogue of `medseg.config`.
"""
