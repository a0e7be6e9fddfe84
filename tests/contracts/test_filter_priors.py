"""Laws every filter prior keeps. A new kind of generative model adds one line to QUICK."""

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import PriorError
from medseg.generative.catalog import KINDS, make_model
from medseg.priors.anchored import AnchoredPrior
from medseg.priors.fit import PRIOR_KINDS, FitPriorSettings, is_normalised, takes_condition
from medseg.priors.gaussian import DiagonalGaussian, FullGaussian, SourceCentredGaussian
from medseg.priors.layer_priors import LayerPriors
from medseg.priors.learned import learned_prior
from medseg.priors.log_uniform import LogUniform
from medseg.priors.prior import FilterPrior, meaning_of
from medseg.seeding import torch_generator
from medseg.variational.convert import to_variational, variational_layers
from medseg.variational.kl import network_kl
from medseg.variational.settings import VariationalSettings

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


#: Quick settings of every kind of generative model that can be a filter prior.
CHAINS: dict[str, Any] = {"sample_sweeps": 60, "contrastive": {"fit": {"max_steps": 200}}}
QUICK: dict[str, dict[str, Any]] = {
    "ppca": {"latent": 4},
    "gmm": {"components": 2},
    "flow": {"steps": 2, "hidden": 32, "blocks": 9, "fit": {"max_steps": 150}},
    "vae": {"latent": 3, "hidden": (24,), "fit": {"max_steps": 150}},
    "boovae": {"latent": 3, "hidden": (24,), "components": (2,), "fit": {"max_steps": 150}},
    "rbm": {"hidden": 16, **CHAINS},
    "dbn": {"hidden": (16, 8), **CHAINS},
    "dbm": {"hidden": (16, 8), "rounds": 10, **CHAINS},
    "dae": {"widths": (48,), "chain_steps": 50, "fit": {"max_steps": 300}},
    "gan": {"hidden": (32, 32), "fit": {"max_steps": 200}, "reference_steps": 200},
    "som": {"size_x": 3, "size_y": 3},
}


def learned(kernels: Tensor, *, kind: str, condition: Tensor | None = None) -> FilterPrior:
    size = 0 if condition is None else len(condition)
    model = FitPriorSettings(kind=kind, model=QUICK[kind]).make(
        tuple(kernels.shape[1:]), condition_size=size
    )
    told = None if condition is None else condition.expand(len(kernels), -1)
    model.fit(kernels / SCALE, generator=torch_generator(0, kind), condition=told)
    return learned_prior(model, scale=SCALE, condition=condition)


def anchored(kernels: Tensor, likely: FilterPrior) -> FilterPrior:
    return AnchoredPrior(SourceCentredGaussian(kernels, torch.tensor(0.2 * SCALE)), likely)


PRIORS: dict[str, Callable[[Tensor], FilterPrior]] = {
    "diagonal": DiagonalGaussian.fit,
    "gaussian": FullGaussian.fit,
    "gaussian, scaled": lambda kernels: FullGaussian.fit(kernels / SCALE).scaled(SCALE),
    "source-centred": lambda kernels: SourceCentredGaussian(kernels, torch.tensor(0.2 * SCALE)),
    "anchored, gaussian": lambda kernels: anchored(kernels, FullGaussian.fit(kernels)),
    "anchored, vae": lambda kernels: anchored(kernels, learned(kernels, kind="vae")),
    "log-uniform": lambda kernels: LogUniform(
        torch.full_like(kernels[0], 1e-3 * SCALE), torch.full_like(kernels[0], SCALE)
    ),
    **{kind: functools.partial(learned, kind=kind) for kind in QUICK},
    **{
        f"{kind}, conditioned": functools.partial(
            learned, kind=kind, condition=torch.tensor([0.5, -1.0])
        )
        for kind in QUICK
        if takes_condition(kind)
    },
}
SHAPES = [(3, 3, 3), (3, 3)]


@pytest.fixture(scope="module", params=SHAPES, ids=["3d", "2d"])
def kernels(request: pytest.FixtureRequest) -> Tensor:
    return toy_kernels(request.param)


@pytest.fixture(scope="module", params=list(PRIORS))
def prior(request: pytest.FixtureRequest, kernels: Tensor) -> FilterPrior:
    return PRIORS[request.param](kernels)


def test_every_kind_is_under_the_laws() -> None:
    assert set(PRIOR_KINDS) == {"diagonal", "gaussian", *QUICK}


def test_a_kind_tells_before_any_fit_whether_it_is_normalised() -> None:
    for kind in QUICK:
        model = FitPriorSettings(kind=kind, model=QUICK[kind]).make((3, 3))
        assert learned_prior(model).is_normalised == is_normalised(kind)
    assert all(PRIORS[kind](toy_kernels((3, 3))).is_normalised for kind in ("diagonal", "gaussian"))


def test_follows_the_protocol(prior: FilterPrior, kernels: Tensor) -> None:
    assert isinstance(prior, FilterPrior)
    assert isinstance(prior, nn.Module)
    assert prior.kernel_shape == tuple(kernels.shape[1:])
    assert prior.is_exact <= prior.is_normalised
    assert ("unnormalised" in meaning_of(prior)) != prior.is_normalised


def test_own_samples_score_above_shuffled_ones(prior: FilterPrior, kernels: Tensor) -> None:
    if isinstance(prior, LogUniform):
        pytest.skip("to it all positions of a kernel are alike")
    generator = torch_generator(1)
    own = prior.sample(len(kernels), generator=generator)
    order = torch.randperm(own[0].numel(), generator=generator)
    shuffled = own.flatten(1)[:, order].reshape(own.shape)
    with torch.no_grad():
        gain = prior.log_bound(own, generator=generator) - prior.log_bound(
            shuffled, generator=generator
        )
    assert own.shape == kernels.shape
    # By sign, four standard errors above chance: a heavy tail may gain thousands of nats on one.
    assert (gain > 0).float().mean() > 0.5 + 4 * 0.5 / len(gain) ** 0.5


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
    assert prior.is_exact <= (not trainable)


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
    if not prior.is_normalised:
        pytest.skip("it says that it is not")
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


@pytest.mark.parametrize("times", [3.0, 10.0, 100.0])
def test_the_farther_from_all_that_were_seen_the_worse(
    prior: FilterPrior, kernels: Tensor, times: float
) -> None:
    """Else a posterior would leave for infinity."""
    noise = torch.randn(kernels.shape, generator=torch_generator(1)) * kernels.std()
    with torch.no_grad():
        near, far = (
            prior.log_bound(kernels + step * noise, generator=torch_generator(0)).mean()
            for step in (times, 2 * times)
        )
    # A density without a scale loses log 2 per number when they all double.
    scale_free = 0.9 * math.prod(prior.kernel_shape) * math.log(2)
    assert near > far + (scale_free if isinstance(prior, LogUniform) else 10)


def test_saved_and_loaded_it_is_the_same(
    prior: FilterPrior, kernels: Tensor, tmp_path: Path
) -> None:
    table = LayerPriors({"conv": prior})
    table.save(tmp_path)
    loaded = LayerPriors.load(tmp_path)
    assert loaded.hash == table.hash
    assert loaded.is_normalised == prior.is_normalised
    assert loaded.describe() == table.describe()
    (row,) = loaded.describe()
    assert ("unnormalised" in str(row["nats"])) != prior.is_normalised
    for made in (
        lambda table: table.log_bound("conv", kernels, generator=torch_generator(0)),
        lambda table: table.sample("conv", len(kernels), generator=torch_generator(0)),
    ):
        assert torch.equal(made(table), made(loaded))


def test_a_step_down_the_kl_of_a_network_lowers_it(prior: FilterPrior, kernels: Tensor) -> None:
    made = nn.Conv3d if kernels.ndim == 4 else nn.Conv2d
    conv = made(20, 20, 3)
    with torch.no_grad():
        conv.weight.copy_((kernels + 0.3 * SCALE).reshape(conv.weight.shape))
    twin = to_variational(nn.Sequential(conv), settings=VariationalSettings())
    # The inference network of a prior is trained along; the prior of this module stays as it is.
    table = LayerPriors({"0": copy.deepcopy(prior)})
    posterior = variational_layers(twin)["0"].posterior
    optimiser = torch.optim.SGD(posterior.parameters(), lr=1e-8)
    values = []
    for _ in range(2):
        optimiser.zero_grad()
        nats = network_kl(twin, table, generator=torch_generator(0))
        nats.backward()
        assert all(p.grad is not None and p.grad.norm() > 0 for p in posterior.parameters())
        values.append(float(nats.detach()))
        optimiser.step()
    assert values[1] < values[0]
    if prior.is_normalised:
        assert values[1] > 0


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(QUICK) - {"conv_vae"}))
def test_a_model_that_cannot_be_a_prior_is_refused(kind: str) -> None:
    with pytest.raises(PriorError, match=f"{kind!r} provides .* only.*Take one of ppca"):
        learned_prior(make_model(kind, (3, 3, 3)))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scale_that_is_not_positive_is_refused(scale: float) -> None:
    with pytest.raises(PriorError, match="A scale must be finite and above 0"):
        learned_prior(make_model("ppca", (3, 3, 3)), scale=scale)
