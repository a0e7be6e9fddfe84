import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy.stats import wasserstein_distance
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from medseg.errors import ModelError, ShapeError
from medseg.generative.coverage import Coverage, measure_coverage
from medseg.generative.fitting import FitRecord
from medseg.generative.gan import AdversarialFitSettings, Gan, GanSettings
from medseg.seeding import torch_generator

MODES = 2 * torch.tensor(
    [[math.cos(2 * math.pi * k / 8), math.sin(2 * math.pi * k / 8)] for k in range(8)]
)


#: For fits of a few hundred steps: larger steps, and a mean over fewer of them.
BRISK = {"learning_rate": 5e-3, "gradient_penalty": 0.03, "averaging": 0.98}


def ring_of_modes(n: int, seed: int = 0) -> Tensor:
    generator = torch_generator(seed, "modes")
    chosen = MODES[torch.randint(0, 8, (n,), generator=generator)]
    return chosen + 0.15 * torch.randn(n, 2, generator=generator)


def two_humps(n: int) -> Tensor:
    generator = torch_generator(0, "humps")
    side = (torch.rand(n, 1, generator=generator) < 0.3).float()
    return 4 * side - 2 + 0.5 * torch.randn(n, 1, generator=generator)


def blobs(n: int, lengths: tuple[int, ...]) -> Tensor:
    """Patches with one bright blob at a random place, (n, 1, *lengths), from 0 to 1."""
    generator = torch_generator(0, "blobs")
    axes = torch.stack(torch.meshgrid(*(torch.arange(k) for k in lengths), indexing="ij"), -1)
    centres = torch.tensor(lengths) * (
        0.25 + 0.5 * torch.rand(n, len(lengths), generator=generator)
    )
    away = (axes - centres.reshape(n, *[1] * len(lengths), -1)).square().sum(-1)
    return (-away / 8).exp()[:, None]


def gan(items: Tensor, *, seed: int = 1, condition: Tensor | None = None, **chosen: Any) -> Gan:
    fit = AdversarialFitSettings(**chosen.pop("fit", {}))
    model = Gan(tuple(items.shape[1:]), GanSettings(**chosen, fit=fit))
    model.fit(items, generator=torch_generator(seed), condition=condition)
    return model


@pytest.fixture(scope="module")
def on_modes() -> Gan:
    return gan(
        ring_of_modes(2000),
        latent=4,
        reference="samples",
        fit={**BRISK, "max_steps": 500},
    )


def test_all_modes_are_found(on_modes: Gan) -> None:
    samples = on_modes.sample(1000, generator=torch_generator(0))
    distance, mode = torch.cdist(samples, MODES).min(1)
    counts = torch.bincount(mode[distance < 0.5], minlength=8)
    assert int((counts > 30).sum()) == 8
    assert float((distance < 0.5).float().mean()) > 0.6
    assert on_modes.coverage is not None
    assert on_modes.coverage.coverage > 0.6
    assert not on_modes.coverage.collapsed


def test_discriminator_ends_undecided(on_modes: Gan) -> None:
    items, samples = ring_of_modes(500, seed=7), on_modes.sample(500, generator=torch_generator(3))
    with torch.no_grad():
        believed = [float(on_modes.log_ratio(x).sigmoid().mean()) for x in (items, samples)]
    assert believed == pytest.approx([0.5, 0.5], abs=0.1)


@pytest.fixture(scope="module")
def on_humps() -> tuple[Gan, FitRecord]:
    fit = AdversarialFitSettings(**BRISK, max_steps=400)  # type: ignore[arg-type]
    model = Gan((1,), GanSettings(hidden=(32, 32), reference_steps=400, fit=fit))
    return model, model.fit(two_humps(1500), generator=torch_generator(1))


def test_value_of_the_game_is_that_of_a_draw(on_humps: tuple[Gan, FitRecord]) -> None:
    model, record = on_humps
    items = two_humps(1500)
    assert record.train_nats == pytest.approx(-math.log(4), abs=0.1)
    assert record.validation_nats == pytest.approx(-math.log(4), abs=0.15)
    samples = model.sample(1500, generator=torch_generator(0))
    away = wasserstein_distance(samples.flatten().numpy(), items.flatten().numpy())
    assert away < 0.3 * float(items.std())
    assert float((samples > 0).float().mean()) == pytest.approx(0.3, abs=0.12)


def test_energy_is_near_minus_the_log_density(on_humps: tuple[Gan, FitRecord]) -> None:
    """The samples' density and the ratio of items to samples make up that of the items."""
    model, _ = on_humps
    items = two_humps(1500)
    humps = MixtureSameFamily(
        Categorical(torch.tensor([0.7, 0.3])), Normal(torch.tensor([-2.0, 2.0]), 0.5)
    )
    with torch.no_grad():
        gap = model.energy(items) + humps.log_prob(items[:, 0])
        line = torch.linspace(-12, 12, 2401)
        mass = (-model.energy(line[:, None])).exp().sum() * 0.01
    # A Gaussian is 0.7 nats away.
    assert 0 < float(gap.mean()) < 0.25
    assert float(gap.std()) < 0.5
    assert float(mass) == pytest.approx(1, abs=0.1)


def test_discriminator_learns_the_known_ratio_of_two_gaussians() -> None:
    """With samples from N(0, 1) and items from N(1, 1), ``log D/(1-D) = x - 1/2``."""
    settings = GanSettings(
        latent=1, hidden=(), standardise="none", fit=AdversarialFitSettings(gradient_penalty=0)
    )
    model = Gan((1,), settings)
    layer = model.generator.net[0]  # type: ignore[union-attr]
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.bias.zero_()
    generator = torch_generator(0)
    items = 1 + torch.randn(20_000, 1, generator=generator)
    optimiser = torch.optim.Adam(model.discriminator.parameters(), 0.03)
    for _ in range(150):
        model._step(optimiser, items, None, generator, own=True)
    x = torch.linspace(-2, 3, 11)[:, None]
    torch.testing.assert_close(model.log_ratio(x), x[:, 0] - 0.5, rtol=0, atol=0.15)
    assert float(layer.weight.detach()) == 1


def test_generator_learns_while_the_discriminator_wins() -> None:
    """``-log D(G(z))`` has slope 1 in the logit where ``log(1 - D(G(z)))`` has none."""
    model = Gan((2,), GanSettings())
    with torch.no_grad():
        for parameter in model.discriminator.parameters():
            parameter.mul_(3)
        last = list(model.discriminator.parameters())[-1]
        last.fill_(-30)  # Every item is held for made.
    before = [p.clone() for p in model.generator.parameters()]
    optimiser = torch.optim.SGD(model.generator.parameters(), 1.0)
    model._step(optimiser, torch.zeros(64, 2), None, torch_generator(0), own=False)
    moved = [
        float((p - b).detach().abs().max())
        for p, b in zip(model.generator.parameters(), before, strict=True)
    ]
    assert min(moved) > 1e-3


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_coverage_of_samples_from_the_same_distribution(neighbours: int) -> None:
    items, samples = (torch.randn(1500, 3, generator=torch_generator(seed)) for seed in (0, 1))
    found = measure_coverage(items, samples, neighbours=neighbours)
    assert found.coverage == pytest.approx(1 - 0.5**neighbours, abs=0.04)
    assert found.spread == pytest.approx(1, abs=0.15)
    assert not found.collapsed
    assert not found.missed


def test_coverage_tells_collapse_from_failure() -> None:
    items = ring_of_modes(1000)
    two_modes = ring_of_modes(1000, seed=1)
    two_modes = two_modes[torch.cdist(two_modes, MODES[:2]).min(1).values < 0.6]
    found = measure_coverage(items, two_modes)
    assert found.coverage == pytest.approx(0.25, abs=0.06)
    assert found.fidelity > 0.9
    assert found.collapsed
    point = measure_coverage(items, torch.full((1000, 2), 9.0))
    assert point.collapsed
    assert point.spread == pytest.approx(0, abs=1e-9)
    elsewhere = measure_coverage(items, 9 + torch.randn(1000, 2, generator=torch_generator(0)))
    assert elsewhere.missed
    assert not elsewhere.collapsed
    with pytest.raises(ModelError, match="1 to 3 neighbours"):
        measure_coverage(items[:4], items, neighbours=4)


def test_collapse_is_reported(on_modes: Gan, caplog: pytest.LogCaptureFixture) -> None:
    items = ring_of_modes(400)
    model = Gan((2,), on_modes.settings)
    model.load_state_dict(on_modes.state_dict())
    *_, weight, bias = model.generator.parameters()
    with torch.no_grad():
        weight.mul_(0.02)
        bias.copy_(model.standardiser(MODES[:1])[0])
    u = model.standardiser(items)
    (warning,) = model._measure(u, torch.arange(400), None, torch_generator(0))
    assert "collapsed: its samples cover" in warning
    assert warning in caplog.text
    assert model.coverage is not None
    assert model.coverage.collapsed


def test_fit_that_is_too_short_warns() -> None:
    model = Gan((2,), GanSettings(reference_steps=2, fit=AdversarialFitSettings(max_steps=2)))
    record = model.fit(ring_of_modes(400), generator=torch_generator(0))
    assert len(record.warnings) == 1
    assert "97% would be perfect" in record.warnings[0]


def test_coverage_is_stored(on_modes: Gan, tmp_path: Path) -> None:
    on_modes.save(tmp_path)
    assert Gan.load(tmp_path).coverage == on_modes.coverage
    assert Gan((2,), GanSettings()).coverage is None
    assert isinstance(on_modes.coverage, Coverage)


def test_dcgan_makes_patches() -> None:
    items = 5 + 3 * blobs(600, (8, 8))
    model = gan(
        items, network="dcgan", channels=(8, 16), latent=4, fit={"max_steps": 150, "batch_size": 32}
    )
    samples = model.sample(300, generator=torch_generator(0))
    assert samples.shape == (300, 1, 8, 8)
    assert samples.min() >= items.min() - 1e-4
    assert samples.max() <= items.max() + 1e-4
    # Bright in the middle, dark at the rim, and not always at the same place.
    mean, expected = samples.mean(0).flatten(), items.mean(0).flatten()
    assert float(torch.corrcoef(torch.stack([mean, expected]))[0, 1]) > 0.9
    peak = samples.flatten(1).argmax(1)
    assert len(peak.unique()) > 8
    assert model.coverage is not None
    assert model.coverage.spread > 0.4


@pytest.mark.parametrize("event", [(1, 9, 7), (2, 4, 6, 5), (3, 11)])
def test_dcgan_takes_any_lengths_and_judges_items_alone(event: tuple[int, ...]) -> None:
    model = Gan(event, GanSettings(network="dcgan", channels=(4, 4))).eval()
    codes = torch.randn(6, 8, generator=torch_generator(0))
    with torch.no_grad():
        made = model.generate(codes)
        assert made.shape == (6, *event)
        torch.testing.assert_close(model.generate(codes[:2]), made[:2])
        torch.testing.assert_close(model.energy(made[:2]), model.energy(made)[:2])


def test_condition_is_used() -> None:
    told = torch.randint(0, 2, (800, 1), generator=torch_generator(0)).float()
    items = 4 * told - 2 + 0.3 * torch.randn(800, 2, generator=torch_generator(1))
    model = gan(
        items,
        condition=told,
        condition_size=1,
        latent=2,
        hidden=(32, 32),
        reference_steps=2,
        fit={**BRISK, "max_steps": 250},
    )
    for value in (0.0, 1.0):
        drawn = model.sample(
            200, generator=torch_generator(0), condition=torch.full((200, 1), value)
        )
        assert float(drawn.mean()) == pytest.approx(4 * value - 2, abs=0.5)
    with pytest.raises(ShapeError, match=r"\(3, 1\), but it is \(3, 0\)"):
        model.sample(3, generator=torch_generator(0))


def test_mask_condition_puts_the_lesion_where_the_mask_is() -> None:
    masks = (blobs(400, (8, 8)) > 0.5).float()
    noise = 0.1 * torch.randn(masks.shape, generator=torch_generator(0))
    model = gan(
        2 * masks + noise,
        condition=masks.flatten(1),
        condition_maps=1,
        network="dcgan",
        channels=(8, 8),
        fit={"max_steps": 150, "batch_size": 32},
    )
    drawn = model.sample(400, generator=torch_generator(1), condition=masks.flatten(1))
    inside, outside = drawn[masks > 0].mean(), drawn[masks == 0].mean()
    assert float(inside - outside) > 0.7


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"lengths of 4 or more, but they are \(3, 8\)"):
        Gan((1, 3, 8), GanSettings(network="dcgan"))
    with pytest.raises(ShapeError, match=r"\(c, \*s\).*given \(27,\)"):
        Gan((27,), GanSettings(network="dcgan"))
    with pytest.raises(ValidationError, match="need the network 'dcgan'"):
        GanSettings(condition_maps=1)
    with pytest.raises(ModelError, match=r"no normalised density.*; .*vae.* can"):
        Gan((2,), GanSettings()).bound(torch.zeros(1, 2))
    with pytest.raises(ShapeError, match=r"\(m, 8\), but they are \(2, 3\)"):
        Gan((2,), GanSettings()).generate(torch.zeros(2, 3))
