import math

import pytest
import torch
from torch import Tensor

from medseg.generative.fitting import FitSettings
from medseg.generative.flow import AutoregressiveStep, Flow, FlowSettings
from medseg.generative.layers import reset
from medseg.generative.pca import PcaSettings, Ppca
from medseg.seeding import torch_generator

QUICK = FitSettings(max_steps=300, batch_size=128, learning_rate=1e-2)


def banana(n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return a normal variable bent along a parabola, and its exact log density in nats."""
    z = torch.randn(n, 2, generator=torch_generator(seed, "banana"))
    items = torch.stack([z[:, 0], 0.5 * z[:, 1] + z[:, 0] ** 2 - 1], dim=1)
    # The bend keeps volumes: only the factor 0.5 counts.
    return items, -0.5 * z.square().sum(1) - math.log(2 * math.pi) - math.log(0.5)


def shaken(event_shape: tuple[int, ...], settings: FlowSettings) -> Flow:
    """Return a flow whose steps are far from the identity, without a fit."""
    flow = Flow(event_shape, settings)
    reset(flow, generator=torch_generator(1))
    return flow.eval()


@pytest.fixture(scope="module")
def bent() -> Flow:
    flow = Flow((2,), FlowSettings(steps=3, hidden=24, fit=QUICK))
    flow.fit(banana(1500, seed=0)[0], generator=torch_generator(0))
    return flow


def test_beats_a_gaussian_on_a_banana_and_comes_near_the_truth(bent: Flow) -> None:
    train, (unseen, exact) = banana(1500, seed=0)[0], banana(2000, seed=1)
    gaussian = Ppca((2,), PcaSettings(latent=2))
    gaussian.fit(train, generator=torch_generator(0))
    with torch.no_grad():
        found, normal = bent.bound(unseen).mean(), gaussian.bound(unseen).mean()
    assert found > normal + 1.0
    assert float(exact.mean() - found) == pytest.approx(0.03, abs=0.03)


def test_density_integrates_to_one(bent: Flow) -> None:
    x, y = torch.linspace(-6, 6, 150), torch.linspace(-8, 30, 500)
    with torch.no_grad():
        mass = bent.bound(torch.cartesian_prod(x, y)).exp().sum() * (x[1] - x[0]) * (y[1] - y[0])
    assert float(mass) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("blocks", [2, 3, 8])
@pytest.mark.parametrize("condition_size", [0, 2])
def test_decoding_undoes_encoding_and_the_nats_are_the_jacobian(
    blocks: int, condition_size: int
) -> None:
    options = FlowSettings(steps=3, hidden=16, blocks=blocks, condition_size=condition_size)
    flow = shaken((2, 4), options).double()
    items = torch.randn(5, 2, 4, generator=torch_generator(0), dtype=torch.float64)
    told = torch.ones(5, condition_size).double() if condition_size else None
    codes = flow.encode(items, condition=told)
    torch.testing.assert_close(flow.decode(codes, condition=told), items)
    one = None if told is None else told[:1]
    jacobian = torch.autograd.functional.jacobian(
        lambda x: flow.encode(x.reshape(1, 2, 4), condition=one)[0], items[0].flatten()
    )
    normal = -0.5 * (codes[0].square().sum() + 8 * math.log(2 * math.pi))
    expected = normal + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(flow.bound(items, condition=told)[0], expected)


@pytest.mark.parametrize("blocks", [2, 6])
@pytest.mark.parametrize("condition_size", [0, 3])
def test_each_block_sees_those_before_and_the_condition(blocks: int, condition_size: int) -> None:
    block = torch.randperm(6, generator=torch_generator(0)) * blocks // 6
    options = FlowSettings(hidden=40, condition_size=condition_size)
    step = AutoregressiveStep(block, options)
    reset(step, generator=torch_generator(0))
    x = torch.randn(1, 6, generator=torch_generator(1))
    told = torch.randn(1, 3, generator=torch_generator(2)) if condition_size else None
    jacobian = torch.autograd.functional.jacobian(lambda y: step(y, told)[0][0], x)[:, 0]
    seen = jacobian != 0
    assert torch.equal(seen, (block < block[:, None]) | torch.eye(6).bool())
    if told is not None:
        by_condition = torch.autograd.functional.jacobian(lambda c: step(x, c)[0][0], told)
        assert (by_condition != 0).all()


def test_start_is_nearly_the_gaussian() -> None:
    items = torch.randn(300, 5, generator=torch_generator(0)) * torch.tensor([1.0, 2, 3, 4, 5])
    flow, gaussian = Flow((5,), FlowSettings()), Ppca((5,), PcaSettings(latent=5))
    gaussian.fit(items, generator=torch_generator(0))
    flow.standardiser.fit(items, "whiten")
    with torch.no_grad():
        gap = flow.bound(items).mean() - gaussian.bound(items).mean()
    assert abs(float(gap)) < 0.2


def test_condition_is_used() -> None:
    generator = torch_generator(0)
    told = torch.randint(0, 2, (400, 1), generator=generator).float()
    items = 2 * told + 0.3 * torch.randn(400, 3, generator=generator)
    flow = Flow((3,), FlowSettings(steps=2, hidden=16, condition_size=1, fit=QUICK))
    flow.fit(items, generator=generator, condition=told)
    with torch.no_grad():
        right, wrong = (flow.bound(items, condition=c).mean() for c in (told, 1 - told))
    assert right > wrong + 3
    drawn = flow.sample(500, generator=generator, condition=torch.ones(500, 1))
    assert float(drawn.mean()) == pytest.approx(2, abs=0.2)


def test_item_far_from_all_others_scores_low_but_finite(bent: Flow) -> None:
    far = torch.full((1, 2), 1e6, requires_grad=True)
    bound = bent.bound(far)
    bound.sum().backward()
    assert torch.isfinite(bound).all()
    assert bound < -100
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()


def test_mixed_precision_does_not_change_the_nats(bent: Flow) -> None:
    items = banana(4, seed=3)[0]
    plain = bent.bound(items)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bent.bound(items), plain)
