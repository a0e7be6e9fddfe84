"""A dense variational autoencoder with a learned decoder deviation."""

import itertools
import math
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from medseg.errors import ModelError, ShapeError
from medseg.generative.fitting import FitRecord, FitSettings, fit_by_gradient, split_items
from medseg.generative.model import Conditions, Items, PerItem
from medseg.generative.noise import draw_normal, draw_uniform
from medseg.generative.standardise import Standardisation, Standardiser
from medseg.generative.storage import read_folder, write_folder
from medseg.seeding import torch_generator
from medseg.settings import settings

LOG_TWO_PI = math.log(2 * math.pi)
# Size of the last layers at the start, relative to the usual one.
_START_GAIN = 0.1
# Rows of the hidden layer that are computed at once when many codes are drawn per item.
_ROWS_AT_ONCE = 32_768


@settings
class VaeSettings:
    """Size and likelihood of a variational autoencoder, and how it is fitted."""

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
    """The inference network q(z | x) = N(mean, std^2), from u and the condition."""

    def __init__(self, size: int, settings: VaeSettings) -> None:
        super().__init__()
        self.net = _dense([size + settings.condition_size, *settings.hidden, 2 * settings.latent])

    def forward(self, u: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of the code, each (m, latent)."""
        mean, log_std = self.net(_join(u, condition)).chunk(2, dim=1)
        # No posterior is broader than the prior it came from: without the upper limit, an item far
        # from all that were seen draws wild codes and loses thousands of nats.
        return mean, log_std.clamp(-8.0, 1.0)


class Decoder(nn.Module):
    """The likelihood p(u | z) = N(mean, std^2): from (z, condition) to ``mean`` and ``log_std``."""

    def __init__(self, size: int, settings: VaeSettings) -> None:
        super().__init__()
        heads = 2 if settings.decoder_std == "from_code" else 1
        widths = [settings.latent + settings.condition_size, *reversed(settings.hidden)]
        self.net = _dense([*widths, heads * size])
        free = {"shared": (1,), "per_feature": (size,), "from_code": (0,)}[settings.decoder_std]
        self.raw_log_std = nn.Parameter(torch.zeros(free))
        self.log_floor = math.log(settings.std_floor)

    def forward(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean (m, d) and log standard deviation, broadcastable to it."""
        out = self.net(_join(z, condition))
        if self.raw_log_std.numel():
            mean, raw = out, self.raw_log_std
        else:
            mean, raw = out.chunk(2, dim=1)
        # std^2 = floor^2 + exp(raw)^2: smooth, so that a coordinate at the floor still has a
        # gradient.
        return mean, 0.5 * torch.logaddexp(2 * raw, torch.full_like(raw, 2 * self.log_floor))


class Vae(nn.Module):
    """Variational autoencoder of items of any shape, flattened.

    ``log p(x) >= E_q(z|x)[log p(x|z)] - KL(q(z|x) || N(0, I))``, with a dense encoder and decoder
    and a Gaussian likelihood whose deviation is learned above a floor.

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

    def __init__(self, event_shape: tuple[int, ...], settings: VaeSettings) -> None:
        super().__init__()
        self.event_shape = tuple(int(length) for length in event_shape)
        self.settings = settings
        size = math.prod(self.event_shape)
        self.standardiser = Standardiser(size)
        self.encoder = Encoder(size, settings)
        self.decoder = Decoder(size, settings)
        self._reset(torch_generator(0, "vae"))

    def fit(
        self, items: Items, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> FitRecord:
        """Fit to items (m, *event_shape) afresh; the best state on validation items is kept."""
        vectors = self._vectors(items, condition).float()
        _check_fittable(vectors)
        fit = self.settings.fit
        self._reset(generator)
        self.requires_grad_(True)
        train, held = split_items(
            len(vectors), fraction=fit.validation_fraction, generator=generator
        )
        train, held = train.to(vectors.device), held.to(vectors.device)
        self.standardiser.fit(vectors[train], self.settings.standardise)
        u = self.standardiser(vectors)
        noise = self._noise(len(held), like=u, generator=generator)

        def batch_loss(rows: Tensor, progress: float) -> Tensor:
            eps = self._noise(len(rows), like=u, generator=generator)
            warm_up = max(self.settings.beta_warm_up, 1e-9)
            beta = self.settings.beta * min(1.0, progress / warm_up)
            return -self._elbo(u[rows], _rows(condition, rows), eps, beta=beta).mean()

        @torch.no_grad()
        def validation() -> float:
            # The same noise at every check, so that checks differ by the model alone.
            return -float(self._elbo(u[held], _rows(condition, held), noise).mean())

        record = fit_by_gradient(
            self,
            batch_loss,
            validation if len(held) else None,
            rows=train,
            settings=fit,
            generator=generator,
        )
        log_det = float(self.standardiser.log_det)
        nats = record.validation_nats
        return FitRecord(
            record.steps, record.train_nats + log_det, None if nats is None else nats + log_det
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
            u = self.standardiser(self._vectors(items, condition))
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
            u = self.standardiser(self._vectors(items, condition))
            step = max(_ROWS_AT_ONCE // n_codes, 1)
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
        """Return ``n`` items: a code from N(0, I), then the likelihood with its noise."""
        like = self.standardiser.offset
        z = self._noise(n, like=like, generator=generator)
        self._check_condition(n, condition)
        mean, log_std = self.decoder(z, condition)
        noise = draw_normal(tuple(mean.shape), like=like, generator=generator)
        return self.standardiser.inverse(mean + log_std.exp() * noise).reshape(n, *self.event_shape)

    def save(self, folder: Path) -> None:
        """Write ``vae.safetensors`` and ``vae.json``."""
        write_folder(folder, "vae", self.state_dict(), self.describe())

    @classmethod
    def load(cls, folder: Path) -> "Vae":
        """Return the model written by :meth:`save`.

        Raises
        ------
        ModelError
            A file is missing, damaged, or not of a variational autoencoder.
        """
        tensors, description = read_folder(folder, "vae")
        return cls.restore(description, tensors)

    def describe(self) -> dict[str, object]:
        """Return what :meth:`restore` needs beside the tensors, as JSON."""
        dumped = TypeAdapter(VaeSettings).dump_python(self.settings, mode="json")
        return {"kind": "vae", "event_shape": list(self.event_shape), "settings": dumped}

    @classmethod
    def restore(cls, description: dict[str, object], tensors: dict[str, Tensor]) -> "Vae":
        """Return the model of :meth:`describe` and ``state_dict``."""
        adapter = TypeAdapter(tuple[int, ...])
        try:
            options = TypeAdapter(VaeSettings).validate_python(description["settings"])
            model = cls(adapter.validate_python(description["event_shape"]), options)
            model.load_state_dict(tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"The description and tensors of a variational autoencoder must fit, but: {error}",
                hint="The folder was written by another version or changed: fit the model again.",
            ) from error
        return model

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
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)
        return self._log_likelihood(u, z, condition) - beta * divergence

    def _log_likelihood(self, u: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
        mean, log_std = self.decoder(z, condition)
        return _log_normal(u, mean, log_std)

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
            self._log_likelihood(u, z, condition)
            + _log_normal(z, torch.zeros_like(z), torch.zeros_like(z))
            - _log_normal(z, mean, log_std)
        )
        return log_weight.reshape(-1, n_codes).logsumexp(1) - math.log(n_codes)

    def _noise(self, n: int, *, like: Tensor, generator: torch.Generator | None) -> Tensor:
        return draw_normal((n, self.settings.latent), like=like, generator=generator)

    def _vectors(self, items: Tensor, condition: Tensor | None) -> Tensor:
        if tuple(items.shape[1:]) != self.event_shape:
            raise ShapeError(
                f"Items must be (m, {', '.join(map(str, self.event_shape))}), but they are "
                f"{tuple(items.shape)}."
            )
        self._check_condition(len(items), condition)
        return items.flatten(1)

    def _check_condition(self, n: int, condition: Tensor | None) -> None:
        size = self.settings.condition_size
        found = (n, 0) if condition is None else tuple(condition.shape)
        if found != (n, size):
            raise ShapeError(
                f"{n} items of this model need a condition of shape ({n}, {size}), but it is "
                f"{found}."
            )

    @torch.no_grad()
    def _reset(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # Glorot's uniform start: as wide as keeps the variance of values and gradients.
                width = math.sqrt(6 / sum(module.weight.shape))
                shape = tuple(module.weight.shape)
                draw = draw_uniform(shape, like=module.weight, generator=generator)
                module.weight.copy_(width * draw)
                module.bias.zero_()
        # Small first answers: with whitened items the start is close to the Gaussian that is to be
        # beaten, and a fit to few items, stopped early, stays near it.
        for net in (self.encoder.net, self.decoder.net):
            last = net[len(net) - 1].get_parameter("weight")
            last.mul_(_START_GAIN)
        self.decoder.raw_log_std.zero_()


def _dense(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        # Without the layer's own start, which would draw from torch's global generator.
        layers.append(nn.utils.skip_init(nn.Linear, inputs, outputs))
        if i < len(widths) - 2:
            layers.append(nn.ELU())
    return nn.Sequential(*layers)


def _join(values: Tensor, condition: Tensor | None) -> Tensor:
    return values if condition is None else torch.cat([values, condition.to(values)], dim=1)


def _check_fittable(vectors: Tensor) -> None:
    if len(vectors) < 2 or not bool(torch.isfinite(vectors).all()):
        finite = int(torch.isfinite(vectors).all(1).sum())
        raise ModelError(
            f"A fit needs at least 2 items, all finite, but {finite} of {len(vectors)} are finite.",
            hint="Leave out the items with NaN or Inf, or give more.",
        )


def _rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]


def _nothing(u: Tensor, step: int) -> list[None]:
    return [None] * len(u.split(step))


def _log_normal(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    white = (x - mean) * (-log_std).exp()
    return (-0.5 * (white.square() + LOG_TWO_PI) - log_std).sum(1)
