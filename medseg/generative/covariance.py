"""Covariance of few items in many dimensions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def shrunk_covariance(
    vectors: Float[Tensor, "m d"], *, shrinkage: float | None = None
) -> Float[Tensor, "d d"]:
    """Return the covariance of rows, pulled towards a multiple of the identity.

    ``C = (1 - s) S + s mu I`` with ``S`` the empirical covariance (divisor m) and ``mu = tr(S) /
    d``.

    Parameters
    ----------
    vectors : Tensor, shape (m, d)
        One item a row.
    shrinkage : float in [0, 1], optional
        ``s``; by default the one with the least expected squared error.

    Returns
    -------
    Tensor, shape (d, d), float64
        Symmetric.

    References
    ----------
    Ledoit and Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices,
    section 3.
    """
    data = vectors.double()
    data = data - data.mean(0)
    n, d = data.shape
    empirical = data.T @ data / n
    mu = empirical.diagonal().mean()
    if shrinkage is None:
        # b^2 and d^2 of the paper, both divided by the dimension.
        distance = ((empirical - mu * torch.eye(d, device=data.device)) ** 2).sum() / d
        squares = data**2
        noise = ((squares.T @ squares).sum() / n - (empirical**2).sum()) / (n * d)
        shrinkage = float((noise.clamp(min=0) / distance).clamp(max=1)) if distance > 0 else 0.0
    target = mu * torch.eye(d, dtype=data.dtype, device=data.device)
    return (1 - shrinkage) * empirical + shrinkage * target
