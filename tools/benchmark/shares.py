"""Where the time of a training step goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

from lightning_fabric import Fabric
from torch.optim import AdamW

from medseg.data.training_set import Batch
from medseg.training import loop, objective
from medseg.training.ahead import batches_ahead
from tools.benchmark.measure import Clock

#: The parts, in the order of a step; what is left is the loss, clipping and the running average.
PARTS = ("data", "forward", "kl", "backward", "optimiser")


class Shares:
    """Times the parts of every step of a training, from outside the loop.

    The KL is its forward pass; its backward pass is part of "backward".
    """

    def __init__(self) -> None:
        self._now: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._steps: list[dict[str, float]] = []
        self._began: list[float] = []

    def row(self) -> dict[str, Any]:
        """Return the median step, its n, and each part's share; the first step warms up."""
        spent = [end - began for began, end in pairwise(self._began)][1:]
        parts = self._steps[1:]
        shares = {part: sum(step[part] for step in parts) / sum(spent) for part in PARTS}
        shares["rest"] = 1 - sum(shares.values())
        return {"seconds_per_step": statistics.median(spent), "n": len(spent), "shares": shares}

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = Clock.now()
            result = call(*args, **kwargs)
            self._now[part] += Clock.now() - started
            return result

        return run

    def _batches(self, *args: Any, **kwargs: Any) -> Generator[Batch]:
        batches = batches_ahead(*args, **kwargs)
        take = self._timed("data", lambda: next(batches, None))
        try:
            while True:
                self._began.append(Clock.now())
                self._now = dict.fromkeys(PARTS, 0.0)
                self._steps.append(self._now)
                if (batch := take()) is None:
                    self._steps.pop()
                    return
                yield batch
        finally:
            batches.close()

    @contextmanager
    def watching(self, goal: Any) -> Iterator[None]:
        """Time the steps of the trainings inside the block; ``goal`` is their objective."""
        loss_of = goal.loss
        goal.loss = lambda forward, *rest: loss_of(self._timed("forward", forward), *rest)
        try:
            with (
                patch.object(loop, "batches_ahead", self._batches),
                patch.object(objective, "network_kl", self._timed("kl", objective.network_kl)),
                patch.object(Fabric, "backward", self._timed("backward", Fabric.backward)),
                patch.object(AdamW, "step", self._timed("optimiser", AdamW.step)),
            ):
                yield
        finally:
            goal.loss = loss_of
