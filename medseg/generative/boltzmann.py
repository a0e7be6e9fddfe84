"""What the Boltzmann models share: their visible units, samples, completion and log Z."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medseg.errors import ModelError, ShapeError
from medseg.generative.base import GenerativeBase
from medseg.generative.fitting import FitRecord
from medseg.generative.machine import (
    MOST_ENUMERATED,
    ContrastiveSettings,
    Machine,
    annealed_log_partition,
    exact_log_partition,
)
from medseg.generative.model import Conditions, Items, PerItem
from medseg.generative.standardise import Standardisation, Standardiser
from medseg.generative.units import Bernoulli, Gaussian, Units
from medseg.settings import settings

Clamp = Callable[[Tensor], Tensor]
# Items and samples that are compared after a fit, and the nats they may differ by.
_COMPARED = 100
_MOST_GAP = 5.0


@settings
class BoltzmannSettings:
    """Visible units of a Boltzmann model, and how it is fitted and sampled."""

    #: Values of the visible units: real numbers, or 0 and 1, as in masks.
    visible: Literal["gaussian", "bernoulli"] = "gaussian"
    #: What is done to real items first; binary ones stay as they are. After "whiten", an item
    #: cannot be completed.
    standardise: Standardisation = "whiten"
    #: Least deviation of a real unit given the hidden ones, in standardised units, where the items
    #: have rms 1.
    std_floor: float = Field(default=0.05, gt=0)
    #: Gibbs sweeps from noise to a sample or a completion.
    sample_sweeps: int = Field(default=200, ge=2)
    #: How it is fitted.
    contrastive: ContrastiveSettings = ContrastiveSettings()


class BoltzmannBase(GenerativeBase):
    """A model with an energy over binary hidden units, known up to log Z.

    A kind adds its layers: how they are fitted, the energy of an item, and a Markov chain.
    """

    provides = frozenset({"sample", "energy", "encode", "decode", "reconstruct"})
    settings: BoltzmannSettings

    def __init__(self, event_shape: tuple[int, ...], settings: BoltzmannSettings) -> None:
        super().__init__(event_shape, settings)
        self.standardiser = Standardiser(self.size) if settings.visible == "gaussian" else None

    @property
    def top(self) -> Machine:
        """The machine whose log Z is that of the model."""
        raise NotImplementedError

    def _fit_layers(
        self, u: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        """Fit all layers afresh to items in standardised units (m, size)."""
        raise NotImplementedError

    def _energy(self, u: Tensor, condition: Tensor | None) -> Tensor:
        """Return the energy in standardised units, (m,)."""
        raise NotImplementedError

    def _chains(
        self, n: int, *, generator: torch.Generator, condition: Tensor | None, clamp: Clamp | None
    ) -> tuple[Tensor, Tensor]:
        """Return the ends of ``n`` chains and their means, each (n, size), as ``run_chains``."""
        raise NotImplementedError

    def energy(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
    ) -> PerItem:
        """Return -log p in nats up to log Z, (m,): see :meth:`log_partition`."""
        del generator
        with torch.autocast(device_type=items.device.type, enabled=False):
            energy = self._energy(self._standardised(items, condition), condition)
            return energy if self.standardiser is None else energy - self.standardiser.log_det

    def log_partition(self, *, generator: torch.Generator | None = None) -> float:
        """Return log Z in nats, so that ``-energy(x) - log Z`` is log p(x) or a lower bound on it.

        Exact up to 20 hidden units of the layer that is summed over; else, with a generator, an
        estimate by annealed importance sampling, which tends to be low.

        Raises
        ------
        ModelError
            There are too many hidden units, and no generator is given.
        """
        if generator is None or len(self.top.hidden_bias) <= MOST_ENUMERATED:
            return exact_log_partition(self.top)
        return annealed_log_partition(self.top, generator=generator)[0]

    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> Items:
        """Return the ends of ``n`` Gibbs chains from noise, (n, *event_shape)."""
        self.check_condition(n, condition)
        u, _ = self._chains(n, generator=generator, condition=condition, clamp=None)
        return self._original(u)

    @torch.no_grad()
    def complete(
        self,
        items: Items,
        known: Tensor,
        *,
        generator: torch.Generator,
        condition: Conditions | None = None,
        chains: int = 4,
    ) -> Items:
        """Return the items with what is unknown replaced by its mean given what is known.

        Parameters
        ----------
        items : Tensor, shape (m, *event_shape)
            Anything, NaN too, where unknown.
        known : Tensor of bool, shape (m, *event_shape) or event_shape
            True where the items are to be believed.
        generator : torch.Generator
            Draws the chains.
        condition : Tensor, optional
            As for :meth:`sample`.
        chains : int
            Gibbs chains per item; more find more of the ways to complete it.

        Returns
        -------
        Tensor, shape (m, *event_shape)
            Of binary items the probability of a 1.
        """
        known = self._check_known(items, known)
        items = torch.where(known, items, torch.zeros_like(items))
        u = self._standardised(items, condition).repeat_interleave(chains, 0)
        fixed = known.flatten(1).repeat_interleave(chains, 0)
        if condition is not None:
            condition = condition.repeat_interleave(chains, 0)
        _, mean = self._chains(
            len(u),
            generator=generator,
            condition=condition,
            clamp=lambda values: torch.where(fixed, u, values),
        )
        found = self._original(mean.reshape(len(items), chains, -1).mean(1))
        return torch.where(known, items, found)

    def check_fittable(self, items: Tensor, condition: Tensor | None = None) -> None:
        """Refuse also items that binary units cannot hold."""
        super().check_fittable(items, condition)
        low, high = float(items.min()), float(items.max())
        if self.settings.visible == "bernoulli" and not (low >= 0 and high <= 1):
            raise ModelError(
                f"Items of binary units must lie in [0, 1], but they range from {low:.3g} to "
                f"{high:.3g}.",
                hint="Give masks, or set visible to gaussian.",
            )

    def _fit(
        self, items: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        if self.standardiser is not None:
            self.standardiser.fit(items.flatten(1), self.settings.standardise)
        with torch.autocast(device_type=items.device.type, enabled=False):
            u = self._standardised(items, condition)
            record = self._fit_layers(u, generator=generator, condition=condition)
            record.warnings.extend(self._stray(u, generator=generator, condition=condition))
        return record

    @torch.no_grad()
    def _stray(
        self, u: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> list[str]:
        """Return a warning when the model's samples have a far lower energy than the items."""
        condition = None if condition is None else condition[:_COMPARED]
        u = u[:_COMPARED]
        drawn, _ = self._chains(len(u), generator=generator, condition=condition, clamp=None)
        gap = float((self._energy(u, condition) - self._energy(drawn, condition)).mean())
        if gap <= _MOST_GAP + self.size / 4:
            return []
        return [
            f"The samples of this {self.kind} have an energy {gap:.0f} nats below that of the "
            f"items: it prefers places without items. Use pcd, more sweeps, or a smaller learning "
            f"rate."
        ]

    def _units(self) -> Units:
        if self.settings.visible == "bernoulli":
            return Bernoulli(self.size)
        return Gaussian(self.size, std_floor=self.settings.std_floor)

    def _standardised(self, items: Tensor, condition: Tensor | None = None) -> Tensor:
        vectors = self.vectors(items, condition)
        return vectors if self.standardiser is None else self.standardiser(vectors)

    def _original(self, u: Tensor) -> Tensor:
        vectors = u if self.standardiser is None else self.standardiser.inverse(u)
        return vectors.reshape(len(u), *self.event_shape)

    def _check_known(self, items: Tensor, known: Tensor) -> Tensor:
        """Return ``known`` for each item; refuse another shape, and units that mix elements."""
        fits = known.shape in (items.shape, self.event_shape)
        if known.dtype != torch.bool or not fits:
            raise ShapeError(
                f"What is known must be bool and {self.event_shape} or {tuple(items.shape)}, but "
                f"it is {known.dtype} and {tuple(known.shape)}."
            )
        if self.standardiser is not None and self.settings.standardise == "whiten":
            raise ModelError(
                "Items can be completed where each number stands for itself, but this model was "
                "fitted with standardise='whiten'.",
                hint="Fit it with standardise='scale'.",
            )
        return known.expand_as(items)
