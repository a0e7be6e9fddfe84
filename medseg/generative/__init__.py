"""Generative models of tensors: each is fitted, draws samples, and bounds the log density of an
item in nats.

The same class serves as a filter prior (the item is a convolution kernel) and as a model of patches
or masks. To add one: write ``generative/<name>.py`` with a class that follows
:class:`medseg.generative.model.GenerativeModel`, fit it with
:func:`medseg.generative.fitting.fit_by_gradient` where gradients are used, store it with
:mod:`medseg.generative.storage`, and add one line to ``MODELS`` in
``tests/contracts/test_generative_models.py``, which holds the laws.
"""
