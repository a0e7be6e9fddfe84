"""The training loop, once: for every objective, device, precision and number of processes."""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from pydantic import Field
from torch import Tensor, nn

from medseg.data.training_set import Batch, Batches
from medseg.errors import TrainingError
from medseg.networks.precision import resolve_device, resolve_precision
from medseg.settings import settings
from medseg.training.ahead import batches_ahead
from medseg.training.checkpoint import (
    Checkpoints,
    Rows,
    TrainingState,
    load_module,
    load_optimiser,
    module_tensors,
    optimiser_tensors,
)
from medseg.training.objective import Objective

log = logging.getLogger(__name__)
Validate = Callable[[nn.Module], float]


@settings
class TrainingSettings:
    """How long, how fast and where a network is trained."""

    #: Optimiser steps.
    steps: int = Field(default=1000, ge=1)
    #: Peak learning rate of AdamW.
    learning_rate: float = Field(default=1e-3, gt=0)
    #: Factor on it for a head that was not loaded from a source.
    fresh_head_factor: float = Field(default=5.0, gt=0)
    #: Decoupled weight decay.
    weight_decay: float = Field(default=1e-5, ge=0)
    #: Steps of linear rise before the cosine fall.
    warm_up_steps: int = Field(default=20, ge=0)
    #: Gradients are scaled down to this norm.
    clip_norm: float = Field(default=5.0, gt=0)
    #: Decay of the running average of the weights that is returned; 0 returns the last weights.
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    #: Steps between two validations; 0 for none.
    validate_every: int = Field(default=0, ge=0)
    #: Validations without a better score after which training stops.
    patience: int = Field(default=10, ge=1)
    #: Batches prepared in threads while the network learns; 0 prepares each when it is needed.
    batches_ahead: int = Field(default=2, ge=0)
    #: Steps between two rows of the history.
    log_every: int = Field(default=20, ge=1)
    #: "auto", "cpu", "cuda", ...
    device: str = "auto"
    #: Number format of the network's products.
    precision: Literal["auto", "float32", "bf16"] = "auto"
    #: Devices per node, nodes and Lightning Fabric's name of the strategy that joins them.
    devices: int = Field(default=1, ge=1)
    num_nodes: int = Field(default=1, ge=1)
    strategy: str = "auto"


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves behind.

    Parameters
    ----------
    history : list of dict
        One row every few steps.
    steps : int
        Steps done.
    best_score : float or None
        Best validation score, where there was validation: the weights are those of that step.
    """

    history: Rows
    steps: int
    best_score: float | None


def learning_rate_factor(step: int, *, steps: int, warm_up_steps: int) -> float:
    """Return the share of the peak learning rate at ``step``: linear warm-up, then half a cosine.

    Examples
    --------
    >>> [round(learning_rate_factor(s, steps=10, warm_up_steps=2), 2) for s in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warm_up_steps:
        return (step + 1) / warm_up_steps
    done = (step - warm_up_steps) / max(1, steps - warm_up_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(
    network: nn.Module,
    objective: Objective,
    sampler: Batches,
    *,
    settings: TrainingSettings,
    fresh: tuple[str, ...] = (),
    checkpoints: Checkpoints | None = None,
    validate: Validate | None = None,
) -> TrainingResult:
    """Train ``network`` in place and return how it went.

    Parameters
    ----------
    network : Module
        Parameters that need no gradient are left as they are.
    objective : Objective
    sampler : Batches
        Batch ``i`` depends on ``i`` alone, which makes the training resumable.
    settings : TrainingSettings
    fresh : tuple of str
        Prefixes of parameter names that learn at ``fresh_head_factor`` times the rate.
    checkpoints : Checkpoints, optional
        Where the state is kept; a resumed training ends with the very same weights.
    validate : callable, optional
        Returns a score of the network, higher is better, on cases that are not trained on.

    Raises
    ------
    TrainingError
        The loss, its gradient or a validation score is no longer finite.
    """
    loop = _Loop(network, objective, settings, fresh)
    if checkpoints is not None:
        loop.restore(checkpoints)
    with closing(loop.batches(sampler)) as batches:
        _run(loop, batches, checkpoints=checkpoints, validate=validate)
    loop.finish()
    state = loop.state
    best = state.best_score if state.best_step >= 0 else None
    return TrainingResult(history=state.history, steps=state.step, best_score=best)


def _run(
    loop: "_Loop",
    batches: Iterator[Batch],
    *,
    checkpoints: Checkpoints | None,
    validate: Validate | None,
) -> None:
    settings, state = loop.settings, loop.state
    for batch in batches:
        loop.advance(batch)
        step = state.step
        if step % settings.log_every == 0 or step == settings.steps:
            loop.record()
        if (
            validate is not None
            and settings.validate_every
            and (step % settings.validate_every == 0 or step == settings.steps)
        ):
            loop.validate(validate)
            if step - state.best_step >= settings.patience * settings.validate_every:
                log.info("no better validation score since step %d: stopped", state.best_step)
                break
        if checkpoints is not None and step % checkpoints.every_steps == 0:
            loop.save(checkpoints)


class _Loop:
    """The parts that one step needs; all that changes is in ``state`` and in tensors."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        settings: TrainingSettings,
        fresh: tuple[str, ...],
    ) -> None:
        self.settings, self.objective, self.network = settings, objective, network
        device = resolve_device(settings.device)
        reduced = resolve_precision(settings.precision, device) == torch.bfloat16
        self.fabric = Fabric(
            accelerator=device.type,
            devices=[device.index] if device.index is not None else settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision="bf16-mixed" if reduced else "32-true",
        )
        self.fabric.launch()
        groups = parameter_groups(network, objective.extra, settings=settings, fresh=fresh)
        plain = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        wrapped: Any = self.fabric.setup(network, plain)
        self.wrapped, self.optimiser = wrapped
        self.extra: list[nn.Parameter] = []
        if objective.extra is not None:
            objective.extra.to(self.fabric.device)
            self.extra = [p for p in objective.extra.parameters() if p.requires_grad]
        self.plain_optimiser = plain
        self.peaks = [group["lr"] for group in plain.param_groups]
        self.ema = {name: value.detach().clone() for name, value in self._tracked().items()}
        self.best: dict[str, Tensor] = {}
        self.state = TrainingState()
        self.terms: dict[str, float] = {}
        self.started = time.perf_counter()

    def _tracked(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def batches(self, sampler: Batches) -> Generator[Batch]:
        """Return this process's share of the batches of the steps that are left."""
        count, mine = self.fabric.world_size, self.fabric.global_rank
        numbers = range(self.state.step * count + mine, self.settings.steps * count, count)
        return batches_ahead(sampler, numbers, ahead=self.settings.batches_ahead)

    def advance(self, batch: Batch) -> None:
        """Do one optimiser step."""
        step, fabric = self.state.step, self.fabric
        factor = learning_rate_factor(
            step, steps=self.settings.steps, warm_up_steps=self.settings.warm_up_steps
        )
        for group, peak in zip(self.plain_optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.wrapped.train()
        loss, terms = self.objective.loss(self.wrapped, batch.to(fabric.device), step)
        value = float(loss.detach())
        _check_finite("loss", value, step=step, terms=terms)
        self.optimiser.zero_grad()
        fabric.backward(loss)
        norm = fabric.clip_gradients(
            self.wrapped,
            self.optimiser,
            max_norm=self.settings.clip_norm,
            error_if_nonfinite=False,
        )
        if norm is not None:
            _check_finite("norm of its gradient", float(norm), step=step, terms=terms)
        if self.extra:
            # What an objective trains along has its own scale, so its gradient is clipped apart.
            torch.nn.utils.clip_grad_norm_(self.extra, self.settings.clip_norm)
        self.optimiser.step()
        self._average(step)
        self.terms = {"loss": value, "learning_rate": self.peaks[0] * factor, **terms}
        self.state.step = step + 1

    def _average(self, step: int) -> None:
        # The decay grows with the steps, so that a short training does not average its start.
        decay = min(self.settings.ema_decay, (1 + step) / (10 + step))
        if self.settings.ema_decay == 0:
            return
        now = self._tracked()
        torch._foreach_lerp_(
            list(self.ema.values()), [now[name].detach() for name in self.ema], 1 - decay
        )

    def record(self) -> None:
        """Add a row to the history."""
        seconds = time.perf_counter() - self.started
        row = {"step": float(self.state.step), **self.terms, "seconds": seconds}
        self.state.history.append(row)
        shown = " ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
        log.info("step %d/%d %s", self.state.step, self.settings.steps, shown)

    def validate(self, score_of: Validate) -> None:
        """Score the averaged weights, and keep them when they are the best so far."""
        self.network.eval()
        with _swapped(self._tracked(), self._averaged()):
            score = float(score_of(self.network))
            _check_finite("validation score", score, step=self.state.step, terms=self.terms)
            if score > self.state.best_score:
                self.state.best_score, self.state.best_step = score, self.state.step
                self.best = {k: v.detach().clone() for k, v in self._tracked().items()}
        if not self.state.history or self.state.history[-1]["step"] != self.state.step:
            self.record()
        self.state.history[-1]["validation_dsc"] = score

    def _averaged(self) -> dict[str, Tensor]:
        return self.ema if self.settings.ema_decay > 0 else self._tracked()

    def save(self, checkpoints: Checkpoints) -> None:
        """Write the state; with several processes the first one does."""
        if self.fabric.global_rank == 0:
            tensors = {
                **module_tensors("network", self.network),
                **module_tensors("extra", self.objective.extra),
                **optimiser_tensors(self.plain_optimiser),
                **{f"ema.{name}": value for name, value in self.ema.items()},
                **{f"best.{name}": value for name, value in self.best.items()},
            }
            checkpoints.save(self.state, tensors)
        self.fabric.barrier()

    def restore(self, checkpoints: Checkpoints) -> None:
        """Go on from the saved state, where there is one."""
        saved = checkpoints.load()
        if saved is None:
            # Leftovers of a training that is not to be resumed would be in this one's way.
            if self.fabric.global_rank == 0:
                checkpoints.clear()
            return
        self.state, tensors = saved
        load_module("network", self.network, tensors)
        load_module("extra", self.objective.extra, tensors)
        load_optimiser(self.plain_optimiser, tensors)
        for name, value in self.ema.items():
            value.copy_(tensors[f"ema.{name}"])
        self.best = {
            name: tensors[f"best.{name}"].to(self.fabric.device)
            for name in self._tracked()
            if f"best.{name}" in tensors
        }
        if self.state.history:
            self.started -= self.state.history[-1]["seconds"]
        log.info("resumed at step %d from %s", self.state.step, checkpoints.folder)

    def finish(self) -> None:
        """Leave the best, or else the averaged weights in the network."""
        final = self.best or self._averaged()
        with torch.no_grad():
            for name, value in self._tracked().items():
                value.copy_(final[name])
        self.network.eval()


def _check_finite(name: str, value: float, *, step: int, terms: dict[str, float]) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"The {name} must be a number, but at step {step} it is {value} ({terms}).",
            hint="Lower learning_rate, or raise warm_up_steps.",
        )


class _swapped:  # noqa: N801
    """Put other values into parameters for the length of a block."""

    def __init__(self, parameters: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        self._parameters, self._values = parameters, values
        self._kept = {name: value.detach().clone() for name, value in parameters.items()}

    def __enter__(self) -> None:
        self._put(self._values)

    def __exit__(self, *_: object) -> None:
        self._put(self._kept)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])


def parameter_groups(
    network: nn.Module,
    extra: nn.Module | None,
    *,
    settings: TrainingSettings,
    fresh: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Return the optimiser's groups: body, fresh parts at a higher rate, log deviations, extras.

    Weight decay is for weights; on a ``log_std`` it would pull the deviation towards 1.
    """
    rate = settings.learning_rate
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    new = [p for name, p in named if name.startswith(fresh)] if fresh else []
    new_ids = {id(p) for p in new}
    deviations = [p for name, p in named if name.endswith("log_std") and id(p) not in new_ids]
    aside = new_ids | {id(p) for p in deviations}
    body = [p for _, p in named if id(p) not in aside]
    others = [] if extra is None else [p for p in extra.parameters() if p.requires_grad]
    groups = [
        {"params": body, "lr": rate, "weight_decay": settings.weight_decay},
        {
            "params": new,
            "lr": rate * settings.fresh_head_factor,
            "weight_decay": settings.weight_decay,
        },
        {"params": [*deviations, *others], "lr": rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
