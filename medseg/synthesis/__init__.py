"""Generated cases from learned lesions.

``lesions`` cuts lesions out of scans, ``lesion_model`` learns their shapes and looks with any
generative model of the catalogue, ``placing`` and ``painting`` put drawn lesions into other scans,
``painter`` does so while a network is trained, ``cohort`` makes a case source of it, ``writing``
puts any generated source into a folder. ``latent`` changes lesions along codes, ``copies`` checks
that samples are not the training lesions again, ``plausibility`` judges a mask by its shape.
"""
