"""The deep belief network: restricted Boltzmann machines stacked greedily, with label units."""

import functools
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.errors import ModelError, ShapeError
from medseg.generative.boltzmann import BoltzmannBase, BoltzmannSettings, Clamp
from medseg.generative.fitting import FitRecord
from medseg.generative.machine import Machine, fit_contrastive, run_chains
from medseg.generative.model import Codes, Conditions, Items
from medseg.generative.units import Bernoulli, Joined, Label, draw_bernoulli, entropy
from medseg.settings import settings


@settings
class DbnSettings(BoltzmannSettings):
    """Sizes of a deep belief network, and how it is fitted."""

    #: Units of the hidden layers, from the items up.
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(64, 64), min_length=1)
    #: Label units beside the layer below the top, or 0; the condition is then the class, one-hot.
    classes: int = Field(default=0, ge=0)


class Dbn(BoltzmannBase):
    """``p(v) = sum_h p(v | h1) p(h1 | h2) ... p(h_{L-1})``, the last by a machine with h_L.

    Each layer is fitted to draws of the one below, which stays as it is. With ``classes``, label
    units stand beside the layer below the top, and the condition of an item is its class as a row
    with one 1; without a condition the label is summed over.

    The energy bounds ``-log p(v) - log Z`` from above: hidden layers are inferred by one pass
    upward, and where the expectation of a layer's log-partition has no closed form, it is bounded
    by its largest curvature. It is exact with one hidden layer. The code of an item is the mean of
    the top layer, in the same pass.

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one item.
    settings : DbnSettings
        Units and fit.

    References
    ----------
    Hinton, Osindero and Teh (2006), A fast learning algorithm for deep belief nets, sections 4-6.
    Boehning (1992), Multinomial logistic regression algorithm, section 2 (the curvature).
    """

    kind = "dbn"
    settings_type = DbnSettings
    settings: DbnSettings

    def __init__(self, event_shape: tuple[int, ...], settings: DbnSettings) -> None:
        super().__init__(event_shape, settings)
        machines, below = [], self._units()
        for hidden in settings.hidden[:-1]:
            machines.append(Machine(below, hidden))
            below = Bernoulli(hidden)
        label = settings.classes
        units = Joined(below, Label(label)) if label else below
        self.machines = nn.ModuleList([*machines, Machine(units, settings.hidden[-1])])

    @property
    def condition_size(self) -> int:
        """One number for each class."""
        return self.settings.classes

    @property
    def top(self) -> Machine:
        """The uppermost machine, with the label units if any."""
        return self._layers()[-1]

    def check_condition(self, n: int, condition: Tensor | None) -> None:
        """Refuse a condition that is not one class a row; none stands for unknown classes."""
        if condition is None:
            return
        super().check_condition(n, condition)
        if bool((condition < 0).any()) or not torch.allclose(
            condition.sum(1), condition.new_ones(n), atol=1e-3
        ):
            raise ShapeError(
                f"Each row of a condition must be one class of {self.settings.classes}, one-hot, "
                f"but rows sum to {float(condition.sum(1).min()):.3g} to "
                f"{float(condition.sum(1).max()):.3g}."
            )

    def check_fittable(self, items: Tensor, condition: Tensor | None = None) -> None:
        """Refuse also label units without labels."""
        super().check_fittable(items, condition)
        if self.settings.classes and condition is None:
            raise ModelError(
                f"A fit of {self.settings.classes} label units needs the class of each item, but "
                f"no condition is given.",
                hint="Give one-hot classes as the condition, or set classes to 0.",
            )

    def encode(self, items: Items, *, condition: Conditions | None = None) -> Codes:
        """Return the means of the top layer, (m, hidden[-1])."""
        values = self._means_up(self._standardised(items, condition))
        if self.settings.classes:
            label = self._label_means(values) if condition is None else condition
            values = torch.cat([values, label], 1)
        return self.top.hidden_mean(values)

    def decode(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return the means of all layers on the way down, (m, *event_shape)."""
        self.check_codes(codes, self.settings.hidden[-1])
        self.check_condition(len(codes), condition)
        values = self.top.visible_mean(codes)[:, : self._below]
        for machine in reversed(self._layers()[:-1]):
            values = machine.visible_mean(values)
        return self._original(values)

    def classify(self, items: Items) -> Tensor:
        """Return the probability of each class, (m, classes), by the free energy of each label.

        Raises
        ------
        ModelError
            The network has no label units.
        """
        if not self.settings.classes:
            raise ModelError(
                "A deep belief network classifies by its label units, but it has none.",
                hint="Fit it with classes above 0, or fine-tune a DbnClassifier.",
            )
        return self._label_means(self._means_up(self._standardised(items)))

    @torch.no_grad()
    def upward_layers(self) -> list[tuple[Tensor, Tensor]]:
        """Return weight (inputs, outputs) and bias (outputs,) of each layer's log odds upward.

        Label units, if any, are taken at the shares of the classes.
        """
        layers = []
        for machine in self._layers():
            none = machine.weight.new_zeros(1, machine.units.size)
            width = machine.units.size
            if machine is self.top and self.settings.classes:
                width = self._below
                none[:, width:] = machine.units.mean(none)[:, width:]
            # The log odds are affine in the values, so they are known by these.
            bias = machine.hidden_input(none)
            ones = torch.eye(width, machine.units.size, device=none.device) + none
            layers.append((machine.hidden_input(ones) - bias, bias[0]))
        return layers

    def _fit_layers(
        self, u: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        steps, record = 0, None
        for depth, machine in enumerate(self._layers()):

            def positive(rows: Tensor, depth: int = depth) -> Tensor:
                values = self._draw_up(u[rows], depth, generator=generator)
                if condition is None or depth < len(self.machines) - 1:
                    return values
                return torch.cat([values, condition[rows]], 1)

            with torch.no_grad():
                machine.reset(positive(torch.arange(len(u))), generator=generator)
            record = fit_contrastive(
                machine,
                positive,
                items=len(u),
                settings=self.settings.contrastive,
                generator=generator,
            )
            steps += record.steps
        return FitRecord(steps, record.train_nats if record else 0.0, None)

    def _energy(self, u: Tensor, condition: Tensor | None) -> Tensor:
        values, energy = u, u.new_zeros(len(u))
        for machine in self._layers()[:-1]:
            log_odds = machine.hidden_input(values)
            means = torch.sigmoid(log_odds)
            spread = (means * (1 - means)) @ machine.weight.square().T
            inputs = machine.visible_input(means)
            energy = (
                energy
                + machine.units.bias_energy(values)
                - (machine.units.field(values) * inputs).sum(1)
                + machine.units.log_integral(inputs)
                + 0.5 * spread @ machine.units.curvature()
                - entropy(log_odds)
            )
            values = means
        if not self.settings.classes:
            return energy + self.top.free_energy(values)
        if condition is None:
            return energy - (-self._label_energies(values)).logsumexp(1)
        return energy + self.top.free_energy(torch.cat([values, condition], 1))

    def _chains(
        self, n: int, *, generator: torch.Generator, condition: Tensor | None, clamp: Clamp | None
    ) -> tuple[Tensor, Tensor]:
        """Run the top machine, then once down; with known items, up and down in every sweep."""
        classes = self.settings.classes

        def clamp_label(values: Tensor) -> Tensor:
            known = values[:, -classes:] if condition is None else condition
            return torch.cat([values[:, :-classes], known], 1) if classes else values

        def clamp_all(values: Tensor) -> Tensor:
            known = values[:, : self.size] if clamp is None else clamp(values[:, : self.size])
            return clamp_label(torch.cat([known, values[:, self.size :]], 1))

        def sweep(values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            below = self._draw_up(values[:, : self.size], generator=generator)
            below = torch.cat([below, values[:, self.size :]], 1)
            return self._draw_down(*top_sweep(below, scale), generator=generator)

        top_sweep = functools.partial(self.top.sweep, generator=generator)
        start, sweeps = self.top.start(n, generator=generator), self.settings.sample_sweeps
        if clamp is None:
            ends = run_chains(top_sweep, start, sweeps=sweeps, clamp=clamp_label)
            last, mean = self._draw_down(*ends, generator=generator)
        else:
            first, _ = self._draw_down(start, start, generator=generator)
            last, mean = run_chains(sweep, first, sweeps=sweeps, clamp=clamp_all)
        return last[:, : self.size], mean[:, : self.size]

    def _draw_up(
        self, u: Tensor, depth: int | None = None, *, generator: torch.Generator
    ) -> Tensor:
        """Return draws of layer ``depth``, by default of the one below the top."""
        for machine in self._layers()[:-1][:depth]:
            u = draw_bernoulli(machine.hidden_mean(u), generator=generator)
        return u

    def _draw_down(
        self, values: Tensor, mean: Tensor, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return items drawn from values of the top machine, and their mean; labels stay beside."""
        values, label = values.split([self._below, self.settings.classes], 1)
        mean, label_mean = mean.split([self._below, self.settings.classes], 1)
        for machine in reversed(self._layers()[:-1]):
            mean = machine.visible_mean(values)
            values = machine.units.draw(mean, generator=generator)
        return torch.cat([values, label], 1), torch.cat([mean, label_mean], 1)

    def _means_up(self, u: Tensor) -> Tensor:
        """Return the means of the layer below the top in one pass upward."""
        for machine in self._layers()[:-1]:
            u = machine.hidden_mean(u)
        return u

    def _label_energies(self, values: Tensor) -> Tensor:
        """Return the free energy of the top machine with each label, (m, classes)."""
        labels = torch.eye(self.settings.classes, device=values.device)
        joined = [torch.cat([values, label.expand(len(values), -1)], 1) for label in labels]
        return torch.stack([self.top.free_energy(row) for row in joined], 1)

    def _label_means(self, values: Tensor) -> Tensor:
        return (-self._label_energies(values)).softmax(1)

    @property
    def _below(self) -> int:
        """Width of the layer below the top."""
        return self.settings.hidden[-2] if len(self.settings.hidden) > 1 else self.size

    def _layers(self) -> list[Machine]:
        return [machine for machine in self.machines if isinstance(machine, Machine)]
