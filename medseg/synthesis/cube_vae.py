"""The convolutional VAE for cubes: many numbers an item, one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.generative.base import GenerativeBase
from medseg.generative.catalog import KINDS, load_model, make_model
from medseg.generative.conv_vae import ConvVae, ConvVaeSettings
from medseg.generative.standardise import Standardisation, Standardiser
from medseg.generative.vae import Decoder, Encoder
from medseg.seeding import torch_generator

# Numbers in an item from which a full matrix of them costs gigabytes and minutes.
_MOST_FOR_MATRIX = 4608
_WITH_MATRIX = ("pca", "ppca", "gmm", "flow", "vae", "conv_vae", "ae", "dae", "som")


class _Scale(nn.Module):
    """What :class:`Standardiser` does for "none" and "scale", with two numbers for its matrices."""

    offset: Tensor
    scale: Tensor
    log_det: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("offset", torch.zeros(size))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("log_det", torch.zeros(()))

    def fit(self, vectors: Tensor, kind: Standardisation) -> None:
        """Measure vectors (m, d); nothing for "none"."""
        self.offset.zero_()
        self.scale.fill_(1.0)
        if kind != "none":
            self.offset.copy_(vectors.mean(0))
            self.scale.copy_((vectors - self.offset).square().mean().sqrt().clamp(min=1e-12))
        self.log_det.copy_(-self.size * self.scale.log())

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``u`` for x, both (m, d)."""
        return (vectors - self.offset) / self.scale

    def inverse(self, vectors: Tensor) -> Tensor:
        """Return x for ``u``, both (m, d)."""
        return vectors * self.scale + self.offset


class CubeVae(ConvVae):
    """:class:`~medseg.generative.conv_vae.ConvVae` without the matrices of a full standardiser.

    Parameters
    ----------
    event_shape : sequence of int
    settings : ConvVaeSettings
    """

    kind = "cube_vae"

    def __init__(self, event_shape: tuple[int, ...], settings: ConvVaeSettings) -> None:
        # The parent's constructor would make two matrices of (numbers in a cube)^2 first.
        GenerativeBase.__init__(self, event_shape, settings)
        self.standardiser = cast(Standardiser, _Scale(self.size))
        self.encoder = Encoder(self._encoder_net())
        self.decoder = Decoder(self._decoder_net(), self.size, settings)
        self._reset(torch_generator(0, "vae"))


def make_cube_model(
    kind: str, event_shape: tuple[int, ...], given: Mapping[str, Any]
) -> GenerativeBase:
    """Return an unfitted model of a kind of the catalogue, or "cube_vae".

    Raises
    ------
    ConfigError
        An unknown kind or setting, or a kind that keeps a full matrix for a cube this large.
    """
    if kind == "cube_vae":
        try:
            options = TypeAdapter(ConvVaeSettings).validate_python(dict(given))
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ConfigError(
                f"The settings of kind 'cube_vae' must be valid, but {'; '.join(faults)}.",
                hint="See ConvVaeSettings for what may be set.",
            ) from error
        return CubeVae(event_shape, options)
    size = math.prod(event_shape)
    binary = given.get("visible") == "bernoulli"
    if kind in _WITH_MATRIX and size > _MOST_FOR_MATRIX and not binary:
        raise ConfigError(
            f"Kind {kind!r} keeps a matrix of all pairs of numbers in an item, so a cube may have "
            f"{_MOST_FOR_MATRIX} numbers at most, but {event_shape} has {size}.",
            hint="Use cube_vae, gan or dbn, or a smaller side.",
        )
    return make_model(kind, event_shape, given)


def known_kinds() -> dict[str, type[GenerativeBase]]:
    """Return every kind that lesions can be learned with, by name."""
    return {**KINDS, "cube_vae": CubeVae}


def load_cube_model(folder: Path) -> GenerativeBase:
    """Return the model in a folder, of whichever kind it is.

    Raises
    ------
    ModelError
        The folder holds no model, or a damaged one.
    """
    if (folder / "cube_vae.json").is_file():
        return CubeVae.load(folder)
    return load_model(folder)
