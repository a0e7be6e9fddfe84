"""The promise every filter prior keeps."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from medseg.errors import PriorError
from medseg.shapes import Kernels, PerKernel


@runtime_checkable
class FilterPrior(Protocol):
    """A density over single kernel slices, in the units of the network's own weights.

    Implementations are modules whose distribution is frozen (buffers, or parameters without
    gradient), while gradients flow through them to the kernels. ``trainable_parameters`` lists what
    may still be trained: the inference network of a latent-variable prior, which tightens the bound
    and leaves the density alone. A prior that knows its density only up to a constant is no less a
    prior, for the constant moves no posterior; it says so by ``is_normalised``.

    Attributes
    ----------
    kernel_shape : tuple of int
        (3, 3, 3) or (3, 3).
    is_exact : bool
        True when ``log_bound`` is log p itself.
    is_normalised : bool
        True when the density that is bounded integrates to one, so that nats compare between
        priors. Else ``log_bound`` is minus an energy: log p up to an unknown constant.
    """

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one slice."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether the bound is the log density."""
        ...

    @property
    def is_normalised(self) -> bool:
        """Whether the density integrates to one."""
        ...

    def log_bound(self, kernels: Kernels, *, generator: torch.Generator | None = None) -> PerKernel:
        """Return a lower bound on log p in nats for each of the kernels (m, *k).

        A random bound holds in expectation. ``generator=None`` draws from torch's global generator.

        Raises
        ------
        PriorError
            The kernels are not (m, *kernel_shape).
        """
        ...

    def sample(self, n: int, *, generator: torch.Generator) -> Kernels:
        """Return ``n`` kernels drawn from the prior, (n, *kernel_shape)."""
        ...

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that only the bound depends on; mostly none."""
        ...


def meaning_of(prior: FilterPrior) -> str:
    """Return what the nats of ``log_bound`` are, in words."""
    if not prior.is_normalised:
        return "minus an energy: log density up to an unknown constant (unnormalised)"
    return "log density" if prior.is_exact else "lower bound on the log density"


def check_kernels(kernels: Tensor, kernel_shape: tuple[int, ...]) -> None:
    """Refuse kernels that are not (m, *kernel_shape).

    Raises
    ------
    PriorError
        Another shape.
    """
    if tuple(kernels.shape[1:]) != kernel_shape or kernels.ndim != len(kernel_shape) + 1:
        raise PriorError(
            f"This prior scores kernels of shape (m, {', '.join(map(str, kernel_shape))}), but it "
            f"was given "
            f"{tuple(kernels.shape)}.",
            hint="Flatten output and input channels into one axis, and use a prior fitted to "
            "kernels of "
            "this size and dimension.",
        )
