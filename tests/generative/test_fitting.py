import itertools

import pytest
import torch
from torch import Tensor, nn

from medseg.generative.fitting import (
    FitSettings,
    fit_by_gradient,
    learning_rate_factor,
    split_items,
)
from medseg.seeding import torch_generator


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.zeros(()))


def test_reaches_the_minimum() -> None:
    point, items = Point(), torch.arange(8.0)
    record = fit_by_gradient(
        point,
        lambda rows, _: (items[rows] - point.at).square().mean(),
        None,
        rows=torch.arange(8),
        settings=FitSettings(batch_size=8, epochs=400, learning_rate=0.1, weight_decay=0),
        generator=torch_generator(0),
    )
    assert float(point.at.detach()) == pytest.approx(3.5, abs=0.02)
    assert record.steps == 400
    assert record.train_nats == pytest.approx(-5.25, abs=0.02)


def test_keeps_the_best_state_and_stops_when_nothing_is_gained() -> None:
    point = Point()

    def validation() -> float:
        return abs(float(point.at.detach()) - 1.0)

    record = fit_by_gradient(
        point,
        lambda rows, _: (point.at - 10.0).square() + 0 * rows.sum(),
        validation,
        rows=torch.arange(4),
        settings=FitSettings(epochs=200, batch_size=4, checks=100, patience=3, learning_rate=0.2),
        generator=torch_generator(0),
    )
    assert float(point.at.detach()) == pytest.approx(1.0, abs=0.5)
    assert record.steps < 100
    assert record.validation_nats == pytest.approx(-validation())
    assert point.at.grad is None


def test_every_item_is_seen_once_per_pass() -> None:
    point, seen = Point(), []

    def loss(rows: Tensor, progress: float) -> Tensor:
        del progress
        seen.extend(rows.tolist())
        return point.at.square()

    fit_by_gradient(
        point,
        loss,
        None,
        rows=torch.arange(100, 112),
        settings=FitSettings(epochs=2, batch_size=4),
        generator=torch_generator(0),
    )
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(100, 112))
    assert seen[:12] != seen[12:]


def test_steps_do_not_grow_beyond_the_limit() -> None:
    point = Point()
    record = fit_by_gradient(
        point,
        lambda rows, _: point.at.square(),
        None,
        rows=torch.arange(10_000),
        settings=FitSettings(epochs=100, batch_size=16, max_steps=7),
        generator=torch_generator(0),
    )
    assert record.steps == 7


def test_rate_warms_up_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 200) for step in range(200)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == 1.0
    assert factors[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


@pytest.mark.parametrize(
    ("n", "fraction", "held"), [(100, 0.1, 10), (5, 0.1, 1), (2, 0.9, 0), (9, 0.0, 0)]
)
def test_split_is_disjoint_and_complete(n: int, fraction: float, held: int) -> None:
    train, kept = split_items(n, fraction=fraction, generator=torch_generator(0))
    assert len(kept) == held
    assert sorted([*train.tolist(), *kept.tolist()]) == list(range(n))
