"""Files to scans and back.

To add a format: one file here with ``read_scan`` and ``read_label_map`` of the same signature as in
:mod:`medseg.io.nifti`, which pass what they read through :mod:`medseg.io.check` and write through
:func:`medseg.io.atomic.atomic_path`; then a round-trip test in ``tests/io``.
"""
