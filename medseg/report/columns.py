"""How each measured quantity is named, rounded and judged in tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medseg.metrics.metric import Metric

_DECIMALS = {"1": 3, "nats": 3, "mm": 1, "ml": 1, "%": 0}


def decimals_of(metric: Metric) -> int:
    """Return how many decimals of ``metric`` a reader needs."""
    return _DECIMALS.get(metric.unit, 3)


def unit_of(metric: Metric) -> str:
    """Return the unit of ``metric`` as a heading shows it, "" for a pure number."""
    return "" if metric.unit == "1" else metric.unit


def good_when(metric: Metric) -> str:
    """Return the sign that says which values of ``metric`` are good."""
    return {"higher": "↑", "lower": "↓", "zero": "→0"}[metric.direction]


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """Return ``value`` for a reader; a value that is not there becomes "n/a".

    Examples
    --------
    >>> number(-0.0512, 3), number(0.0512, 3, signed=True), number(float("nan"), 1)
    ('−0.051', '+0.051', 'n/a')
    """
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def best_of(values: Sequence[float], direction: str) -> set[int]:
    """Return the places of the best finite values, ties included; none of fewer than two.

    Examples
    --------
    >>> best_of([0.2, 0.9, 0.9], "higher"), best_of([-3.0, 1.0], "zero"), best_of([1.0], "lower")
    ({1, 2}, {1}, set())
    """
    sign = {"higher": -1.0, "lower": 1.0, "zero": 1.0}[direction]
    costs = [sign * (abs(value) if direction == "zero" else value) for value in values]
    finite = [cost for cost in costs if math.isfinite(cost)]
    if len(finite) < 2:
        return set()
    return {place for place, cost in enumerate(costs) if cost == min(finite)}
