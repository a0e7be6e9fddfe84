"""Denoising autoencoders, whose residual is the slope of a log density."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medseg.generative.autoencoder import Autoencoder, AutoencoderSettings
from medseg.generative.autoencoder_layers import Activation
from medseg.generative.model import Conditions, Items, PerItem
from medseg.generative.noise import draw_normal, draw_uniform
from medseg.generative.standardise import Standardisation
from medseg.settings import settings

# Rows that pass the network at once when a path of many points leads to each item.
_ROWS_AT_ONCE = 65_536


@settings
class DenoisingSettings(AutoencoderSettings):
    """An autoencoder that is shown corrupted items and must answer with the clean ones."""

    #: Widths of the layers up to the code: overcomplete, the corruption regularises.
    widths: tuple[int, ...] = Field(default=(64, 64), min_length=1)
    #: Of the code.
    code_activation: Activation = "elu"
    #: What is done to the items first: whitened, the corruption is as wide as the items everywhere.
    standardise: Standardisation = "whiten"
    #: ``gaussian``: noise is added; ``masking``: numbers are set to 0.
    corruption: Literal["gaussian", "masking"] = "gaussian"
    #: Deviation of the noise in standardised units, where items have rms 1.
    noise_std: float = Field(default=0.5, gt=0)
    #: Chance of a number to be set to 0; the chain of samples moves only as far as is hidden.
    mask_probability: float = Field(default=0.3, gt=0, lt=1)
    #: Corruptions and reconstructions that lead from noise to a sample.
    chain_steps: int = Field(default=100, ge=1)
    #: Points on the way from the mean of the items to an item, at which its energy is integrated.
    path_points: int = Field(default=16, ge=2)


class DenoisingAutoencoder(Autoencoder):
    """Autoencoder r that undoes a corruption: ``r(x + sigma eps)`` is close to x.

    At the optimum ``r(x) - x = sigma^2 grad log p_sigma(x)``, with ``p_sigma`` the density of the
    corrupted items. The energy integrates that slope along the straight way from the mean m of the
    items,

    ``E(x) = integral_0^1 (x - m)' (x_t - r(x_t)) / sigma^2 dt,  x_t = m + t (x - m)``,

    by Gauss-Legendre quadrature; it is ``-log p_sigma(x)`` up to a constant as far as r is at the
    optimum and the way stays where items were seen. A single tied layer with sigmoid units is the
    slope of a closed form, which the integral then equals. With masking there is no such slope, and
    the energy is that of :class:`Autoencoder`.

    Samples are the states of a chain that corrupts and reconstructs, with the residual's noise.

    References
    ----------
    Vincent et al. (2008), Extracting and composing robust features with denoising autoencoders.
    Vincent (2011), A connection between score matching and denoising autoencoders, section 4.
    Alain and Bengio (2014), What regularized auto-encoders learn from the data-generating
    distribution, theorem 1 and section 3.6.
    Bengio et al. (2013), Generalized denoising auto-encoders as generative models, section 3.
    """

    kind = "dae"
    settings_type = DenoisingSettings
    provides = frozenset({"sample", "energy", "encode", "decode", "reconstruct"})
    settings: DenoisingSettings
    item_mean: Tensor
    item_std: Tensor
    chain_std: Tensor

    def __init__(self, event_shape: tuple[int, ...], settings: DenoisingSettings) -> None:
        super().__init__(event_shape, settings)
        self.register_buffer("item_mean", torch.zeros(self.size))
        self.register_buffer("item_std", torch.ones(self.size))
        # Of a number given the corrupted item, as the chain draws it.
        self.register_buffer("chain_std", torch.ones(()))
        points, weights = np.polynomial.legendre.leggauss(settings.path_points)
        self._points = [float(point) for point in (points + 1) / 2]
        self._weights = [float(weight) for weight in weights / 2]

    def corrupt(self, u: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return corrupted vectors, (m, d), and with masking which numbers were set to 0."""
        if self.settings.corruption == "gaussian":
            return u + self.settings.noise_std * _noise(u, generator), None
        chance = torch.full_like(u, self.settings.mask_probability)
        hidden = _draw_bits(chance, generator) > 0
        return u.masked_fill(hidden, 0), hidden

    def energy(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
    ) -> PerItem:
        """Return the integrated slope in nats up to a constant, (m,); see the class."""
        if self.settings.corruption != "gaussian":
            return super().energy(items, generator=generator, condition=condition)
        with torch.autocast(device_type=items.device.type, enabled=False):
            u = self.standardiser(self.vectors(items, condition))
            at_once = max(_ROWS_AT_ONCE // self.settings.path_points, 1)
            parts = [self._path_energy(rows) for rows in u.split(at_once)]
            return torch.cat(parts) - self.standardiser.log_det

    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> Items:
        """Return the last states of ``n`` chains, started at noise as wide as the items."""
        self.check_condition(n, condition)
        like = self.item_mean.expand(n, self.size)
        binary = self.settings.loss == "cross_entropy"
        u = (
            _draw_bits(like, generator)
            if binary
            else like + self.item_std * _noise(like, generator)
        )
        for _ in range(self.settings.chain_steps):
            seen, hidden = self.corrupt(u, generator)
            mean = self.answer(self.layers.encode(seen))
            drawn = (
                _draw_bits(mean, generator)
                if binary
                else mean + self.chain_std * _noise(mean, generator)
            )
            # What masking has left is known, and only the rest drawn anew; but a 0 that is shown
            # of an item of zeros and ones may be either.
            u = drawn if hidden is None or binary else torch.where(hidden, drawn, u)
        return self._items(u)

    def _path_energy(self, u: Tensor) -> Tensor:
        away = u - self.item_mean
        points = torch.tensor(self._points, dtype=u.dtype, device=u.device)
        weights = torch.tensor(self._weights, dtype=u.dtype, device=u.device)
        path = self.item_mean + points[:, None, None] * away
        shown = path.reshape(-1, self.size)
        slope = (shown - self.answer(self.layers.encode(shown))).reshape(path.shape)
        along = torch.einsum("t,tmd,md->m", weights, slope, away)
        return along / self.settings.noise_std**2

    def _measure(self, train: Tensor, held: Tensor, generator: torch.Generator) -> None:
        super()._measure(train, held, generator)
        self.item_mean.copy_(train.mean(0))
        self.item_std.copy_(train.std(0, correction=0))
        seen, hidden = self.corrupt(held, generator)
        error = (held - self.answer(self.layers.encode(seen))).square()
        if hidden is not None and bool(hidden.any()):
            error = error[hidden]
        self.chain_std.copy_(error.mean().sqrt().clamp(min=1e-3))


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return draw_normal(tuple(like.shape), like=like, generator=generator)


def _draw_bits(probability: Tensor, generator: torch.Generator) -> Tensor:
    """Return 1 with the given probabilities, else 0."""
    shape = tuple(probability.shape)
    drawn = draw_uniform(shape, like=probability, generator=generator)
    return ((drawn + 1) / 2 < probability).to(probability)
