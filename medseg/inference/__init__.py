"""From a model and a scan to masks, volumes and what is uncertain about them.

The roles are split: :mod:`splitter` cuts windows, a network looks at one, :mod:`merger` puts them
together, :mod:`predictor` is the three in a row. :mod:`compute` finds what runs the network
fastest, :mod:`memory` the windows that fit. :mod:`posterior` repeats that for samples of the
weights, :mod:`uncertainty` keeps the running moments, :mod:`predict` brings all of it to the scan's
own grid and :mod:`outputs` to files. A new engine implements ``Engine`` in a file of its own in
:mod:`engines` and joins the list of ``tests/contracts/test_engines.py``.
"""
