"""The promise every generative model keeps; ``base.py`` holds what they share."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from medseg.generative.fitting import FitRecord

Items = Float[Tensor, "m *event"]
Conditions = Float[Tensor, "m c"]
PerItem = Float[Tensor, " m"]
Codes = Float[Tensor, "m k"]


@runtime_checkable
class GenerativeModel(Protocol):
    """A distribution over tensors of one shape.

    Items are (m, *event_shape) float32. A model may depend on a condition, (m, c) float32, known
    for each item; a model without one is given ``None``. All log densities are in nats per item, in
    the units the items came in: whatever a model does to its input inside, it accounts for the
    change of volume.

    Attributes
    ----------
    event_shape : tuple of int
        Shape of one item.
    provides : frozenset of str
        Which of the methods below it has; the others raise
        :class:`~medseg.errors.ModelError` and name the kinds that have them.
    """

    event_shape: tuple[int, ...]
    provides: frozenset[str]

    def fit(
        self, items: Items, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> FitRecord:
        """Fit to ``items`` afresh; the same generator state gives the same model."""
        ...

    def sample(
        self, n: int, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> Items:
        """Return ``n`` items drawn from the model, (n, *event_shape)."""
        ...

    def bound(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
    ) -> PerItem:
        """Return a lower bound (if random, in expectation) on log p in nats, (m,)."""
        ...

    def energy(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
    ) -> PerItem:
        """Return -log p in nats up to a constant, (m,); minus the bound where there is one."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model as safetensors and JSON."""
        ...

    @classmethod
    def load(cls, folder: Path) -> GenerativeModel:
        """Return the model written by :meth:`save`."""
        ...
