"""Scans to network input, and predictions back to the scan's own grid.

Every step maps a :class:`~medseg.scan.Scan` or :class:`~medseg.scan.LabelMap` to another and
returns how to undo it. :func:`medseg.preprocess.prepare.prepare` composes them for a whole case.

To add a step: one file here with a frozen dataclass that has ``apply`` as in
:class:`medseg.preprocess.step.Step`, and one line in ``STEPS`` of
``tests/contracts/test_steps.py``.
"""
