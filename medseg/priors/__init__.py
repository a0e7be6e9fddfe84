"""Filter priors: what source networks teach about the kernels of a target network.

``harvest`` collects kernels, ``fit_priors`` fits one prior a layer,
:class:`~medseg.priors.layer_priors.LayerPriors` is the table that training asks, ``compare_priors``
sets priors side by side.

Any generative model with an energy and samples is a prior: to add a kind, add the model to
:mod:`medseg.generative.catalog`, and quick settings to ``QUICK`` in
``tests/contracts/test_filter_priors.py``, which holds the laws. Settings that suit kernels better
than its defaults go into ``MODELS`` in ``fit.py``. A prior that is no generative model is a class
that follows :class:`medseg.priors.prior.FilterPrior`, is built in ``fit.py`` and stands in the
table of ``layer_priors.py``. A closed-form KL to a Gaussian posterior, if there is one, belongs to
``variational``.
"""
