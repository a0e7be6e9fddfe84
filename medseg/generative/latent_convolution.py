"""A generator whose code is a small convolutional network: a prior for restoration."""

import itertools
import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medseg.errors import ShapeError
from medseg.generative.base import GenerativeBase
from medseg.generative.fitting import FitRecord, FitSettings, fit_by_gradient
from medseg.generative.layers import convolution, reset
from medseg.generative.model import Codes, Conditions, Items
from medseg.generative.noise import draw_normal
from medseg.seeding import torch_generator
from medseg.settings import settings

_KERNEL = 3
# Spread of the training items' codes around their common start, relative to its own.
_START_SPREAD = 0.1
_SLOPE = 0.2


@settings
class LatentConvolutionSettings:
    """Sizes of the two networks, and how they are fitted."""

    #: What a code is: the weights of an item's own network, or its latent maps themselves, which is
    #: plain latent optimisation.
    code: Literal["network", "maps"] = "network"
    #: Channels of the fixed noise that an item's network looks at, and of its hidden layer.
    noise_channels: int = Field(default=4, ge=1)
    hidden: int = Field(default=4, ge=1)
    #: Latent maps.
    maps: int = Field(default=4, ge=1)
    #: Channels of the shared generator's layers, the outermost first; each doubles the maps.
    channels: tuple[int, ...] = Field(default=(16, 32), min_length=1)
    #: Weight of the pull of the codes to their common start, in nats per item at its own size.
    pull: float = Field(default=1.0, ge=0)
    fit: FitSettings = FitSettings(learning_rate=1e-2, weight_decay=0.0, validation_fraction=0.0)


class LatentConvolution(GenerativeBase):
    """A generator ``g`` shared by all items, and latent maps ``z = f_phi(s)`` of each.

    ``f_phi`` is a network of two convolutions with weights ``phi`` for each item, ``s`` fixed
    noise. ``phi`` is the code: ``min over g, phi_i of sum_i |g(f_phi_i(s)) - x_i|^2``. It is found
    by :func:`medseg.generative.restoration.restore`, also from a part of an item, and has a normal
    prior with the moments of the training items' codes.

    Parameters
    ----------
    event_shape : sequence of int
        Channels, then one, two or three lengths.
    settings : LatentConvolutionSettings

    Raises
    ------
    ShapeError
        The event has no channels, or more than three lengths.

    References
    ----------
    Athar, Burnaev and Lempitsky (2019), Latent convolutional models, equation 1; the box around the
    codes is a pull and a normal prior here, and the loss is squared.
    Bojanowski et al. (2018), Optimizing the latent space of generative networks (codes "maps").
    """

    kind = "lcm"
    settings_type = LatentConvolutionSettings
    provides = frozenset({"decode"})
    settings: LatentConvolutionSettings
    noise_maps: Tensor
    start: Tensor
    code_mean: Tensor
    code_std: Tensor
    noise: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, event_shape: tuple[int, ...], settings: LatentConvolutionSettings) -> None:
        super().__init__(event_shape, settings)
        if not 2 <= len(self.event_shape) <= 4:
            raise ShapeError(
                f"A latent convolutional model needs items of shape (c, *s) with one to three "
                f"lengths, but it was given {self.event_shape}.",
                hint="Put an axis of length 1 first where there is one channel.",
            )
        self._dims = len(self.event_shape) - 1
        lengths = [self.event_shape[1:]]
        for _ in settings.channels:
            lengths.append(tuple((length + 1) // 2 for length in lengths[-1]))
        self._lengths = lengths[::-1]
        inner = tuple(reversed(settings.channels))
        widths = [settings.maps, *inner, self.event_shape[0]]
        self.generator = nn.ModuleList(
            convolution(self._dims, before, after, kernel_size=_KERNEL, padding=1)
            for before, after in itertools.pairwise(widths)
        )
        size = self._code_size()
        self.register_buffer("noise_maps", torch.zeros(settings.noise_channels, *self._lengths[0]))
        self.register_buffer("start", torch.zeros(size))
        self.register_buffer("code_mean", torch.zeros(size))
        self.register_buffer("code_std", torch.ones(size))
        for name in ("noise", "scale"):
            self.register_buffer(name, torch.ones(()))
        self.register_buffer("centre", torch.zeros(()))
        reset(self, generator=torch_generator(0, "lcm"))

    def decode(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return ``g(f_phi(s))`` of each code phi, (m, *event_shape)."""
        self.check_codes(codes, len(self.start))
        self.check_condition(len(codes), condition)
        maps = self.latent_maps(codes)
        for place, layer in enumerate(self.generator):
            lengths = self._lengths[min(place + 1, len(self._lengths) - 1)]
            if tuple(maps.shape[2:]) != lengths:
                maps = functional.interpolate(maps, size=lengths, mode="nearest")
            maps = layer(maps)
            if place < len(self.generator) - 1:
                maps = functional.elu(maps)
        return self.centre + self.scale * maps

    def latent_maps(self, codes: Codes) -> Tensor:
        """Return ``f_phi(s)``, (m, maps, *t), each item by its own network."""
        n, options = len(codes), self.settings
        if options.code == "maps":
            return codes.reshape(n, options.maps, *self._lengths[0])
        maps = self.noise_maps[None]
        sizes = self._layer_sizes()
        parts = codes.split([size for shape in sizes for size in shape], dim=1)
        for place, (weight, bias) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
            # A matrix product for each item: a convolution with as many groups as items is slow.
            maps = weight.reshape(n, bias.shape[1], -1) @ _neighbourhoods(maps) + bias[..., None]
            if place == 0:
                maps = functional.leaky_relu(maps, _SLOPE)
            maps = maps.reshape(n, -1, *self._lengths[0])
        return maps

    def _layer_sizes(self) -> list[tuple[int, int]]:
        """Return the numbers of weights and of biases of each layer of an item's network."""
        options = self.settings
        widths = (options.noise_channels, options.hidden, options.maps)
        kernel = _KERNEL**self._dims
        return [(kernel * a * b, b) for a, b in itertools.pairwise(widths)]

    def _code_size(self) -> int:
        if self.settings.code == "maps":
            return self.settings.maps * math.prod(self._lengths[0])
        return sum(itertools.chain.from_iterable(self._layer_sizes()))

    def _fit(
        self, items: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        fit, like = self.settings.fit, self.start
        reset(self, generator=generator)
        self.centre.copy_(items.mean())
        self.scale.copy_(items.std())
        self.noise_maps.copy_(
            draw_normal(tuple(self.noise_maps.shape), like=like, generator=generator)
        )
        unit = self._draw_start(generator)
        spread = draw_normal((len(items), len(like)), like=like, generator=generator)
        # One common start: hidden channels of all items then mean the same.
        codes = nn.Parameter(self.start + _START_SPREAD * unit * spread)
        learned = nn.ParameterList([codes, *self.generator.parameters()])

        def batch_loss(rows: Tensor, progress: float) -> Tensor:
            away = (self.decode(codes[rows]) - items[rows]) / self.scale
            pull = ((codes[rows] - self.start) / unit).square().sum(1).mean()
            return away.square().flatten(1).sum(1).mean() + self.settings.pull * 0.5 * pull

        rows = torch.arange(len(items), device=items.device)
        record = fit_by_gradient(
            learned, batch_loss, None, rows=rows, settings=fit, generator=generator
        )
        with torch.no_grad():
            self.code_mean.copy_(codes.mean(0))
            self.code_std.copy_(codes.std(0).clamp(min=1e-3))
            found = torch.cat([self.decode(part) for part in codes.split(256)])
            self.noise.copy_((found - items).square().mean().clamp(min=1e-8))
        return record

    def _draw_start(self, generator: torch.Generator) -> Tensor:
        """Draw the common start and return the size of its numbers, (k,)."""
        unit = torch.ones_like(self.start)
        if self.settings.code == "maps":
            self.start.zero_()
            return unit
        sizes = [size for shape in self._layer_sizes() for size in shape]
        layers = [layer for layer in self._layer_sizes() for _ in layer]
        for part, (weights, outputs) in zip(unit.split(sizes), layers, strict=True):
            part.fill_(math.sqrt(2 * outputs / weights))
        draw = draw_normal(tuple(unit.shape), like=unit, generator=generator)
        self.start.copy_(unit * draw)
        return unit


def _neighbourhoods(maps: Tensor) -> Tensor:
    """Return the 3 x ... x 3 voxels around each one, 0 beyond the edge, (m, c * 3^d, voxels)."""
    lengths = maps.shape[2:]
    padded = functional.pad(maps, [1] * (2 * len(lengths)))
    shifted = [
        padded[(..., *(slice(a, a + n) for a, n in zip(offset, lengths, strict=True)))]
        for offset in itertools.product(range(_KERNEL), repeat=len(lengths))
    ]
    return torch.stack(shifted, dim=2).flatten(3).flatten(1, 2)
