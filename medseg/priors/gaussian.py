"""Exact Gaussian filter priors: independent, correlated, and around source weights."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg.errors import PriorError
from medseg.generative.covariance import shrunk_covariance
from medseg.generative.noise import draw_normal
from medseg.priors.prior import check_kernels
from medseg.shapes import Kernels, PerKernel

LOG_TWO_PI = math.log(2 * math.pi)
# Relative to the rms of the kernels: a position that never varies must not get an infinite density.
_STD_FLOOR = 1e-3


class DiagonalGaussian(nn.Module):
    """Independent Gaussian weights, each position of the kernel with its own mean and deviation.

    Parameters
    ----------
    mean : Tensor, shape (*k)
        Mean kernel.
    std : Tensor, shape (*k)
        Standard deviations, all above 0.
    """

    mean: Tensor
    std: Tensor
    is_exact = True
    is_normalised = True

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        _check_std(std)
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())

    @classmethod
    def fit(cls, kernels: Kernels) -> DiagonalGaussian:
        """Return the most likely Gaussian of kernels (m, *k), deviations with a small floor."""
        floor = _STD_FLOOR * float(kernels.square().mean().sqrt())
        return cls(kernels.mean(0), kernels.std(0, correction=0).clamp(min=floor))

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one slice."""
        return tuple(self.mean.shape)

    @property
    def log_std(self) -> Tensor:
        """Logarithm of the standard deviations, (*k)."""
        return self.std.log()

    def scaled(self, factor: float) -> DiagonalGaussian:
        """Return the density of ``factor`` times a kernel."""
        return DiagonalGaussian(self.mean * factor, self.std * factor)

    def log_bound(self, kernels: Kernels, *, generator: torch.Generator | None = None) -> PerKernel:
        """Return log p in nats, (m,)."""
        del generator
        check_kernels(kernels, self.kernel_shape)
        return _normal_log_density((kernels - self.mean) / self.std, self.std.log())

    def sample(self, n: int, *, generator: torch.Generator) -> Kernels:
        """Return ``n`` kernels."""
        noise = draw_normal((n, *self.kernel_shape), generator=generator, like=self.mean)
        return self.mean + self.std * noise

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return nothing: the density is exact."""
        return []


class FullGaussian(nn.Module):
    """Gaussian kernels with every correlation between positions.

    Parameters
    ----------
    mean : Tensor, shape (*k)
        Mean kernel.
    covariance : Tensor, shape (d, d)
        Of the flattened kernels, d = prod(k); symmetric and positive definite.

    Raises
    ------
    PriorError
        The covariance is not positive definite or not (d, d).
    """

    mean: Tensor
    covariance: Tensor
    cholesky: Tensor
    whitener: Tensor
    is_exact = True
    is_normalised = True

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        d = mean.numel()
        # Rounded first, so that a prior built from the stored covariance is the very same one.
        covariance = covariance.detach().to(mean.dtype)
        square = tuple(covariance.shape) == (d, d)
        factor, failed = torch.linalg.cholesky_ex(covariance.double() if square else -torch.eye(1))
        if int(failed):
            least = float(covariance.diagonal().min())
            raise PriorError(
                f"A covariance of kernels with {d} numbers must be ({d}, {d}) and positive "
                f"definite, but this one is {tuple(covariance.shape)} with smallest entry on the "
                f"diagonal {least:.3g}.",
                hint="Fit with shrinkage above 0, or give more kernels.",
            )
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("covariance", covariance.clone())
        # Factorised once, in double precision: scoring then is one small matrix product.
        self.register_buffer("cholesky", factor.to(mean.dtype))
        self.register_buffer("whitener", torch.linalg.inv(factor).to(mean.dtype))

    @classmethod
    def fit(cls, kernels: Kernels, *, shrinkage: float | None = None) -> FullGaussian:
        """Return the Gaussian of kernels (m, *k) with shrunk covariance (default: Ledoit-Wolf)."""
        covariance = shrunk_covariance(kernels.flatten(1), shrinkage=shrinkage)
        floor = (_STD_FLOOR**2) * float(kernels.double().square().mean())
        jitter = floor * torch.eye(len(covariance), dtype=covariance.dtype, device=kernels.device)
        return cls(kernels.mean(0), covariance + jitter)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one slice."""
        return tuple(self.mean.shape)

    @property
    def precision(self) -> Float[Tensor, "d d"]:
        """Inverse of the covariance, (d, d)."""
        return self.whitener.T @ self.whitener

    @property
    def log_det_covariance(self) -> Tensor:
        """Logarithm of the determinant of the covariance, a scalar."""
        return 2 * self.cholesky.diagonal().log().sum()

    def scaled(self, factor: float) -> FullGaussian:
        """Return the density of ``factor`` times a kernel."""
        return FullGaussian(self.mean * factor, self.covariance.double() * factor**2)

    def log_bound(self, kernels: Kernels, *, generator: torch.Generator | None = None) -> PerKernel:
        """Return log p in nats, (m,)."""
        del generator
        check_kernels(kernels, self.kernel_shape)
        # Mixed precision would round the Mahalanobis distance to two digits.
        with torch.autocast(device_type=kernels.device.type, enabled=False):
            white = (kernels - self.mean).flatten(1) @ self.whitener.T
        return _normal_log_density(white, self.cholesky.diagonal().log())

    def sample(self, n: int, *, generator: torch.Generator) -> Kernels:
        """Return ``n`` kernels."""
        noise = draw_normal((n, self.mean.numel()), generator=generator, like=self.mean)
        return self.mean + (noise @ self.cholesky.T).reshape(n, *self.kernel_shape)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return nothing: the density is exact."""
        return []


class SourceCentredGaussian(nn.Module):
    """Independent Gaussians around the kernels of one source layer: kernel i belongs to position i.

    Unlike the other priors it knows *which* kernel it scores, so it takes all kernels of the layer
    in their order; :meth:`select` gives the prior of some of them.

    Parameters
    ----------
    mean : Tensor, shape (m, *k)
        Source kernels, output channel times input channel in the layer's order.
    std : Tensor, broadcastable to (m, *k)
        Standard deviations, all above 0.

    References
    ----------
    Krishnan, Subedar and Tickoo (2020), Specifying weight priors in Bayesian deep neural networks
    with empirical Bayes (MOPED), equation 6.
    """

    mean: Tensor
    std: Tensor
    is_exact = True
    is_normalised = True

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        _check_std(std)
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().expand_as(mean).clone())

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one slice."""
        return tuple(self.mean.shape[1:])

    @property
    def log_std(self) -> Tensor:
        """Logarithm of the standard deviations, (m, *k)."""
        return self.std.log()

    def select(self, rows: Tensor) -> SourceCentredGaussian:
        """Return the prior of the kernels with the numbers ``rows``, int64 or bool."""
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        return SourceCentredGaussian(
            self.mean.index_select(0, rows), self.std.index_select(0, rows)
        )

    def log_bound(self, kernels: Kernels, *, generator: torch.Generator | None = None) -> PerKernel:
        """Return log p in nats, (m,), of kernel i under the Gaussian around source kernel i."""
        del generator
        check_kernels(kernels, self.kernel_shape)
        self._check_count(len(kernels))
        return _normal_log_density((kernels - self.mean) / self.std, self.std.log())

    def sample(self, n: int, *, generator: torch.Generator) -> Kernels:
        """Return one kernel around each source kernel, in order; ``n`` must be their number."""
        self._check_count(n)
        noise = draw_normal(tuple(self.mean.shape), generator=generator, like=self.mean)
        return self.mean + self.std * noise

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return nothing: the density is exact."""
        return []

    def _check_count(self, n: int) -> None:
        if n != len(self.mean):
            raise PriorError(
                f"A source-centred prior holds one Gaussian per kernel, {len(self.mean)} here, "
                f"but {n} kernels "
                "were asked for.",
                hint="Give all kernels of the layer in order, or take select(rows) first.",
            )


def _normal_log_density(white: Tensor, log_scale: Tensor) -> PerKernel:
    """Return log N in nats of whitened values (m, ...), given the logs of their divisors."""
    log_scale = log_scale.flatten(1).sum(1) if log_scale.ndim == white.ndim else log_scale.sum()
    squares = white.flatten(1).square()
    return -0.5 * (squares.sum(1) + squares.shape[1] * LOG_TWO_PI) - log_scale


def _check_std(std: Tensor) -> None:
    if not bool((std > 0).all()) or not bool(torch.isfinite(std).all()):
        raise PriorError(
            f"Standard deviations must be finite and above 0, but the smallest is "
            f"{float(std.min()):.3g}.",
            hint="The kernels do not vary: harvest from more networks, or prune dead kernels.",
        )
