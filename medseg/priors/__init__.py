"""Filter priors: what source networks teach about the kernels of a target network.

``harvest`` collects kernels, ``fit_priors`` fits one prior a layer,
:class:`~medseg.priors.layer_priors.LayerPriors` is the table that training asks. To add a prior:
write ``priors/<name>.py`` with a class that follows :class:`medseg.priors.prior.FilterPrior`, add
it to ``fit.py`` and to the table of ``layer_priors.py``, and add one line to ``PRIORS`` in
``tests/contracts/test_filter_priors.py``, which holds the laws. A closed-form KL to a Gaussian
posterior, if there is one, belongs to ``variational``.
"""
