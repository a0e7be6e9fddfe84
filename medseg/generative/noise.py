"""Random numbers that do not depend on the device they are used on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Of every normal log density.
LOG_TWO_PI = math.log(2 * math.pi)


def draw_normal(
    shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Return standard normal numbers with the type and on the device of ``like``.

    They are drawn where the generator lives, so that a CPU generator gives one stream on every
    device; without a generator, from torch's global one.
    """
    device = generator.device if generator is not None else like.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def draw_uniform(shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return numbers uniform on [-1, 1), drawn like :func:`draw_normal`."""
    numbers = torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return (2 * numbers - 1).to(like.device)


def draw_seed(generator: torch.Generator) -> int:
    """Return a seed for a library that takes an integer instead of a torch generator."""
    return int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
