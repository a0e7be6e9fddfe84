"""One short loop that fits a small model by gradient descent and keeps the best state seen."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.settings import settings


@settings
class FitSettings:
    """How long and how fast a generative model is fitted.

    The cost is ``min(epochs * m / batch_size, max_steps)`` steps whatever the number of items, so
    that a layer with 50,000 kernels takes no longer than one with 5,000.
    """

    #: Passes over the items, at most.
    epochs: int = Field(default=200, ge=1)
    #: Optimiser steps, at most.
    max_steps: int = Field(default=1000, ge=1)
    #: Items per step.
    batch_size: int = Field(default=256, ge=1)
    #: Peak of the learning rate of Adam; it warms up over 5 % of the steps, then falls to 0 as a
    #: cosine.
    learning_rate: float = Field(default=5e-3, gt=0)
    #: Decoupled weight decay.
    weight_decay: float = Field(default=1e-4, ge=0)
    #: Share of the items kept aside to choose the best state; 0 takes the last.
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    #: Checks on the validation items.
    checks: int = Field(default=20, ge=1)
    #: Checks without gain after which the fit stops.
    patience: int = Field(default=6, ge=1)


@dataclass(frozen=True)
class FitRecord:
    """What a fit did.

    Parameters
    ----------
    steps : int
        Optimiser steps taken; 0 for a closed form.
    train_nats : float
        Mean objective over the last steps in nats per item, with its KL weight.
    validation_nats : float, optional
        Mean bound of the held-out items in nats per item; none without such items.
    warnings : list of str
        What a reader must know, in sentences: a collapse, a component without items.
    """

    steps: int
    train_nats: float
    validation_nats: float | None
    warnings: list[str] = field(default_factory=list)

    def shifted(self, nats: float) -> "FitRecord":
        """Return the record with ``nats`` added, such as the change of volume of other units."""
        held = None if self.validation_nats is None else self.validation_nats + nats
        return replace(self, train_nats=self.train_nats + nats, validation_nats=held)


BatchLoss = Callable[[Tensor, float], Tensor]
Validation = Callable[[], float]


def split_items(n: int, *, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return shuffled row numbers to train on (2 or more) and to validate on."""
    order = torch.randperm(n, generator=generator, device=generator.device)
    held = min(math.ceil(n * fraction), max(n - 2, 0))
    return order[held:], order[:held]


def fit_by_gradient(
    model: nn.Module,
    batch_loss: BatchLoss,
    validation: Validation | None,
    *,
    rows: Tensor,
    settings: FitSettings,
    generator: torch.Generator,
) -> FitRecord:
    """Minimise ``batch_loss`` over the parameters of ``model``; leave the best state seen in it.

    Parameters
    ----------
    model : Module
        Its parameters that require a gradient are fitted.
    batch_loss : callable
        From row numbers (b,) and the share of the steps done, in [0, 1], to the loss in nats per
        item.
    validation : callable, optional
        The loss on held-out items in nats per item.
    rows : Tensor, shape (m,), int64
        Numbers of the training items.
    settings : FitSettings
        Steps, rates and patience.
    generator : torch.Generator
        Draws the batches.

    Returns
    -------
    FitRecord
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    # A fused step: with networks this small the optimiser would otherwise cost more than the
    # gradients.
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    batch = min(settings.batch_size, len(rows))
    steps = min(max(settings.epochs * len(rows) // batch, 1), settings.max_steps)
    check_every = max(steps // settings.checks, 1)
    best, best_state, idle = math.inf, None, 0
    order, recent, done = rows[:0], [], 0
    for step in range(steps):
        if len(order) < batch:
            shuffle = torch.randperm(len(rows), generator=generator, device=generator.device)
            order = rows[shuffle.to(rows.device)]
        chosen, order = order[:batch], order[batch:]
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_factor(step, steps)
        loss = batch_loss(chosen, step / steps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimiser.step()
        recent, done = [*recent[-49:], loss.detach()], step + 1
        if validation is None or (done % check_every and done < steps):
            continue
        value = validation()
        if value < best:
            best, idle = value, 0
            best_state = [parameter.detach().clone() for parameter in parameters]
        else:
            idle += 1
        if idle >= settings.patience:
            break
    if best_state is not None:
        with torch.no_grad():
            for parameter, value in zip(parameters, best_state, strict=True):
                parameter.copy_(value)
    optimiser.zero_grad(set_to_none=True)
    train_nats = -float(torch.stack(recent).mean())
    return FitRecord(done, train_nats, -best if best < math.inf else None)


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak rate at ``step``: warm-up over 5 %, then a cosine to 0."""
    warm_up = max(steps // 20, 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))
