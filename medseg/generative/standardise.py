"""An invertible affine change of units in front of a model, with its change of volume."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from medseg.generative.covariance import shrunk_covariance
from medseg.generative.fitting import split_items

Standardisation = Literal["none", "scale", "whiten"]


class Standardiser(nn.Module):
    """Maps vectors x to ``u = A (x - m)`` and back; ``log p(x) = log p(u) + log |det A|``.

    Parameters
    ----------
    size : int
        Length d of a vector.
    """

    offset: Tensor
    forward_map: Tensor
    inverse_map: Tensor
    log_det: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(size))
        self.register_buffer("forward_map", torch.eye(size))
        self.register_buffer("inverse_map", torch.eye(size))
        self.register_buffer("log_det", torch.zeros(()))

    def fit(self, vectors: Tensor, kind: Standardisation) -> None:
        """Choose the map for vectors (m, d): identity, one scale, or full whitening.

        Whitening takes the part a Gaussian knows out of the model's hands, so that what the model
        learns is what a Gaussian cannot express.
        """
        d, device = vectors.shape[1], vectors.device
        inverse = torch.eye(d, dtype=torch.float64, device=device)
        offset = torch.zeros(d, dtype=torch.float64, device=device)
        if kind != "none":
            offset = vectors.double().mean(0)
            rms = (vectors.double() - offset).square().mean().sqrt().clamp(min=1e-12)
            inverse = inverse * rms
        if kind == "whiten":
            covariance = shrunk_covariance(vectors)
            jitter = 1e-6 * covariance.diagonal().mean().clamp(min=1e-24)
            inverse = torch.linalg.cholesky(covariance + jitter * torch.eye(d, device=device))
        self.offset.copy_(offset)
        self.inverse_map.copy_(inverse)
        self.forward_map.copy_(torch.linalg.inv(inverse))
        self.log_det.copy_(-torch.linalg.slogdet(inverse).logabsdet)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``u`` for x, both (m, d)."""
        return (vectors - self.offset) @ self.forward_map.T

    def inverse(self, vectors: Tensor) -> Tensor:
        """Return x for ``u``, both (m, d)."""
        return vectors @ self.inverse_map.T + self.offset


def split_and_standardise(
    vectors: Tensor,
    standardiser: Standardiser,
    *,
    kind: Standardisation,
    fraction: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit ``standardiser`` to the training share of vectors (m, d).

    Returns
    -------
    u, train, held : Tensor
        All vectors in the new units, (m, d), and the row numbers to train and to validate on.
    """
    train, held = split_items(len(vectors), fraction=fraction, generator=generator)
    train, held = train.to(vectors.device), held.to(vectors.device)
    standardiser.fit(vectors[train], kind)
    return standardiser(vectors), train, held
