"""medseg: few-shot transfer for MRI lesion segmentation, with uncertainty."""

__version__ = "0.1.0"
