"""Factorised Gaussian posteriors over convolution weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from medseg.errors import ModelError, ShapeError
from medseg.generative.noise import draw_normal
from medseg.shapes import Kernels, PerKernel

HALF_LOG_2PI_E = 0.5 * (math.log(2.0 * math.pi) + 1.0)


@runtime_checkable
class Posterior(Protocol):
    """A distribution over the weights of one convolution, ``(out, in, *k)``.

    Laws, held by ``tests/contracts/test_posteriors.py``: KL(q, q) = 0; the Monte Carlo KL lies
    within four standard errors of a closed form; equal generators give equal samples; gradients
    reach ``mean`` and ``log_std``.
    """

    mean: nn.Parameter
    log_std: nn.Parameter

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return one weight tensor ``(out, in, *k)``, differentiable in the parameters."""
        ...

    def entropy(self) -> Tensor:
        """Return the entropy of all weights together, a scalar in nats."""
        ...

    def kernels(self, index: Tensor | None = None) -> KernelGaussian:
        """Return the marginal over the kernel slices ``index``; over all by default."""
        ...


@dataclass(frozen=True)
class KernelGaussian:
    """A factorised Gaussian over kernel slices: the value a KL is computed from.

    Parameters
    ----------
    mean : Tensor, shape (m, *k)
        Mean of each kernel slice.
    log_std : Tensor, shape (m, *k)
        Log standard deviation, one per number.
    """

    mean: Tensor
    log_std: Tensor

    @property
    def variance(self) -> Tensor:
        """Variance per number, shape (m, *k)."""
        return (2.0 * self.log_std).exp()

    def rsample(self, generator: torch.Generator | None = None) -> Kernels:
        """Return one sample of every kernel, shape (m, *k), differentiable in both parameters."""
        return self.mean + self.log_std.exp() * draw_normal(
            tuple(self.mean.shape), like=self.mean, generator=generator
        )

    def entropy_per_kernel(self) -> PerKernel:
        """Return ``sum log_std + d/2 log(2 pi e)`` per kernel slice, shape (m,), nats."""
        log_std = self.log_std.flatten(1)
        return log_std.sum(1) + log_std.shape[1] * HALF_LOG_2PI_E


class MeanFieldGaussian(nn.Module):
    """One independent Gaussian per weight: ``w = mean + exp(log_std) * noise``.

    Parameters
    ----------
    mean : Tensor, shape (out, in, *k)
        Start of the means; copied.
    log_std : Tensor, shape (out, in, *k), or float
        Start of the log standard deviations; copied.
    max_log_std : float, optional
        Cap on the log standard deviation. It is saved with the weights, because a network built
        anew from its settings has other kernels and would find another cap.

    Raises
    ------
    ShapeError
        When ``log_std`` has another shape than ``mean``, or there are no kernel axes.
    ModelError
        When a start is not finite.

    Notes
    -----
    At the cap the gradient that would raise ``log_std`` further is dropped and the one that lowers
    it is kept, so a weight can always come back. The parameter may lie above the cap by the
    momentum of an optimiser; everything computed here uses ``capped_log_std``.
    """

    max_log_std: Tensor | None

    def __init__(
        self, mean: Tensor, log_std: Tensor | float, *, max_log_std: float | None = None
    ) -> None:
        super().__init__()
        if mean.ndim < 3:
            raise ShapeError(
                f"weights must have the shape (out, in, *k), but the shape is {tuple(mean.shape)}",
                hint="pass the weight of a convolution",
            )
        spread = log_std if isinstance(log_std, Tensor) else torch.full_like(mean, log_std)
        if spread.shape != mean.shape:
            raise ShapeError(
                f"log_std must have the shape of mean, {tuple(mean.shape)}, "
                f"but its shape is {tuple(spread.shape)}",
                hint="pass one number for all weights, or one per weight",
            )
        if not (mean.isfinite().all() and spread.isfinite().all()):
            raise ModelError(
                "mean and log_std must be finite, but a value is NaN or infinite",
                hint="check the network that the weights come from",
            )
        self.mean = nn.Parameter(mean.detach().clone())
        self.log_std = nn.Parameter(spread.detach().clone())
        cap = None if max_log_std is None else mean.new_tensor(max_log_std)
        self.register_buffer("max_log_std", cap)

    @property
    def capped_log_std(self) -> Tensor:
        """Log standard deviation in force, shape (out, in, *k)."""
        return self._capped(self.log_std)

    @property
    def std(self) -> Tensor:
        """Standard deviation in force, shape (out, in, *k)."""
        return self.capped_log_std.exp()

    @property
    def n_kernels(self) -> int:
        """Number of kernel slices, out x in."""
        return self.mean.shape[0] * self.mean.shape[1]

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return one weight tensor ``(out, in, *k)``, differentiable in both parameters.

        The numbers do not depend on the memory format of the weights.
        """
        return self.mean + self.std * draw_normal(
            tuple(self.mean.shape), like=self.mean, generator=generator
        )

    def entropy(self) -> Tensor:
        """Return the entropy of all weights together, a scalar in nats."""
        return self.capped_log_std.sum() + self.mean.numel() * HALF_LOG_2PI_E

    def entropy_per_kernel(self) -> PerKernel:
        """Return the entropy of each kernel slice, shape (out * in,), nats."""
        return self.kernels().entropy_per_kernel()

    def kernels(self, index: Tensor | None = None) -> KernelGaussian:
        """Return the marginal over kernel slices.

        Parameters
        ----------
        index : Tensor, shape (m,), optional
            Slices wanted, in the order ``out * n_in + in``; all by default.

        Returns
        -------
        KernelGaussian
            Mean and log standard deviation, shape (m, *k).
        """
        mean, log_std = self.mean.flatten(0, 1), self.log_std.flatten(0, 1)
        if index is not None:
            # Three times as fast as brackets, back and forth.
            mean, log_std = mean.index_select(0, index), log_std.index_select(0, index)
        return KernelGaussian(mean=mean, log_std=self._capped(log_std))

    def _capped(self, log_std: Tensor) -> Tensor:
        if self.max_log_std is None:
            return log_std
        capped: Tensor = _Cap.apply(log_std, self.max_log_std)
        return capped


class _Cap(torch.autograd.Function):
    """``min(x, cap)`` whose gradient vanishes only where a descent step would raise x further."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: Tensor) -> Tensor:
        ctx.save_for_backward(x, cap)
        return torch.minimum(x, cap)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad,) = grad_outputs
        x, cap = ctx.saved_tensors
        return torch.where((x < cap) | (grad > 0), grad, torch.zeros_like(grad)), None
