"""Generative adversarial networks, dense and convolutional, that tell when they collapsed."""

import logging
import math
from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from medseg.errors import ShapeError
from medseg.generative.base import GenerativeBase
from medseg.generative.coverage import Coverage, measure_coverage
from medseg.generative.fitting import FitRecord, FitSettings, learning_rate_factor, split_items
from medseg.generative.gan_networks import (
    ConvDiscriminator,
    ConvGenerator,
    DenseDiscriminator,
    DenseGenerator,
    Sampler,
    refresh_norms,
)
from medseg.generative.layers import reset, rows_of
from medseg.generative.model import Codes, Conditions, Items, PerItem
from medseg.generative.noise import draw_normal
from medseg.generative.ratio import RatioDensity
from medseg.generative.standardise import Standardisation, Standardiser
from medseg.seeding import torch_generator
from medseg.settings import settings

logger = logging.getLogger(__name__)

# Items that the samples are compared with after a fit.
_COMPARED = 1000


@settings
class AdversarialFitSettings:
    """How long and how the two players are fitted."""

    #: Passes over the items, at most.
    epochs: int = Field(default=1000, ge=1)
    #: Steps of the generator, at most.
    max_steps: int = Field(default=2000, ge=1)
    #: Items per step.
    batch_size: int = Field(default=128, ge=1)
    #: Peak of the learning rate of Adam; it warms up over 5 % of the steps, then falls to 0 as a
    #: cosine.
    learning_rate: float = Field(default=2e-3, gt=0)
    #: Momentum of Adam.
    momentum: float = Field(default=0.5, ge=0, lt=1)
    #: Steps of the discriminator for each of the generator.
    discriminator_steps: int = Field(default=1, ge=1)
    #: Weight of ``|grad log D/(1-D)|^2 / 2`` at the items, without which the players go round in
    #: circles (Mescheder, Geiger and Nowozin 2018, equation 9).
    gradient_penalty: float = Field(default=0.1, ge=0)
    #: Decay of the running mean of the generator's weights that is kept.
    averaging: float = Field(default=0.995, ge=0, lt=1)
    #: Share of the items kept aside, to compare the samples with.
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)


@settings
class GanSettings:
    """Size and fit of a GAN."""

    #: Numbers in a code.
    latent: int = Field(default=8, ge=1)
    #: ``dense`` for kernels and vectors; ``dcgan`` for patches (c, *s).
    network: Literal["dense", "dcgan"] = "dense"
    #: Widths of the hidden layers of both players, if dense.
    hidden: tuple[int, ...] = (64, 64)
    #: Channels of the convolutions of a DCGAN, the outermost first; each halves the patch.
    channels: tuple[int, ...] = Field(default=(16, 32), min_length=1)
    #: What is done to the items first, if dense; a DCGAN brings them to [-1, 1].
    standardise: Standardisation = "scale"
    #: What the energy is measured from: ``gaussian`` makes it minus the log density of the items
    #: (if dense); ``samples`` leaves it relative to the density of the samples, which is unknown.
    reference: Literal["gaussian", "samples"] = "gaussian"
    #: Steps in which the ratio of samples and Gaussian is learned.
    reference_steps: int = Field(default=1000, ge=1)
    #: Numbers in the condition of an item; 0 for none.
    condition_size: int = Field(default=0, ge=0)
    #: Maps in the condition of a patch, each of its size, such as a mask; the condition is then the
    #: numbers of all maps in a row.
    condition_maps: int = Field(default=0, ge=0)
    #: Steps and rates.
    fit: AdversarialFitSettings = AdversarialFitSettings()

    @model_validator(mode="after")
    def _one_condition(self) -> "GanSettings":
        if self.condition_maps and (self.condition_size or self.network == "dense"):
            raise ValueError(
                f"condition_maps ({self.condition_maps}) need the network 'dcgan' and a "
                f"condition_size of 0, but they are {self.network!r} and {self.condition_size}"
            )
        return self


class Gan(GenerativeBase):
    """Generator G and discriminator D that play ``min_G max_D E log D(x) + E log(1 - D(G(z)))``.

    G ascends ``log D(G(z))`` instead, whose slope does not vanish while D wins (non-saturating). At
    the optimum D is 1/2 everywhere and the value of the game, which the fit's record gives as its
    nats, -log 4. There is no density, but ``log D/(1-D)`` is the logarithm of the ratio of the
    densities of items and samples. By itself it is near 0 wherever the game is a draw, and means
    little far from both; so a dense GAN adds the density of the samples, learned as their ratio to
    a Gaussian with their moments (:class:`~medseg.generative.ratio.RatioDensity`):

    ``E(x) = -log D/(1-D) - log D_N/(1-D_N) - log N(x)``.

    After a fit, :attr:`coverage` tells how samples lie among unseen items. If they cover fewer than
    half, the record warns, and says whether G collapsed to a part of the items.

    References
    ----------
    Goodfellow et al. (2014), Generative adversarial nets, equation 1, section 3 and theorem 1.
    Rhodes, Xu and Gutmann (2020), Telescoping density-ratio estimation, equation 3 (chain of
    ratios).
    Mescheder, Geiger and Nowozin (2018), Which training methods for GANs do actually converge?
    Radford, Metz and Chintala (2016), Unsupervised representation learning with deep convolutional
    generative adversarial networks.
    """

    kind = "gan"
    settings_type = GanSettings
    provides = frozenset({"sample", "energy"})
    settings: GanSettings
    range_centre: Tensor
    range_half: Tensor
    measured: Tensor

    def __init__(self, event_shape: tuple[int, ...], settings: GanSettings) -> None:
        super().__init__(event_shape, settings)
        told, conv = settings.condition_maps or settings.condition_size, self._convolutional
        self.reference: RatioDensity | None = None
        self.standardiser = Standardiser(1 if conv else self.size)
        self.register_buffer("range_centre", torch.zeros(()))
        self.register_buffer("range_half", torch.ones(()))
        self.register_buffer("measured", torch.full((3,), -1.0))
        if conv:
            if not 2 <= len(self.event_shape) <= 4:
                raise ShapeError(
                    f"A DCGAN needs items of shape (c, *s) with one to three lengths, but it was "
                    f"given {self.event_shape}.",
                    hint="Put an axis of length 1 first where there is one channel.",
                )
            maps, channels = settings.condition_maps, settings.channels
            self.discriminator = ConvDiscriminator(
                self.event_shape, channels=channels, told=told, maps=maps
            )
            self.generator = ConvGenerator(
                self.event_shape, latent=settings.latent, channels=channels, told=told, maps=maps
            )
        else:
            hidden = settings.hidden
            self.discriminator = DenseDiscriminator(self.size, hidden=hidden, told=told)
            self.generator = DenseGenerator(
                self.size, latent=settings.latent, hidden=hidden, told=told
            )
            if settings.reference == "gaussian":
                self.reference = RatioDensity(self.size, hidden=hidden, told=told)
        reset(self, generator=torch_generator(0, "gan"))

    @property
    def condition_size(self) -> int:
        """Numbers in the condition of an item: those of its maps, if it has maps."""
        maps = self.settings.condition_maps * math.prod(self.event_shape[1:])
        return maps or self.settings.condition_size

    @property
    def coverage(self) -> Coverage | None:
        """How samples lay among unseen items after the fit; none before, or with few items."""
        if float(self.measured[0]) < 0:
            return None
        return Coverage(*(float(value) for value in self.measured))

    def _fit(
        self, items: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        fit = self.settings.fit
        reset(self, generator=generator)
        self.measured.fill_(-1)
        train, held = split_items(len(items), fraction=fit.validation_fraction, generator=generator)
        train, held = train.to(items.device), held.to(items.device)
        self._fit_units(items[train])
        u = self._units(items)
        steps = self._play(u, train, condition, generator)
        self.eval()
        if self.reference is not None and all(bool(p.isfinite().all()) for p in self.parameters()):
            steps_of_ratio = FitSettings(
                max_steps=self.settings.reference_steps, learning_rate=2e-3, epochs=10**6
            )
            sampler = self._sampler(train, condition, generator)
            self.reference.fit(sampler, steps_of_ratio, generator=generator)
        compared = held if len(held) >= min(_COMPARED, len(train)) // 4 else train
        warnings = self._measure(u, compared[:_COMPARED], condition, generator)
        with torch.no_grad():
            values = [
                self._value(u[rows], rows_of(condition, rows), generator)
                for rows in (train[:_COMPARED], held[:_COMPARED])
                if len(rows)
            ]
        return FitRecord(steps, values[0], values[1] if len(held) else None, warnings)

    def _play(
        self, u: Tensor, rows: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> int:
        """Let the players learn in turn; leave the mean of the generator's weights in it."""
        fit = self.settings.fit
        players = (self.discriminator, self.generator)
        optimisers = [
            torch.optim.Adam(
                player.parameters(), fit.learning_rate, betas=(fit.momentum, 0.99), fused=True
            )
            for player in players
        ]
        mean = [parameter.detach().clone() for parameter in self.generator.parameters()]
        batch = min(fit.batch_size, len(rows))
        steps = min(max(fit.epochs * len(rows) // batch, 1), fit.max_steps)
        order = rows[:0]
        for step in range(steps):
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = fit.learning_rate * learning_rate_factor(step, steps)
            for _ in range(fit.discriminator_steps):
                if len(order) < batch:
                    shuffle = torch.randperm(
                        len(rows), generator=generator, device=generator.device
                    )
                    order = rows[shuffle.to(rows.device)]
                chosen, order = order[:batch], order[batch:]
                self._step(
                    optimisers[0], u[chosen], rows_of(condition, chosen), generator, own=True
                )
            self._step(optimisers[1], u[chosen], rows_of(condition, chosen), generator, own=False)
            # The mean forgets its start: at first it is that of all steps so far.
            decay = min(fit.averaging, step / (step + 1))
            with torch.no_grad():
                for kept, now in zip(mean, self.generator.parameters(), strict=True):
                    kept.lerp_(now, 1 - decay)
        with torch.no_grad():
            for kept, now in zip(mean, self.generator.parameters(), strict=True):
                now.copy_(kept)
        refresh_norms(self.generator, self._sampler(rows, condition, generator))
        return steps

    def _step(
        self,
        optimiser: torch.optim.Optimizer,
        u: Tensor,
        condition: Tensor | None,
        generator: torch.Generator,
        *,
        own: bool,
    ) -> None:
        """Make one step of the discriminator (``own``) or of the generator."""
        self.discriminator.requires_grad_(own)
        made = self.generator(self._codes(len(u), u, generator), condition)
        if own:
            loss = self._discriminator_loss(u, made.detach(), condition)
        else:
            loss = functional.softplus(-self.discriminator(made, condition)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        self.discriminator.requires_grad_(True)

    def _discriminator_loss(self, u: Tensor, made: Tensor, condition: Tensor | None) -> Tensor:
        penalty = self.settings.fit.gradient_penalty
        u = u.detach().requires_grad_(penalty > 0)
        on_items = self.discriminator(u, condition)
        on_made = self.discriminator(made, condition)
        loss = functional.softplus(-on_items).mean() + functional.softplus(on_made).mean()
        if penalty:
            (slope,) = torch.autograd.grad(on_items.sum(), u, create_graph=True)
            loss = loss + penalty / 2 * slope.flatten(1).square().sum(1).mean()
        return loss

    def _sampler(
        self, rows: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Sampler:
        """Return what draws samples, with the conditions of items drawn from ``rows``."""

        def draw(n: int) -> tuple[Tensor, Tensor | None]:
            drawn = torch.randint(len(rows), (n,), generator=generator, device=generator.device)
            told = rows_of(condition, rows[drawn.to(rows.device)])
            return self.generator(self._codes(n, self.range_half, generator), told), told

        return draw

    @torch.no_grad()
    def _measure(
        self, u: Tensor, rows: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> list[str]:
        """Compare samples with items; return what a reader must know."""
        if len(rows) <= 5:
            return []
        made = self.generator(self._codes(len(rows), u, generator), rows_of(condition, rows))
        if not bool(made.isfinite().all()):
            return []  # The fit diverged, which the caller reports.
        found = measure_coverage(u[rows].flatten(1), made.flatten(1))
        self.measured.copy_(torch.tensor([found.coverage, found.fidelity, found.spread]))
        if not (found.collapsed or found.missed):
            return []
        what = "The generator collapsed" if found.collapsed else "The samples are unlike the items"
        warning = (
            f"{what}: its samples cover {found.coverage:.0%} of {len(rows)} items (97% would be "
            f"perfect), {found.fidelity:.0%} of them lie among items, and their variance is "
            f"{found.spread:.2g} times that of the items. Use more steps, a larger "
            "gradient_penalty, discriminator_steps of 2, or a smaller learning_rate."
        )
        logger.warning(warning)
        return [warning]

    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> Items:
        """Return ``n`` items that the generator makes of codes from N(0, I)."""
        return self.generate(self._codes(n, self.range_half, generator), condition=condition)

    def generate(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return the items that the generator makes of codes (m, latent)."""
        self.check_codes(codes, self.settings.latent)
        self.check_condition(len(codes), condition)
        return self._items(self.generator(codes, condition))

    def energy(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
    ) -> PerItem:
        """Return the energy in nats, (m,); see the class."""
        ratio = self.log_ratio(items, condition=condition)
        if self.reference is None:
            return -ratio
        with torch.autocast(device_type=items.device.type, enabled=False):
            samples = self.reference.log_density(self._units(items), condition)
            return -ratio - samples - self.standardiser.log_det

    def log_ratio(self, items: Items, *, condition: Conditions | None = None) -> PerItem:
        """Return ``log D(x) / (1 - D(x))`` in nats, (m,): how much likelier as item than sample."""
        self.check_items(items, condition)
        with torch.autocast(device_type=items.device.type, enabled=False):
            return self.discriminator(self._units(items), condition)

    @property
    def _convolutional(self) -> bool:
        return cast(GanSettings, self.settings).network == "dcgan"

    def _codes(self, n: int, like: Tensor, generator: torch.Generator) -> Tensor:
        return draw_normal((n, self.settings.latent), like=like, generator=generator)

    def _fit_units(self, items: Tensor) -> None:
        if not self._convolutional:
            self.standardiser.fit(items.flatten(1), self.settings.standardise)
            return
        least, most = items.min(), items.max()
        self.range_centre.copy_((least + most) / 2)
        self.range_half.copy_((most - least) / 2)

    def _units(self, items: Tensor) -> Tensor:
        if not self._convolutional:
            return self.standardiser(items.flatten(1))
        return (items - self.range_centre) / self.range_half

    def _items(self, u: Tensor) -> Tensor:
        if not self._convolutional:
            return self.standardiser.inverse(u).reshape(len(u), *self.event_shape)
        return u * self.range_half + self.range_centre

    def _value(self, u: Tensor, condition: Tensor | None, generator: torch.Generator) -> float:
        """Return ``E log D(x) + E log(1 - D(G(z)))``."""
        made = self.generator(self._codes(len(u), u, generator), condition)
        losses = functional.softplus(-self.discriminator(u, condition)).mean()
        losses = losses + functional.softplus(self.discriminator(made, condition)).mean()
        return -float(losses)
