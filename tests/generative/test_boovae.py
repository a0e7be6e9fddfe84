import math
from functools import cache

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medseg.errors import ModelError, ShapeError
from medseg.generative.boovae import BooVae, BooVaeSettings
from medseg.generative.fitting import FitSettings
from medseg.generative.vae import log_normal
from medseg.seeding import torch_generator

FIT = FitSettings(max_steps=400, epochs=400, batch_size=128, learning_rate=1e-2)
SETTINGS = BooVaeSettings(latent=2, hidden=(32, 32), components=(4,), std_floor=0.05, fit=FIT)


def clusters(centres: list[list[float]], n: int, *, seed: int) -> Tensor:
    """Return n points around each centre, deviation 0.3."""
    generator = torch_generator(seed, "clusters")
    places = torch.tensor(centres).repeat_interleave(n, 0)
    return places + 0.3 * torch.randn(len(places), 2, generator=generator)


def old_task(seed: int) -> Tensor:
    return clusters([[-3.0, 0.0], [3.0, 0.0]], 300, seed=seed)


def new_task(seed: int) -> Tensor:
    return clusters([[0.0, 3.0]], 300, seed=seed + 10)


@cache
def before() -> BooVae:
    model = BooVae((2,), SETTINGS)
    model.fit(old_task(0), generator=torch_generator(0))
    return model


@cache
def after() -> BooVae:
    return before().extend(new_task(0), generator=torch_generator(1))[0]


@torch.no_grad()
def nats(model: BooVae, items: Tensor) -> float:
    return float(model.bound(items, generator=torch_generator(9)).mean())


def test_new_items_are_learned_and_old_ones_kept() -> None:
    old, new = old_task(1), new_task(1)
    lost = nats(before(), old) - nats(after(), old)
    # Half of the mixture now stands for the new task: log 2, and what the networks lost.
    assert lost < math.log(2) + 0.6
    assert nats(after(), new) > nats(before(), new) + 3
    # -H of a cluster, and log 2 for half of the mass.
    best = -math.log(2 * math.pi * math.e * 0.3**2) - math.log(2)
    assert nats(after(), new) > best - 0.6

    naive = BooVae((2,), SETTINGS)
    naive.load_state_dict(before().state_dict())
    u = naive.standardiser(new_task(0))
    naive._raise_elbo(u, None, *torch.arange(300).split(270), generator=torch_generator(1))
    assert nats(before(), old) - nats(naive, old) > lost + 3


def test_samples_come_from_both_tasks() -> None:
    drawn = after().sample(2000, generator=torch_generator(3))
    centres = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    distance = torch.cdist(drawn, centres)
    shares = torch.bincount(distance.argmin(1), minlength=3) / 2000
    assert float((distance.amin(1) < 1.2).float().mean()) > 0.85
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.25, 0.5]), atol=0.1, rtol=0)


@pytest.mark.parametrize("made", [before, after])
@torch.no_grad()
def test_density_integrates_to_no_more_than_one(made) -> None:  # type: ignore[no-untyped-def]
    axis = torch.arange(-6, 6, 0.08)
    points = torch.cartesian_prod(axis, axis)
    mass = made().bound(points, generator=torch_generator(0), n_codes=32).exp().sum() * 0.08**2
    assert 0.85 < float(mass) < 1.03


@torch.no_grad()
def test_the_prior_is_a_mixture_of_posteriors_of_its_pseudo_inputs() -> None:
    model = before()
    assert float(model.weight.sum()) == pytest.approx(1, abs=1e-5)
    mean, log_std = model.encoder(model.pseudo, None)
    torch.testing.assert_close(model.part_mean[1:], mean)
    torch.testing.assert_close(model.part_log_std[1:], log_std)
    z = torch.randn(5, 2, generator=torch_generator(0))
    expected = model.weight[0] * log_normal(z, torch.zeros(2), torch.zeros(2)).exp()
    for weight, m, s in zip(model.weight[1:], mean, log_std, strict=True):
        expected = expected + weight * log_normal(z, m, s).exp()
    torch.testing.assert_close(model._log_prior(z).exp(), expected)


def test_a_part_goes_where_the_mixture_lacks_mass() -> None:
    """Most codes lie at one place far from N(0, I): the first part must be grown there."""
    model = BooVae((1,), BooVaeSettings(latent=1, hidden=(), components=(1,), fit=FIT))
    with torch.no_grad():
        layer = next(part for part in model.encoder.net.modules() if isinstance(part, nn.Linear))
        layer.weight.copy_(torch.tensor([[1.0], [0.0]]))
        layer.bias.copy_(torch.tensor([0.0, math.log(0.5)]))
    generator = torch_generator(0)
    u = torch.cat([0.3 * torch.randn(100, 1, generator=generator), torch.full((300, 1), 4.0)])
    u = u[torch.randperm(400, generator=generator)]
    model._grow(1, 0, u, None, generator=generator)
    assert float(model.part_mean[1]) == pytest.approx(4, abs=0.3)
    assert float(model.weight[1]) == pytest.approx(0.75, abs=0.05)


def test_old_parts_keep_their_place_and_share_and_the_old_model_stays() -> None:
    old = before()
    state = {name: value.clone() for name, value in old.state_dict().items()}
    made, record = old.extend(new_task(0), generator=torch_generator(2), components=2)
    assert all(torch.equal(value, state[name]) for name, value in old.state_dict().items())
    assert made.settings.components == (4, 2)
    assert torch.equal(made.part_mean[:5], old.part_mean)
    torch.testing.assert_close(made.weight[:5], old.weight / 2)
    assert float(made.weight[5:].sum()) == pytest.approx(0.5, abs=1e-5)
    assert record.validation_nats is not None


def test_conditions_of_the_old_task_are_remembered() -> None:
    brief = FitSettings(max_steps=30, epochs=30)
    options = BooVaeSettings(latent=1, hidden=(8,), components=(2,), condition_size=2, fit=brief)
    model = BooVae((2,), options)
    told = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(300, 0)
    model.fit(old_task(0), generator=torch_generator(0), condition=told)
    made, _ = model.extend(new_task(0), generator=torch_generator(0), condition=told[:300])
    drawn = made.sample(4, generator=torch_generator(0), condition=told[:4])
    assert drawn.shape == (4, 2)
    with pytest.raises(ShapeError, match="condition"):
        model.extend(new_task(0), generator=torch_generator(0))


def test_pseudo_inputs_have_conditions_that_were_given() -> None:
    brief = FitSettings(max_steps=60, epochs=60)
    options = BooVaeSettings(latent=2, hidden=(8,), components=(4,), condition_size=3, fit=brief)
    model = BooVae((2,), options)
    told = torch.eye(3)[torch.arange(600) % 3]
    model.fit(old_task(0), generator=torch_generator(0), condition=told)
    assert (model.pseudo[:, None, 2:] == torch.eye(3)).all(2).any(1).all()
    # The item itself has moved.
    u = model.standardiser(old_task(0))
    assert float(torch.cdist(model.pseudo[:, :2], u).amin(1).max()) > 1e-3


@pytest.mark.parametrize("components", [(), (0,), (4, -1)])
def test_every_task_has_a_part(components: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="components"):
        BooVaeSettings(latent=2, components=components)


def test_what_cannot_be_extended_is_refused() -> None:
    for components in (0, -2):
        with pytest.raises(ModelError, match="one part"):
            before().extend(new_task(0), generator=torch_generator(0), components=components)
    with pytest.raises(ModelError, match="after its first task"):
        BooVae((2,), SETTINGS).extend(new_task(0), generator=torch_generator(0))
    broken = new_task(0)
    broken[3, 0] = torch.nan
    with pytest.raises(ModelError, match="299 of 300 are finite"):
        before().extend(broken, generator=torch_generator(0))
