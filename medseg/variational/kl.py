"""KL divergence of a weight posterior from a filter prior, chosen by their two types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.errors import ModelError, PriorError
from medseg.priors.gaussian import DiagonalGaussian, FullGaussian, SourceCentredGaussian
from medseg.priors.log_uniform import LogUniform
from medseg.priors.prior import FilterPrior, check_kernels
from medseg.shapes import PerKernel
from medseg.variational.convert import variational_layers
from medseg.variational.posterior import KernelGaussian, MeanFieldGaussian, Posterior

ClosedForm = Callable[[KernelGaussian, Any], Tensor]

# k1, k2 and k3 of the fit to the KL from the log-uniform prior.
_LOG_UNIFORM = (0.63576, 1.87320, 1.48695)


@runtime_checkable
class PriorTable(Protocol):
    """What ``network_kl`` asks of ``medseg.priors.layer_priors.LayerPriors``."""

    def prior_for(self, layer: str) -> FilterPrior:
        """Return the prior of the kernels of ``layer``; an unknown layer is refused."""
        ...


@runtime_checkable
class PositionalPrior(Protocol):
    """A prior that knows which kernel of the layer it scores."""

    def select(self, rows: Tensor) -> FilterPrior:
        """Return the prior of the kernels ``rows``, in that order."""
        ...


def kl_nats(
    posterior: Posterior,
    prior: FilterPrior,
    *,
    generator: torch.Generator | None = None,
    index: Tensor | None = None,
) -> PerKernel:
    """Return ``KL(q || p)`` of each kernel slice, or an upper bound of it.

    A pair of types in ``CLOSED_FORMS`` is exact, or as near to it as its form says. Any other prior
    is scored at one sample, ``-H(q) - log_bound(w)`` with ``w ~ q``: unbiased where the prior is
    exact, in expectation an upper bound where ``log_bound`` is a lower one; less log Z where the
    prior is not normalised, which moves no gradient. Gradients reach the posterior, and an
    inference network within the prior.

    Parameters
    ----------
    posterior : Posterior
        Over weights (out, in, *k).
    prior : FilterPrior
        In the units of these weights.
    generator : torch.Generator, optional
        For the sample, and for the prior's own draws; None means torch's global generator.
    index : Tensor, shape (m,), int64, optional
        Kernel slices wanted, in the order ``out * n_in + in``; all by default.

    Returns
    -------
    Tensor, shape (m,)
        Nats per kernel slice.

    Raises
    ------
    PriorError
        When the prior is for kernels of another shape, or for another number of them.

    References
    ----------
    Atanov et al., The deep weight prior, 2019, equations 8 to 10 (the auxiliary bound).
    """
    kernels = posterior.kernels(index)
    check_kernels(kernels.mean, prior.kernel_shape)
    if index is not None and isinstance(prior, PositionalPrior):
        prior = prior.select(index)
    closed_form = CLOSED_FORMS.get((type(posterior), type(prior)))
    if closed_form is not None:
        return closed_form(kernels, prior)
    score = prior.log_bound(kernels.rsample(generator), generator=generator)
    return -kernels.entropy_per_kernel() - score


def network_kl(
    network: nn.Module,
    priors: PriorTable,
    *,
    generator: torch.Generator | None = None,
    fraction: float = 1.0,
) -> Tensor:
    """Return the KL of all variational layers together, a scalar in nats.

    Parameters are those of :func:`layer_kl`, whose values it adds up.
    """
    table = layer_kl(network, priors, generator=generator, fraction=fraction)
    return torch.stack(list(table.values())).sum()


def layer_kl(
    network: nn.Module,
    priors: PriorTable,
    *,
    generator: torch.Generator | None = None,
    fraction: float = 1.0,
) -> dict[str, Tensor]:
    """Return the KL of each variational layer, scalars in nats.

    All kernels of a layer are scored in one batch. With ``fraction`` below 1 a random share of
    them, at least one, stands for the layer: drawn without replacement and scaled by the
    inverse share, so the estimate and its gradient are unbiased.

    Parameters
    ----------
    network : nn.Module
        With at least one variational layer.
    priors : PriorTable
        A prior for each of these layers, by module name.
    generator : torch.Generator, optional
        For the choice of kernels and for samples; None means torch's global generator.
    fraction : float
        Share of the kernels, above 0 and at most 1.

    Returns
    -------
    dict of str to Tensor, shape ()
        By layer name, in the order of the network.

    Raises
    ------
    ModelError
        When there is no variational layer, or the share is out of range.
    PriorError
        When a layer has no prior, or one that does not fit.
    """
    layers = variational_layers(network)
    if not layers:
        raise ModelError(
            f"a KL needs variational layers, but {type(network).__name__} has none",
            hint="convert the network with to_variational first",
        )
    if not 0.0 < fraction <= 1.0:
        raise ModelError(
            f"the share of kernels must be above 0 and at most 1, but it is {fraction}",
            hint="1 scores every kernel",
        )
    result = {}
    for name, layer in layers.items():
        index = _subset(layer.posterior, fraction, generator)
        # Sums of many small nats lose their digits in half precision.
        with torch.autocast(layer.posterior.mean.device.type, enabled=False):
            nats = kl_nats(
                layer.posterior, priors.prior_for(name), generator=generator, index=index
            )
        result[name] = nats.mean() * layer.posterior.n_kernels
    return result


def _subset(
    posterior: MeanFieldGaussian, fraction: float, generator: torch.Generator | None
) -> Tensor | None:
    n = posterior.n_kernels
    wanted = max(1, round(fraction * n))
    if wanted >= n:
        return None
    device = posterior.mean.device if generator is None else generator.device
    drawn = torch.randperm(n, generator=generator, device=device)[:wanted]
    # In the order of memory, which makes picking them and their gradient faster.
    return drawn.sort().values.to(posterior.mean.device)


def _from_independent(q: KernelGaussian, p: DiagonalGaussian | SourceCentredGaussian) -> Tensor:
    """``sum log(s_p / s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2``."""
    if isinstance(p, SourceCentredGaussian) and len(p.mean) != len(q.mean):
        raise PriorError(
            f"a source-centred prior has one Gaussian per kernel, here {len(p.mean)}, "
            f"but the layer has {len(q.mean)} kernels",
            hint="take it from a network of the same architecture",
        )
    variance = p.std.square()
    squares = (q.variance + (q.mean - p.mean).square()) / variance
    return (p.log_std - q.log_std + 0.5 * (squares - 1.0)).flatten(1).sum(1)


def _from_correlated(q: KernelGaussian, p: FullGaussian) -> Tensor:
    """``(tr(P S_q) + (m_q - m_p)' P (m_q - m_p) - d - log|P| - log|S_q|) / 2``, P precision."""
    variance, log_std = q.variance.flatten(1), q.log_std.flatten(1)
    white = (q.mean - p.mean).flatten(1) @ p.whitener.T
    trace = variance @ p.whitener.square().sum(0)
    log_det = p.log_det_covariance - 2.0 * log_std.sum(1)
    return 0.5 * (trace + white.square().sum(1) - variance.shape[1] + log_det)


def _from_log_uniform(q: KernelGaussian, p: LogUniform) -> Tensor:
    """``sum k1 sigmoid(-k2 - k3 log a) + log(1 + 1/a) / 2`` of the noise ``a = s_q^2 / m_q^2``.

    Within 0.01 nats per weight. Molchanov, Ashukha and Vetrov, Variational dropout sparsifies deep
    neural networks, 2017, equation 14.
    """
    del p
    log_noise = 2.0 * q.log_std - (q.mean.square() + 1e-20).log()
    k1, k2, k3 = _LOG_UNIFORM
    curve = k1 * (-k2 - k3 * log_noise).sigmoid()
    return (curve + 0.5 * functional.softplus(-log_noise)).flatten(1).sum(1)


#: Pairs of posterior and prior whose KL is known in closed form; all others are scored by a sample.
CLOSED_FORMS: Mapping[tuple[type, type], ClosedForm] = {
    (MeanFieldGaussian, DiagonalGaussian): _from_independent,
    (MeanFieldGaussian, SourceCentredGaussian): _from_independent,
    (MeanFieldGaussian, FullGaussian): _from_correlated,
    (MeanFieldGaussian, LogUniform): _from_log_uniform,
}
