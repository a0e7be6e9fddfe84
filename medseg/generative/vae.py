"""A dense variational autoencoder with a learned decoder deviation."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.errors import ModelError
from medseg.generative.base import CAPABILITIES, GenerativeBase
from medseg.generative.fitting import FitRecord, FitSettings, fit_by_gradient
from medseg.generative.layers import dense, join, reset, rows_of
from medseg.generative.model import Codes, Conditions, Items, PerItem
from medseg.generative.noise import LOG_TWO_PI, draw_normal, draw_uniform
from medseg.generative.standardise import Standardisation, Standardiser, split_and_standardise
from medseg.seeding import torch_generator
from medseg.settings import settings

# Size of the last layers at the start, relative to the usual one.
_START_GAIN = 0.1
# Rows of the hidden layer that are computed at once when many codes are drawn per item.
_ROWS_AT_ONCE = 32_768

#: From a number of draws and their generator to nats per item that are added to a loss.
Penalty = Callable[[int, torch.Generator], Tensor]


@settings
class VaeSettings:
    """Size and likelihood of a variational autoencoder, and how it is fitted."""

    #: p(x | z): normal, or independent coins for masks, whose items lie in [0, 1] and are not
    #: standardised.
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    #: Numbers in a code z.
    latent: int = Field(default=6, ge=1)
    #: Widths of the hidden layers of the encoder; the decoder has them in reverse. Empty: linear.
    hidden: tuple[int, ...] = (64,)
    #: Deviation of p(x | z): one number, one per coordinate, or one per coordinate computed from z,
    #: which lets the model say "this kernel is small" (a scale mixture).
    decoder_std: Literal["shared", "per_feature", "from_code"] = "from_code"
    #: Least deviation of p(x | z), in standardised units, where the items have rms 1.
    std_floor: float = Field(default=0.02, gt=0)
    #: What is done to the items first; see :class:`medseg.generative.standardise.Standardiser`.
    standardise: Standardisation = "scale"
    #: Numbers in the condition of an item; 0 for none.
    condition_size: int = Field(default=0, ge=0)
    #: Weight of KL(q(z|x) || p(z)) while fitting; the bounds always use 1.
    beta: float = Field(default=1.0, gt=0)
    #: Share of the steps over which that weight rises from 0, against codes that are never used.
    beta_warm_up: float = Field(default=0.2, ge=0, le=1)
    #: Steps and rates.
    fit: FitSettings = FitSettings()


class Encoder(nn.Module):
    """The inference network q(z | x) = N(mean, std^2), from u and the condition.

    Parameters
    ----------
    net : Module
        From the numbers of u and of the condition, side by side, to two numbers per number of z.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, u: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of the code, each (m, latent)."""
        mean, log_std = self.net(join(u, condition)).chunk(2, dim=1)
        # No posterior is broader than the prior it came from: without the upper limit, an item far
        # from all that were seen draws wild codes and loses thousands of nats.
        return mean, log_std.clamp(-8.0, 1.0)


class Decoder(nn.Module):
    """The likelihood p(u | z), a Gaussian or independent coins.

    Parameters
    ----------
    net : Module
        From the numbers of z and of the condition, side by side, to :meth:`outputs` numbers.
    size : int
        Numbers in an item.
    settings : VaeSettings
        Which likelihood.
    """

    def __init__(self, net: nn.Module, size: int, settings: VaeSettings) -> None:
        super().__init__()
        self.net = net
        self.coins = settings.likelihood == "bernoulli"
        free = {"shared": 1, "per_feature": size, "from_code": 0}[settings.decoder_std]
        self.raw_log_std = nn.Parameter(torch.zeros(0 if self.coins else free))
        self.log_floor = math.log(settings.std_floor)

    @staticmethod
    def outputs(settings: VaeSettings) -> int:
        """Return how many numbers the net gives for each number of an item."""
        normal = settings.likelihood == "gaussian"
        return 2 if normal and settings.decoder_std == "from_code" else 1

    def forward(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean (m, d) and log standard deviation, broadcastable to it; log odds of coins."""
        out = self.net(join(z, condition))
        if self.coins:
            return out, torch.zeros_like(out)
        if self.raw_log_std.numel():
            mean, raw = out, self.raw_log_std
        else:
            mean, raw = out.chunk(2, dim=1)
        # std^2 = floor^2 + exp(raw)^2: smooth, so that a coordinate at the floor still has a
        # gradient.
        return mean, 0.5 * torch.logaddexp(2 * raw, torch.full_like(raw, 2 * self.log_floor))

    def log_prob(self, u: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        """Return log p(u | z) in nats, (m,)."""
        mean, log_std = self(z, condition)
        if self.coins:
            # log p^u (1 - p)^(1 - u) of log odds.
            return (u * mean - nn.functional.softplus(mean)).sum(1)
        return log_normal(u, mean, log_std)

    def mean(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Return the mean of u given z, (m, d)."""
        mean, _ = self(z, condition)
        return torch.sigmoid(mean) if self.coins else mean

    def draw(self, z: Tensor, condition: Tensor | None, *, generator: torch.Generator) -> Tensor:
        """Return u drawn given z, (m, d)."""
        mean, log_std = self(z, condition)
        if self.coins:
            chance = draw_uniform(tuple(mean.shape), like=mean, generator=generator)
            return (0.5 * (chance + 1) < torch.sigmoid(mean)).to(mean.dtype)
        noise = draw_normal(tuple(mean.shape), like=mean, generator=generator)
        return mean + log_std.exp() * noise


class Vae(GenerativeBase):
    """Variational autoencoder of items of any shape, flattened.

    ``log p(x) >= E_q(z|x)[log p(x|z)] - KL(q(z|x) || N(0, I))``, with a dense encoder and decoder
    and a Gaussian likelihood whose deviation is learned above a floor, or one of coins for masks.

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one item.
    settings : VaeSettings
        Sizes, likelihood and fit.

    References
    ----------
    Kingma and Welling (2014), Auto-encoding variational Bayes, equation 10.
    Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, equation 8.
    """

    kind = "vae"
    settings_type = VaeSettings
    provides = CAPABILITIES
    is_normalised = True
    settings: VaeSettings

    def __init__(self, event_shape: tuple[int, ...], settings: VaeSettings) -> None:
        super().__init__(event_shape, settings)
        self.standardiser = Standardiser(self.size)
        self.encoder = Encoder(self._encoder_net())
        self.decoder = Decoder(self._decoder_net(), self.size, settings)
        self._reset(torch_generator(0, "vae"))

    def _encoder_net(self) -> nn.Module:
        options = self.settings
        return dense([self.size + self.condition_size, *options.hidden, 2 * options.latent])

    def _decoder_net(self) -> nn.Module:
        options = self.settings
        widths = [options.latent + self.condition_size, *reversed(options.hidden)]
        return dense([*widths, Decoder.outputs(options) * self.size])

    def check_fittable(self, items: Tensor, condition: Tensor | None = None) -> None:
        """Refuse what no model can be fitted to, and numbers that are no coins."""
        super().check_fittable(items, condition)
        low, high = float(items.min()), float(items.max())
        if self.decoder.coins and (low < 0 or high > 1):
            raise ModelError(
                f"Items of a Bernoulli likelihood must lie in [0, 1], but they range from "
                f"{low:.3g} to {high:.3g}.",
                hint="Give masks, or set likelihood to gaussian.",
            )

    def _fit(
        self, items: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        self._reset(generator)
        u, train, held = self._standardised_rows(items, generator=generator)
        record = self._raise_elbo(u, condition, train, held, generator=generator)
        return record.shifted(float(self.standardiser.log_det))

    def _standardised_rows(
        self, items: Tensor, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fit the standardiser; return its rows (m, size) and which to train and to judge on."""
        return split_and_standardise(
            items.flatten(1),
            self.standardiser,
            kind="none" if self.decoder.coins else self.settings.standardise,
            fraction=self.settings.fit.validation_fraction,
            generator=generator,
        )

    def _raise_elbo(
        self,
        u: Tensor,
        condition: Tensor | None,
        train: Tensor,
        held: Tensor,
        *,
        generator: torch.Generator,
        fit: FitSettings | None = None,
        warm_up: float | None = None,
        penalty: Penalty | None = None,
    ) -> FitRecord:
        """Fit to rows ``train`` of u (m, size), judged on ``held``; the rest is in the settings."""
        fit = fit or self.settings.fit
        warm_up = max(self.settings.beta_warm_up if warm_up is None else warm_up, 1e-9)
        noise = self._noise(len(held), like=u, generator=generator)

        def batch_loss(rows: Tensor, progress: float) -> Tensor:
            eps = self._noise(len(rows), like=u, generator=generator)
            beta = self.settings.beta * min(1.0, progress / warm_up)
            loss = -self._elbo(u[rows], rows_of(condition, rows), eps, beta=beta).mean()
            return loss if penalty is None else loss + penalty(len(rows), generator)

        @torch.no_grad()
        def validation() -> float:
            # The same noise at every check, so that checks differ by the model alone.
            loss = -float(self._elbo(u[held], rows_of(condition, held), noise).mean())
            if penalty is None:
                return loss
            return loss + float(penalty(fit.batch_size, torch_generator(0, "penalty")))

        return fit_by_gradient(
            self,
            batch_loss,
            validation if len(held) else None,
            rows=train,
            settings=fit,
            generator=generator,
        )

    def elbo(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
        encoder: Encoder | None = None,
    ) -> PerItem:
        """Return the evidence lower bound in nats, (m,): one code each, the KL in closed form.

        Gradients flow to ``items``, and to ``encoder`` when one is given in place of the model's
        own.
        """
        # Half precision would cost more nats than priors differ by, and is slow on most CPUs.
        with torch.autocast(device_type=items.device.type, enabled=False):
            u = self.standardiser(self.vectors(items, condition))
            eps = self._noise(len(u), like=u, generator=generator)
            return self._elbo(u, condition, eps, encoder=encoder) + self.standardiser.log_det

    def bound(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
        n_codes: int = 64,
        encoder: Encoder | None = None,
    ) -> PerItem:
        """Return the importance-weighted bound with ``n_codes`` codes per item in nats, (m,).

        ``log p(x) >= E log mean_k p(x | z_k) p(z_k) / q(z_k | x)``; it rises to log p(x) with
        ``n_codes``.
        """
        if n_codes < 1:
            raise ModelError(
                f"The bound needs at least one code per item, but n_codes is {n_codes}."
            )
        with torch.autocast(device_type=items.device.type, enabled=False):
            u = self.standardiser(self.vectors(items, condition))
            step = max(self._rows_at_once() // n_codes, 1)
            parts = [
                self._weighted(rows, n_codes=n_codes, generator=generator, encoder=encoder)
                for rows in zip(
                    u.split(step),
                    condition.split(step) if condition is not None else _nothing(u, step),
                    strict=True,
                )
            ]
            return torch.cat(parts) + self.standardiser.log_det

    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> Items:
        """Return ``n`` items: a code from its prior, then the likelihood with its noise."""
        self.check_condition(n, condition)
        z = self._draw_codes(n, generator=generator)
        u = self.decoder.draw(z, condition, generator=generator)
        return self.standardiser.inverse(u).reshape(n, *self.event_shape)

    def encode(self, items: Items, *, condition: Conditions | None = None) -> Codes:
        """Return the mean code of each item, (m, latent)."""
        return self.encoder(self.standardiser(self.vectors(items, condition)), condition)[0]

    def decode(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return the mean item of each code, (m, *event_shape)."""
        self.check_codes(codes, self.settings.latent)
        self.check_condition(len(codes), condition)
        mean = self.decoder.mean(codes, condition)
        return self.standardiser.inverse(mean).reshape(len(codes), *self.event_shape)

    def _elbo(
        self,
        u: Tensor,
        condition: Tensor | None,
        eps: Tensor,
        *,
        beta: float = 1.0,
        encoder: Encoder | None = None,
    ) -> Tensor:
        mean, log_std = (encoder or self.encoder)(u, condition)
        z = mean + log_std.exp() * eps
        divergence = self._divergence(z, mean, log_std)
        return self.decoder.log_prob(u, z, condition) - beta * divergence

    def _divergence(self, z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Return KL(q || p(z)) in nats, (m,), or an unbiased estimate from z ~ q."""
        del z
        return 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)

    def _log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, (m,)."""
        return log_normal(z, torch.zeros_like(z), torch.zeros_like(z))

    def _draw_codes(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Return codes drawn from p(z), (n, latent)."""
        return self._noise(n, like=self.standardiser.offset, generator=generator)

    def _weighted(
        self,
        rows: tuple[Tensor, Tensor | None],
        *,
        n_codes: int,
        generator: torch.Generator | None,
        encoder: Encoder | None,
    ) -> Tensor:
        u, condition = rows
        mean, log_std = (encoder or self.encoder)(u, condition)
        mean, log_std, u = (x.repeat_interleave(n_codes, 0) for x in (mean, log_std, u))
        if condition is not None:
            condition = condition.repeat_interleave(n_codes, 0)
        z = mean + log_std.exp() * self._noise(len(u), like=u, generator=generator)
        log_weight = (
            self.decoder.log_prob(u, z, condition)
            + self._log_prior(z)
            - log_normal(z, mean, log_std)
        )
        return log_weight.reshape(-1, n_codes).logsumexp(1) - math.log(n_codes)

    def _noise(self, n: int, *, like: Tensor, generator: torch.Generator | None) -> Tensor:
        return draw_normal((n, self.settings.latent), like=like, generator=generator)

    def _rows_at_once(self) -> int:
        """Return how many pairs of item and code are decoded together."""
        return _ROWS_AT_ONCE

    @torch.no_grad()
    def _reset(self, generator: torch.Generator) -> None:
        reset(self, generator=generator)
        # Small first answers: with whitened items the start is close to the Gaussian that is to be
        # beaten, and a fit to few items, stopped early, stays near it.
        for net in (self.encoder.net, self.decoder.net):
            weights = [value for name, value in net.named_parameters() if name.endswith("weight")]
            weights[-1].mul_(_START_GAIN)
        self.decoder.raw_log_std.zero_()


def _nothing(u: Tensor, step: int) -> list[None]:
    return [None] * len(u.split(step))


def log_normal(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return log N(x; mean, std^2 I) in nats, summed over the last axis; shapes broadcast."""
    white = (x - mean) * (-log_std).exp()
    return (-0.5 * (white.square() + LOG_TWO_PI) - log_std).sum(-1)
