"""Laws every filter prior keeps. A new prior adds one line to PRIORS."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import PriorError
from medseg.generative.fitting import FitSettings
from medseg.generative.vae import Vae, VaeSettings
from medseg.priors.gaussian import DiagonalGaussian, FullGaussian, SourceCentredGaussian
from medseg.priors.learned import VaePrior
from medseg.priors.prior import FilterPrior
from medseg.seeding import torch_generator

SCALE = 0.05


def toy_kernels(shape: tuple[int, ...], n: int = 400) -> Tensor:
    """Return kernels of rms about 0.05: smooth, stronger at one end, of very different sizes."""
    generator = torch_generator(0, "kernels")
    d = math.prod(shape)
    place = torch.arange(d, dtype=torch.float32)
    smooth = torch.exp(-((place[:, None] - place[None]) ** 2) / 8) + 0.05 * torch.eye(d)
    factor = torch.linalg.cholesky(smooth) * (0.3 + place / d)[:, None]
    size = (0.7 * torch.randn(n, 1, generator=generator)).exp()
    vectors = 0.3 + size * (torch.randn(n, d, generator=generator) @ factor.T)
    return SCALE * vectors.reshape(n, *shape)


def vae_prior(kernels: Tensor, *, condition: Tensor | None = None) -> VaePrior:
    size = 0 if condition is None else len(condition)
    fit = FitSettings(max_steps=150)
    settings = VaeSettings(
        latent=3, hidden=(24,), standardise="whiten", condition_size=size, fit=fit
    )
    vae = Vae(tuple(kernels.shape[1:]), settings)
    told = None if condition is None else condition.expand(len(kernels), -1)
    vae.fit(kernels / SCALE, generator=torch_generator(0, "vae"), condition=told)
    return VaePrior(vae, scale=SCALE, condition=condition)


PRIORS: dict[str, Callable[[Tensor], FilterPrior]] = {
    "diagonal": DiagonalGaussian.fit,
    "gaussian": FullGaussian.fit,
    "gaussian, scaled": lambda kernels: FullGaussian.fit(kernels / SCALE).scaled(SCALE),
    "source-centred": lambda kernels: SourceCentredGaussian(kernels, torch.tensor(0.2 * SCALE)),
    "vae": vae_prior,
    "vae, conditioned": lambda kernels: vae_prior(kernels, condition=torch.tensor([0.5, -1.0])),
}
SHAPES = [(3, 3, 3), (3, 3)]


@pytest.fixture(scope="module", params=SHAPES, ids=["3d", "2d"])
def kernels(request: pytest.FixtureRequest) -> Tensor:
    return toy_kernels(request.param)


@pytest.fixture(scope="module", params=list(PRIORS))
def prior(request: pytest.FixtureRequest, kernels: Tensor) -> FilterPrior:
    return PRIORS[request.param](kernels)


def test_follows_the_protocol(prior: FilterPrior, kernels: Tensor) -> None:
    assert isinstance(prior, FilterPrior)
    assert isinstance(prior, nn.Module)
    assert prior.kernel_shape == tuple(kernels.shape[1:])
    assert prior.is_normalised


def test_own_samples_score_above_shuffled_ones(prior: FilterPrior, kernels: Tensor) -> None:
    generator = torch_generator(1)
    own = prior.sample(len(kernels), generator=generator)
    order = torch.randperm(own[0].numel(), generator=generator)
    shuffled = own.flatten(1)[:, order].reshape(own.shape)
    with torch.no_grad():
        gain = prior.log_bound(own, generator=generator) - prior.log_bound(
            shuffled, generator=generator
        )
    assert own.shape == kernels.shape
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


def test_same_generator_gives_the_same_sample(prior: FilterPrior, kernels: Tensor) -> None:
    n = len(kernels)
    first, again, other = (prior.sample(n, generator=torch_generator(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_gradient_flows_to_the_kernels_and_not_to_the_density(
    prior: FilterPrior, kernels: Tensor
) -> None:
    weights = (kernels + 0.1 * SCALE).requires_grad_()
    prior.log_bound(weights, generator=torch_generator(0)).sum().backward()
    assert weights.grad is not None
    assert torch.isfinite(weights.grad).all()
    assert weights.grad.flatten(1).norm(dim=1).min() > 0
    trainable = {id(parameter) for parameter in prior.trainable_parameters()}
    assert isinstance(prior, nn.Module)
    for parameter in prior.parameters():
        assert parameter.requires_grad == (id(parameter) in trainable)
        assert (parameter.grad is not None) == (id(parameter) in trainable)
        parameter.grad = None
    assert prior.is_exact == (not trainable)


def test_gradient_points_uphill(prior: FilterPrior, kernels: Tensor) -> None:
    weights = (kernels + 0.5 * SCALE).requires_grad_()
    before = prior.log_bound(weights, generator=torch_generator(0))
    (gradient,) = torch.autograd.grad(before.sum(), weights)
    with torch.no_grad():
        step = 1e-3 * SCALE * gradient / gradient.flatten(1).norm(dim=1).max()
        after = prior.log_bound(weights + step, generator=torch_generator(0))
    assert (after.double() - before.double()).sum() > 0


@pytest.mark.parametrize(
    "shape", [(5, 3, 3, 2), (5, 5, 5, 5), (27,), (4, 4, 3, 3, 3), (4, 4, 3, 3)]
)
def test_wrong_kernel_shape_is_refused(prior: FilterPrior, shape: tuple[int, ...]) -> None:
    with pytest.raises(PriorError, match=r"shape \(m, 3, 3"):
        prior.log_bound(torch.zeros(shape))


def test_nats_are_those_of_a_normalised_density(prior: FilterPrior, kernels: Tensor) -> None:
    """Gibbs' inequality, both ways, against a Gaussian whose log density is known."""
    if isinstance(prior, SourceCentredGaussian):
        other: FilterPrior = SourceCentredGaussian(kernels * 1.1, torch.tensor(0.3 * SCALE))
    else:
        fitted = FullGaussian.fit(kernels)
        other = FullGaussian(0.9 * fitted.mean, 1.3 * fitted.covariance)
    generator = torch_generator(0)
    with torch.no_grad():
        theirs = other.sample(len(kernels), generator=generator)
        mine = prior.sample(len(kernels), generator=generator)
        over = prior.log_bound(theirs, generator=generator) - other.log_bound(theirs)
        under = other.log_bound(mine) - prior.log_bound(mine, generator=generator)
    allowed = 0.0 if prior.is_exact else 0.25 * math.prod(prior.kernel_shape)
    # The first is strict for every lower bound; the second only where the bound is tight.
    assert over.mean() < 4 * over.std() / len(over) ** 0.5
    assert under.mean() < allowed + 4 * under.std() / len(under) ** 0.5
