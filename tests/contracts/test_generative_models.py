"""Laws every generative model keeps. A new kind adds one line to CASES, with quick settings."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from medseg.errors import ConfigError, MedsegError, ModelError, ShapeError
from medseg.generative.base import CAPABILITIES, GenerativeBase
from medseg.generative.catalog import KINDS, kind_of, load_model, make_model
from medseg.generative.model import GenerativeModel
from medseg.seeding import torch_generator

FIT = {"max_steps": 300, "epochs": 100}
SMALL_BATCHES = {"max_steps": 300, "epochs": 100, "batch_size": 64, "learning_rate": 1e-2}
#: Settings that say how long a fit takes, as short as a test of anything but its end needs.
BRIEF = {"max_steps": 8, "reference_steps": 8, "greedy_steps": 8}
CHAINS: dict[str, Any] = {
    "sample_sweeps": 60,
    "contrastive": {"fit": {**SMALL_BATCHES, "max_steps": 150}},
}


@cache
def gaussian_toy() -> tuple[Tensor, Tensor]:
    """Return items of a correlated Gaussian, (600, 2, 2), and their exact log density in nats."""
    generator = torch_generator(0, "toy")
    factor = torch.randn(4, 4, generator=generator) + torch.eye(4)
    mean = torch.tensor([1.0, -2.0, 0.0, 0.5])
    vectors = mean + torch.randn(600, 4, generator=generator) @ factor.T
    covariance = (factor @ factor.T).double().numpy()
    exact = multivariate_normal(mean.double().numpy(), covariance).logpdf(vectors.double().numpy())
    return vectors.reshape(-1, 2, 2), torch.from_numpy(exact).float()


@cache
def patch_toy() -> tuple[Tensor, Tensor]:
    """Return blobs of random size in noise, (600, 1, 8, 8), and their exact log density."""
    generator = torch_generator(0, "patches")
    axis = torch.linspace(-1, 1, 8)
    radius = ((axis[:, None] - 0.5) ** 2 + (axis[None] + 0.3) ** 2).flatten()
    blobs = torch.stack([(-3 * radius).exp(), axis.repeat(8)], dim=1)
    codes = torch.randn(600, 2, generator=generator)
    vectors = codes @ blobs.T + 0.3 * torch.randn(600, 64, generator=generator)
    covariance = (blobs @ blobs.T + 0.09 * torch.eye(64)).double().numpy()
    exact = multivariate_normal(None, covariance).logpdf(vectors.double().numpy())
    return vectors.reshape(-1, 1, 8, 8), torch.from_numpy(exact).float()


@cache
def binary_toy() -> tuple[Tensor, Tensor]:
    """Return stripes with flipped pixels, (600, 2, 2) of 0 and 1, and their exact log mass."""
    generator = torch_generator(0, "binary")
    stripes = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]])
    chosen = stripes[torch.randint(0, 3, (600,), generator=generator)]
    flips = torch.rand(600, 4, generator=generator) < 0.1
    vectors = torch.where(flips, 1 - chosen, chosen)
    distance = (vectors[:, None] - stripes).abs().sum(2)
    mass = (0.1**distance * 0.9 ** (4 - distance)).mean(1)
    return vectors.reshape(-1, 2, 2), mass.log()


@dataclass(frozen=True)
class Case:
    """One model under the laws: kind, quick settings, and what its items are.

    ``gap``: most nats the bound may lie below the exact density on unseen items. ``moments``: the
    samples have the mean and deviation of the items, to a quarter of the deviation.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    toy: Callable[[], tuple[Tensor, Tensor]] = gaussian_toy
    gap: float = 0.6
    moments: bool = True

    def make(self, *, brief: bool = False) -> GenerativeBase:
        """Return the unfitted model, ``brief`` with a fit of a few steps."""
        chosen = shortened(self.settings) if brief else self.settings
        return make_model(self.kind, tuple(self.toy()[0].shape[1:]), chosen)


def shortened(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return settings whose fits, where they name a length, are over soon."""
    return {
        name: shortened(value) if isinstance(value, dict) else BRIEF.get(name, value)
        for name, value in chosen.items()
    }


CASES: dict[str, Case] = {
    "pca": Case("pca", {"latent": 2}),
    "ppca": Case("ppca", {"latent": 3}, gap=0.1),
    "ppca of patches": Case("ppca", {"latent": 2}, toy=patch_toy, gap=0.3),
    "gmm": Case("gmm", {"components": 2}, gap=0.1),
    "diagonal gmm": Case("gmm", {"components": 3, "covariance": "diagonal"}),
    "flow": Case("flow", {"steps": 2, "hidden": 16, "fit": FIT}, gap=0.1),
    "vae": Case("vae", {"latent": 2, "hidden": (16,), "fit": FIT}),
    "whitened vae": Case(
        "vae", {"latent": 2, "hidden": (16,), "standardise": "whiten", "fit": FIT}
    ),
    "binary vae": Case(
        "vae",
        {"latent": 2, "hidden": (16,), "likelihood": "bernoulli", "fit": SMALL_BATCHES},
        toy=binary_toy,
        gap=0.15,
    ),
    "conv vae": Case(
        "conv_vae",
        {
            "latent": 2,
            "channels": (8,),
            "hidden": (16,),
            "decoder_std": "shared",
            "fit": SMALL_BATCHES,
        },
        toy=patch_toy,
        gap=1.5,
    ),
    "boovae": Case("boovae", {"latent": 2, "hidden": (16,), "components": (3,), "fit": FIT}),
    "linear vae": Case("vae", {"latent": 2, "hidden": (), "decoder_std": "shared", "fit": FIT}),
    "rbm": Case("rbm", {"hidden": 6, **CHAINS}),
    "binary rbm": Case(
        "rbm",
        {"hidden": 4, "visible": "bernoulli", **CHAINS},
        toy=binary_toy,
    ),
    "dbn": Case("dbn", {"hidden": (6, 4), **CHAINS}),
    "binary dbn": Case(
        "dbn",
        {"hidden": (4, 4), "visible": "bernoulli", **CHAINS},
        toy=binary_toy,
    ),
    "dbm": Case("dbm", {"hidden": (6, 4), **CHAINS}),
    "binary dbm": Case(
        "dbm",
        {"hidden": (4, 3), "visible": "bernoulli", **CHAINS},
        toy=binary_toy,
    ),
    "ae": Case("ae", {"widths": (16, 2), "fit": SMALL_BATCHES}),
    "contractive ae": Case(
        "ae",
        {"widths": (8,), "code_activation": "sigmoid", "contraction": 0.1, "fit": SMALL_BATCHES},
    ),
    "sparse stacked ae": Case(
        "ae", {"widths": (8, 6), "l1": 0.1, "entropy": 0.1, "greedy_steps": 30, "fit": FIT}
    ),
    "stochastic ae": Case(
        "ae",
        {
            "widths": (6,),
            "code_activation": "sigmoid",
            "code_noise": "bernoulli",
            "fit": SMALL_BATCHES,
        },
    ),
    "binary ae": Case(
        "ae", {"widths": (8, 2), "loss": "cross_entropy", "fit": SMALL_BATCHES}, toy=binary_toy
    ),
    "dae": Case("dae", {"widths": (32,), "chain_steps": 50, "fit": SMALL_BATCHES}),
    "masking dae": Case(
        "dae",
        {
            "widths": (16,),
            "corruption": "masking",
            "loss": "cross_entropy",
            "chain_steps": 20,
            "fit": SMALL_BATCHES,
        },
        toy=binary_toy,
    ),
    "som": Case("som", {"size_x": 4, "size_y": 4}),
    "online som": Case(
        "som", {"size_x": 3, "size_y": 3, "competition": {"method": "online", "max_steps": 1000}}
    ),
    "gan": Case(
        "gan",
        {
            "latent": 4,
            "hidden": (32, 32),
            "reference_steps": 300,
            "fit": {"epochs": 100, "max_steps": 300},
        },
    ),
    "dcgan": Case(
        "gan",
        {"network": "dcgan", "channels": (8, 8), "fit": {"epochs": 20, "max_steps": 60}},
        toy=patch_toy,
        moments=False,
    ),
}


@dataclass(frozen=True)
class Fitted:
    """A case and its model, fitted to the first 400 items."""

    case: Case
    model: GenerativeBase

    @property
    def unseen(self) -> Tensor:
        return self.case.toy()[0][400:]


@pytest.fixture(scope="module", params=list(CASES))
def fitted(request: pytest.FixtureRequest) -> Fitted:
    case = CASES[request.param]
    model = case.make()
    model.fit(case.toy()[0][:400], generator=torch_generator(1, "fit"))
    return Fitted(case, model)


def need(model: GenerativeBase, what: str) -> None:
    if what not in model.provides:
        pytest.skip(f"{model.kind} does not provide {what}; the refusal is tested below")


def outputs(model: GenerativeBase, items: Tensor) -> dict[str, Tensor]:
    """Return everything the model provides about ``items``."""
    with torch.no_grad():
        made: dict[str, Callable[[], Tensor]] = {
            "sample": lambda: model.sample(len(items), generator=torch_generator(0)),
            "bound": lambda: model.bound(items, generator=torch_generator(0)),
            "energy": lambda: model.energy(items, generator=torch_generator(0)),
            "encode": lambda: model.encode(items),
            "decode": lambda: model.decode(model.encode(items)),
            "reconstruct": lambda: model.reconstruct(items),
        }
        return {what: made[what]() for what in sorted(model.provides)}


def test_every_kind_is_under_the_laws() -> None:
    assert {case.kind for case in CASES.values()} == set(KINDS)
    assert all(name == kind.kind for name, kind in KINDS.items())


def test_follows_the_protocol(fitted: Fitted) -> None:
    model = fitted.model
    assert isinstance(model, GenerativeModel)
    assert type(model) is KINDS[model.kind]
    assert model.event_shape == tuple(fitted.unseen.shape[1:])
    assert model.provides <= CAPABILITIES
    assert ("bound" in model.provides) <= model.is_normalised
    assert model.is_exact <= ("bound" in model.provides)
    assert ("bound" in model.provides) <= ("energy" in model.provides)
    assert ("decode" in model.provides) <= ("encode" in model.provides)
    assert not model.training


def test_answers_are_finite_and_of_the_promised_shape(fitted: Fitted) -> None:
    items = fitted.unseen[:7]
    found = outputs(fitted.model, items)
    assert all(torch.isfinite(value).all() for value in found.values())
    for what in found.keys() & {"sample", "decode", "reconstruct"}:
        assert found[what].shape == items.shape
    for what in found.keys() & {"bound", "energy"}:
        assert found[what].shape == (7,)
    if "encode" in found:
        assert found["encode"].ndim == 2
        assert len(found["encode"]) == 7


def test_same_generator_gives_the_same_sample(fitted: Fitted) -> None:
    need(fitted.model, "sample")
    before = torch.random.get_rng_state()
    first, again, other = (
        fitted.model.sample(50, generator=torch_generator(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first.requires_grad
    assert torch.equal(torch.random.get_rng_state(), before)


def test_bound_stays_below_the_exact_density_and_comes_near(fitted: Fitted) -> None:
    need(fitted.model, "bound")
    with torch.no_grad():
        bound = fitted.model.bound(fitted.unseen, generator=torch_generator(2))
    gap = fitted.case.toy()[1][400:] - bound
    # Gibbs: no model scores the true density's items better than that density, but for chance.
    assert gap.mean() > -2 * gap.std() / len(gap) ** 0.5
    assert gap.mean() < fitted.case.gap


def test_energy_is_lower_for_items_than_for_their_mirror(fitted: Fitted) -> None:
    """The items of every toy are told from those with their axes reversed."""
    need(fitted.model, "energy")
    items = fitted.unseen
    mirrored = items.flatten(1).flip(1).reshape(items.shape)
    with torch.no_grad():
        own, other = (
            fitted.model.energy(x, generator=torch_generator(0)).mean() for x in (items, mirrored)
        )
    assert own < other


def test_energy_is_minus_the_bound(fitted: Fitted) -> None:
    need(fitted.model, "bound")
    found = outputs(fitted.model, fitted.unseen[:5])
    assert torch.equal(found["energy"], -found["bound"])


def test_samples_have_the_moments_of_the_items(fitted: Fitted) -> None:
    need(fitted.model, "sample")
    if not fitted.case.moments:
        pytest.skip("the case says that this kind does not keep the moments")
    items = fitted.case.toy()[0].flatten(1)
    samples = fitted.model.sample(4000, generator=torch_generator(5)).flatten(1)
    spread = items.std(0)
    assert ((samples.mean(0) - items.mean(0)).abs() / spread).max() < 0.25
    assert ((samples.std(0) / spread).log().abs()).max() < 0.25


def test_save_then_load_changes_nothing(fitted: Fitted, tmp_path: Path) -> None:
    fitted.model.save(tmp_path / "model")
    items = fitted.unseen[:7]
    expected = outputs(fitted.model, items)
    for loaded in (type(fitted.model).load(tmp_path / "model"), load_model(tmp_path / "model")):
        assert type(loaded) is type(fitted.model)
        assert loaded.settings == fitted.model.settings
        assert loaded.provides == fitted.model.provides
        found = outputs(loaded, items)
        assert all(torch.equal(found[what], expected[what]) for what in expected)


@pytest.mark.parametrize("what", ["bound", "energy"])
def test_gradient_flows_to_the_items(fitted: Fitted, what: str) -> None:
    need(fitted.model, what)
    items = fitted.unseen[:5].clone().requires_grad_()
    getattr(fitted.model, what)(items, generator=torch_generator(0)).sum().backward()
    assert items.grad is not None
    assert torch.isfinite(items.grad).all()
    assert (items.grad != 0).any(dim=tuple(range(1, items.ndim))).all()


def test_what_a_kind_does_not_provide_is_refused_naming_those_that_do(fitted: Fitted) -> None:
    model = fitted.model
    arguments: dict[str, Any] = {
        "sample": {"n": 2, "generator": torch_generator(0)},
        "decode": {"codes": torch.zeros(2, 1)},
    }
    for what in CAPABILITIES - model.provides:
        asked = arguments.get(what, {"items": fitted.unseen[:2]})
        with pytest.raises(ModelError, match=rf"{model.kind}.*; .*vae.* can"):
            getattr(model, what)(**asked)


def test_wrong_shape_is_refused(fitted: Fitted) -> None:
    for what in fitted.model.provides - {"sample", "decode"}:
        with pytest.raises(ShapeError, match=r"Items must be .*\(4, 3, 5\)"):
            getattr(fitted.model, what)(torch.zeros(4, 3, 5))
        with pytest.raises(MedsegError, match="condition"):
            getattr(fitted.model, what)(fitted.unseen[:2], condition=torch.zeros(2, 17))


def test_codes_of_the_wrong_shape_are_refused(fitted: Fitted) -> None:
    need(fitted.model, "decode")
    with pytest.raises(ShapeError, match=r"Codes .*\(2, 99\)"):
        fitted.model.decode(torch.zeros(2, 99))


@pytest.mark.parametrize("name", list(CASES))
def test_items_that_cannot_be_fitted_are_refused(name: str) -> None:
    case = CASES[name]
    good = case.toy()[0][:100]
    broken = good.clone()
    broken[3].view(-1)[1] = torch.nan
    for items, words in [
        (broken, "99 of 100 are finite"),
        (good[:1], "1 of 1 are finite"),
        (torch.ones_like(good), "all 100 are the same"),
    ]:
        with pytest.raises(ModelError, match=words):
            case.make().fit(items, generator=torch_generator(0))
    with pytest.raises(ShapeError, match="Items must be"):
        case.make().fit(torch.randn(9, 3, 5), generator=torch_generator(0))


@pytest.mark.parametrize("name", list(CASES))
def test_fit_is_a_function_of_the_generator_and_leaves_the_global_one_alone(name: str) -> None:
    case = CASES[name]
    items = case.toy()[0][:40]
    before = torch.random.get_rng_state()
    first, again = case.make(brief=True), case.make(brief=True)
    # Another fit before: what it learned must not show.
    for seed in (2, 1):
        first.fit(items, generator=torch_generator(seed))
    record = again.fit(items, generator=torch_generator(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    states = first.state_dict(), again.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert record.steps >= 0
    assert all(isinstance(line, str) for line in record.warnings)


def test_names_are_refused_with_those_known() -> None:
    with pytest.raises(ConfigError, match=r"vae.*but it is 'oracle'"):
        kind_of("oracle")
    with pytest.raises(ConfigError, match=r"'vae'.*latnt: Unexpected"):
        make_model("vae", (3,), {"latnt": 2})
    with pytest.raises(ShapeError, match=r"its shape is \(3, 0\)"):
        make_model("vae", (3, 0))


def test_folder_without_a_model_or_with_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds none"):
        load_model(tmp_path)
    for kind in itertools.islice(KINDS, 2):
        make_model(kind, (3,)).save(tmp_path)
    if len(KINDS) > 1:
        with pytest.raises(ModelError, match="must hold one"):
            load_model(tmp_path)
