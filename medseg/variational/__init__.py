"""Networks whose 3x3x3 (3x3) kernels are random: posterior, convolution, conversion, KL and ELBO.

The roles are apart: a posterior knows its mean, spread and entropy (``posterior``), a convolution
uses it (``conv``), a prior scores kernels (``medseg.priors``), and ``kl`` brings the two together.

To add a posterior: write one class with ``mean``, ``log_std``, ``rsample``, ``entropy`` and
``kernels``, add its closed forms to the table in ``kl``, and add one line to the list in
``tests/contracts/test_posteriors.py``. A prior needs nothing here: without a closed form its
bound is scored by one sample.
"""
