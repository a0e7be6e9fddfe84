"""The restricted Boltzmann machine as a generative model of kernels, patches or masks."""

import functools

import torch
from pydantic import Field
from torch import Tensor

from medseg.generative.boltzmann import BoltzmannBase, BoltzmannSettings, Clamp
from medseg.generative.fitting import FitRecord
from medseg.generative.machine import Machine, fit_contrastive, run_chains
from medseg.generative.model import Codes, Conditions, Items
from medseg.settings import settings


@settings
class RbmSettings(BoltzmannSettings):
    """Size of a restricted Boltzmann machine, and how it is fitted."""

    #: Hidden units.
    hidden: int = Field(default=64, ge=1)


class Rbm(BoltzmannBase):
    """``p(v) = exp(-F(v)) / Z`` with ``F(v) = U(v) - sum_j log(1 + exp(a_j + field(v)' W_j))``.

    With binary units ``U(v) = -b' v`` and ``field(v) = v``; with real ones
    ``U(v) = sum (v - b)^2 / (2 s^2)`` and ``field(v) = v / s^2``, a mixture of ``2^hidden``
    Gaussians with one covariance. The code of an item is p(h = 1 | v).

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one item.
    settings : RbmSettings
        Units and fit.

    References
    ----------
    Smolensky (1986), Information processing in dynamical systems: foundations of harmony theory.
    Hinton (2002), Training products of experts by minimizing contrastive divergence.
    """

    kind = "rbm"
    settings_type = RbmSettings
    settings: RbmSettings

    def __init__(self, event_shape: tuple[int, ...], settings: RbmSettings) -> None:
        super().__init__(event_shape, settings)
        self.machine = Machine(self._units(), settings.hidden)

    @property
    def top(self) -> Machine:
        """The machine itself."""
        return self.machine

    def encode(self, items: Items, *, condition: Conditions | None = None) -> Codes:
        """Return p(h = 1 | v), (m, hidden)."""
        return self.machine.hidden_mean(self._standardised(items, condition))

    def decode(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return the mean of the visible units given hidden ones, (m, *event_shape)."""
        self.check_codes(codes, self.settings.hidden)
        self.check_condition(len(codes), condition)
        return self._original(self.machine.visible_mean(codes))

    def _fit_layers(
        self, u: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        del condition
        self.machine.reset(u, generator=generator)
        return fit_contrastive(
            self.machine,
            lambda rows: u[rows],
            items=len(u),
            settings=self.settings.contrastive,
            generator=generator,
        )

    def _energy(self, u: Tensor, condition: Tensor | None) -> Tensor:
        del condition
        return self.machine.free_energy(u)

    def _chains(
        self, n: int, *, generator: torch.Generator, condition: Tensor | None, clamp: Clamp | None
    ) -> tuple[Tensor, Tensor]:
        del condition
        return run_chains(
            functools.partial(self.machine.sweep, generator=generator),
            self.machine.start(n, generator=generator),
            sweeps=self.settings.sample_sweeps,
            clamp=clamp,
        )
