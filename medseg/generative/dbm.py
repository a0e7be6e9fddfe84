"""The deep Boltzmann machine with two hidden layers."""

import functools
from typing import cast

import torch
from pydantic import Field
from torch import Tensor

from medseg.generative.boltzmann import BoltzmannBase, BoltzmannSettings, Clamp
from medseg.generative.fitting import FitRecord
from medseg.generative.machine import Machine, fit_contrastive, run_chains
from medseg.generative.model import Codes, Conditions, Items
from medseg.generative.units import Bernoulli, Joined, entropy
from medseg.settings import settings


@settings
class DbmSettings(BoltzmannSettings):
    """Sizes of a deep Boltzmann machine, and how it is fitted."""

    #: Units of the first and of the second hidden layer.
    hidden: tuple[int, int] = Field(default=(64, 32))
    #: Rounds of mean-field inference.
    rounds: int = Field(default=30, ge=1)


class Dbm(BoltzmannBase):
    """``E(v, h1, h2) = U(v) - field(v)' W1 h1 - h1' W2 h2 - a1' h1 - a2' h2``.

    The first hidden layer meets v and the second layer alike, so the machine is a restricted one
    with (v, h2) on one side and h1 on the other, of which h2 is never seen: it is inferred by mean
    field for the items, and drawn with v on the persistent chains. Both layers are fitted at once,
    in centred coordinates, without pretraining. The energy is the variational bound,
    ``min over mu of E_mu[E(v, h)] - H(mu) >= -log sum_h exp(-E(v, h))``. The code of an item is the
    mean of h1, then of h2.

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one item.
    settings : DbmSettings
        Units and fit.

    References
    ----------
    Salakhutdinov and Hinton (2009), Deep Boltzmann machines, section 2 and equation 7.
    Montavon and Mueller (2012), Deep Boltzmann machines and the centering trick, section 3.
    """

    kind = "dbm"
    settings_type = DbmSettings
    settings: DbmSettings

    def __init__(self, event_shape: tuple[int, ...], settings: DbmSettings) -> None:
        super().__init__(event_shape, settings)
        first, second = settings.hidden
        self.machine = Machine(Joined(self._units(), Bernoulli(second)), first)

    @property
    def top(self) -> Machine:
        """The machine with (v, h2) on one side and h1 on the other."""
        return self.machine

    def encode(self, items: Items, *, condition: Conditions | None = None) -> Codes:
        """Return the mean-field means of h1 and h2, (m, first + second)."""
        u = self._standardised(items, condition)
        values = torch.cat([u, torch.sigmoid(self._second_input(u))], 1)
        return torch.cat([self.machine.hidden_mean(values), values[:, self.size :]], 1)

    def decode(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return the mean of the visible units given h1, (m, *event_shape)."""
        first, _ = self.settings.hidden
        self.check_codes(codes, sum(self.settings.hidden))
        self.check_condition(len(codes), condition)
        return self._original(self.machine.visible_mean(codes[:, :first])[:, : self.size])

    def _fit_layers(
        self, u: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        del condition
        even = torch.full((len(u), self.settings.hidden[1]), 0.5, device=u.device)
        self.machine.reset(torch.cat([u, even], 1), generator=generator)

        def positive(rows: Tensor) -> Tensor:
            return torch.cat([u[rows], torch.sigmoid(self._second_input(u[rows]))], 1)

        return fit_contrastive(
            self.machine,
            positive,
            items=len(u),
            settings=self.settings.contrastive,
            generator=generator,
        )

    @torch.no_grad()
    def _second_input(self, u: Tensor) -> Tensor:
        """Return the mean-field log odds of h2, (m, second), found by turns with those of h1."""
        size, machine = self.size, self.machine
        weight = machine.weight[size:]
        none = u.new_zeros(len(u), len(weight))
        from_items = machine.hidden_input(torch.cat([u, none], 1))
        bias = cast(Joined, machine.units).second.bias
        log_odds = none
        for _ in range(self.settings.rounds):
            first = torch.sigmoid(from_items + torch.sigmoid(log_odds) @ weight)
            log_odds = bias + (first - machine.hidden_offset) @ weight.T
        return log_odds

    def _energy(self, u: Tensor, condition: Tensor | None) -> Tensor:
        del condition
        # At the best means a change of the means changes nothing, so that no gradient needs to flow
        # through them. Summing over h1 exactly is what its own best means give.
        log_odds = self._second_input(u)
        values = torch.cat([u, torch.sigmoid(log_odds)], 1)
        return self.machine.free_energy(values) - entropy(log_odds)

    def _chains(
        self, n: int, *, generator: torch.Generator, condition: Tensor | None, clamp: Clamp | None
    ) -> tuple[Tensor, Tensor]:
        del condition
        size = self.size

        def clamp_visible(values: Tensor) -> Tensor:
            known = values[:, :size] if clamp is None else clamp(values[:, :size])
            return torch.cat([known, values[:, size:]], 1)

        last, mean = run_chains(
            functools.partial(self.machine.sweep, generator=generator),
            self.machine.start(n, generator=generator),
            sweeps=self.settings.sample_sweeps,
            clamp=clamp_visible,
        )
        return last[:, :size], mean[:, :size]
