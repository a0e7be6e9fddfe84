"""Generative models of tensors: each is fitted, and draws samples, bounds the log density of an
item in nats, scores its energy, or codes it, as far as its kind can.

The same class serves as a filter prior (the item is a convolution kernel) and as a model of patches
or masks. To add one: write ``generative/<name>.py`` with a subclass of
:class:`medseg.generative.base.GenerativeBase`, fit it with
:func:`medseg.generative.fitting.fit_by_gradient` where gradients are used, add one line to
:data:`medseg.generative.catalog.KINDS` and one to ``CASES`` in
``tests/contracts/test_generative_models.py``, which holds the laws.
"""
