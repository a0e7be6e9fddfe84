"""A convolutional variational autoencoder for patches and masks in one, two or three dimensions."""

import itertools
import math

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medseg.errors import ShapeError
from medseg.generative.layers import convolution, dense
from medseg.generative.vae import Decoder, Vae, VaeSettings
from medseg.settings import settings

# Numbers of the widest layer that are computed at once when many codes are drawn per item.
_NUMBERS_AT_ONCE = 2**24


@settings
class ConvVaeSettings(VaeSettings):
    """Size and likelihood of a convolutional autoencoder, and how it is fitted."""

    #: Widths of the dense layers between the convolutions and the code.
    hidden: tuple[int, ...] = ()
    #: Channels of the convolutions; each halves the patch, rounding up.
    channels: tuple[int, ...] = Field(default=(16, 32), min_length=1)
    #: Maps in the condition of an item, each of the size of the patch, such as a mask. The
    #: condition is then the numbers of all maps in a row; without maps, ``condition_size`` numbers.
    condition_maps: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _keeps_neighbours(self) -> "ConvVaeSettings":
        if self.standardise == "whiten":
            raise ValueError(
                "standardise 'whiten' mixes all voxels, and leaves convolutions no neighbours: "
                "use 'scale' or 'none'"
            )
        if self.condition_maps and self.condition_size:
            raise ValueError(
                f"a condition is maps or numbers, but condition_maps is {self.condition_maps} and "
                f"condition_size is {self.condition_size}"
            )
        return self


class ConvVae(Vae):
    """Variational autoencoder of patches (c, *s), with convolutions before and after the code.

    Everything else, bounds, likelihoods, conditions, is as in
    :class:`~medseg.generative.vae.Vae`.

    Parameters
    ----------
    event_shape : sequence of int
        Channels, then one, two or three lengths; any lengths.
    settings : ConvVaeSettings
        Sizes, likelihood and fit.

    Raises
    ------
    ShapeError
        The event has no channels, or more than three lengths.
    """

    kind = "conv_vae"
    settings_type = ConvVaeSettings
    settings: ConvVaeSettings

    def __init__(self, event_shape: tuple[int, ...], settings: ConvVaeSettings) -> None:
        if not 2 <= len(event_shape) <= 4:
            raise ShapeError(
                f"A convolutional model needs items of shape (c, *s) with one to three lengths, "
                f"but it was given {tuple(event_shape)}.",
                hint="Put an axis of length 1 first where there is one channel.",
            )
        super().__init__(event_shape, settings)

    @property
    def condition_size(self) -> int:
        """Numbers in the condition of an item: those of its maps, if it has maps."""
        maps = self.settings.condition_maps * math.prod(self.event_shape[1:])
        return maps or self.settings.condition_size

    def _encoder_net(self) -> nn.Module:
        return _Down(self.event_shape, self.settings)

    def _decoder_net(self) -> nn.Module:
        return _Up(self.event_shape, self.settings)

    def _rows_at_once(self) -> int:
        widest = math.prod(self.event_shape[1:]) * max(self.settings.channels)
        return max(_NUMBERS_AT_ONCE // widest, 1)


def _lengths(event_shape: tuple[int, ...], halvings: int) -> list[tuple[int, ...]]:
    """Return the lengths of the patch before and after each halving."""
    found = [event_shape[1:]]
    for _ in range(halvings):
        found.append(tuple((length + 1) // 2 for length in found[-1]))
    return found


class _Down(nn.Module):
    """From the numbers of a patch and its condition to those of the code."""

    def __init__(self, event_shape: tuple[int, ...], settings: ConvVaeSettings) -> None:
        super().__init__()
        self.event_shape, self.condition_maps = event_shape, settings.condition_maps
        told = settings.condition_maps or settings.condition_size
        widths = [event_shape[0] + told, *settings.channels]
        self.convolutions = nn.ModuleList(
            convolution(len(event_shape) - 1, before, after, kernel_size=3, stride=2, padding=1)
            for before, after in itertools.pairwise(widths)
        )
        smallest = _lengths(event_shape, len(settings.channels))[-1]
        flat = settings.channels[-1] * math.prod(smallest)
        self.head = dense([flat, *settings.hidden, 2 * settings.latent])

    def forward(self, joined: Tensor) -> Tensor:
        size = math.prod(self.event_shape)
        maps = joined[:, :size].reshape(-1, *self.event_shape)
        told = _maps(joined[:, size:], self.event_shape[1:], number=self.condition_maps)
        maps = torch.cat([maps, told], dim=1)
        for layer in self.convolutions:
            maps = nn.functional.elu(layer(maps))
        return self.head(maps.flatten(1))


class _Up(nn.Module):
    """From the numbers of a code and the condition to those of the likelihood."""

    def __init__(self, event_shape: tuple[int, ...], settings: ConvVaeSettings) -> None:
        super().__init__()
        self.latent, self.condition_maps = settings.latent, settings.condition_maps
        self.lengths = _lengths(event_shape, len(settings.channels))[::-1]
        told = settings.condition_maps or settings.condition_size
        flat = settings.channels[-1] * math.prod(self.lengths[0])
        self.head = dense([settings.latent, *reversed(settings.hidden), flat])
        last = Decoder.outputs(settings) * event_shape[0]
        widths = [*reversed(settings.channels), settings.channels[0]]
        # Resized, then convolved: a transposed convolution leaves a chequerboard.
        self.convolutions = nn.ModuleList(
            convolution(len(event_shape) - 1, before + told, after, kernel_size=3, padding=1)
            for before, after in [*itertools.pairwise(widths), (widths[-1], last)]
        )

    def forward(self, joined: Tensor) -> Tensor:
        told = _maps(joined[:, self.latent :], self.lengths[-1], number=self.condition_maps)
        flat = nn.functional.elu(self.head(joined[:, : self.latent]))
        maps = flat.reshape(len(joined), -1, *self.lengths[0])
        for i, layer in enumerate(self.convolutions):
            lengths = self.lengths[min(i + 1, len(self.lengths) - 1)]
            maps = _resize(maps, lengths, mode="nearest")
            maps = torch.cat([maps, _resize(told, lengths, mode="area")], dim=1)
            maps = layer(maps)
            if i < len(self.convolutions) - 1:
                maps = nn.functional.elu(maps)
        return maps.flatten(1)


def _maps(condition: Tensor, lengths: tuple[int, ...], *, number: int) -> Tensor:
    """Return a condition as ``number`` maps, or its numbers as constant maps, (m, k, *lengths)."""
    if number:
        return condition.reshape(len(condition), number, *lengths)
    ones = [1] * len(lengths)
    return condition.reshape(*condition.shape, *ones).expand(*condition.shape, *lengths)


def _resize(maps: Tensor, lengths: tuple[int, ...], *, mode: str) -> Tensor:
    if not maps.shape[1]:
        return maps.new_zeros(len(maps), 0, *lengths)
    same = tuple(maps.shape[2:]) == lengths
    return maps if same else nn.functional.interpolate(maps, size=lengths, mode=mode)
