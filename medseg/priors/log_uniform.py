"""The scale-free prior over single weights, which knows nothing of kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medseg.errors import PriorError
from medseg.generative.noise import draw_uniform
from medseg.priors.prior import check_kernels
from medseg.shapes import Kernels, PerKernel

_EULER = 0.5772156649015329
# E log|e| less the entropy of a standard normal e. With this constant the KL from a Gaussian falls
# to 0, its least value, where the deviation outgrows the mean.
_OFFSET = -0.5 * (_EULER + math.log(2)) - 0.5 * (math.log(2 * math.pi) + 1)
# A weight of exactly 0 has an infinite density.
_LEAST = 1e-20


class LogUniform(nn.Module):
    """Independent weights whose magnitude is uniform on the logarithmic scale, of either sign.

    The density 1 / |w| holds for every weight and cannot be normalised; its constant is set so that
    the KL from a factorised Gaussian is at least 0. No direction and no size is preferred, so it is
    a prior for comparison: sparse, and without anything of a source.

    Parameters
    ----------
    low, high : Tensor, shape (*k)
        Magnitudes between which *samples* are drawn, 0 < low < high, for a density without bounds
        has no samples.

    Raises
    ------
    PriorError
        The magnitudes are not finite, positive and in this order.

    References
    ----------
    Kingma, Salimans and Welling (2015), Variational dropout and the local reparameterization trick,
    section 3.
    """

    low: Tensor
    high: Tensor
    is_exact = False
    is_normalised = False

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        if not bool(((low > 0) & (low < high) & high.isfinite()).all()):
            raise PriorError(
                f"Magnitudes must be finite with 0 < low < high, but the least is "
                f"{float(low.min()):.3g} and the largest {float(high.max()):.3g}.",
                hint="They bound samples alone: take a thousandth of the largest weight for low.",
            )
        self.register_buffer("low", low.detach().clone())
        self.register_buffer("high", high.detach().clone())

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one slice."""
        return tuple(self.low.shape)

    def log_bound(self, kernels: Kernels, *, generator: torch.Generator | None = None) -> PerKernel:
        """Return the sum of -log|w| in nats, (m,), up to a constant."""
        del generator
        check_kernels(kernels, self.kernel_shape)
        return (_OFFSET - kernels.abs().clamp_min(_LEAST).log()).flatten(1).sum(1)

    def sample(self, n: int, *, generator: torch.Generator) -> Kernels:
        """Return ``n`` kernels with magnitudes between ``low`` and ``high``."""
        place = draw_uniform((n, *self.kernel_shape), generator=generator, like=self.low)
        return place.sign() * self.low * (self.high / self.low) ** place.abs()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return nothing: there is nothing to infer."""
        return []
