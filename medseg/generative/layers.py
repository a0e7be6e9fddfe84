"""Layers of small networks, started from a given generator and never from torch's global one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg.generative.noise import draw_uniform

_CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a dense layer without a start: call :func:`reset` before use."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[return-value]


def dense(widths: Sequence[int], *, activation: type[nn.Module] = nn.ELU) -> nn.Sequential:
    """Return dense layers with an activation between each two, without a start."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers.append(linear(inputs, outputs))
        if i < len(widths) - 2:
            layers.append(activation())
    return nn.Sequential(*layers)


def convolution(
    dims: int, inputs: int, outputs: int, *, kernel_size: int, stride: int = 1, padding: int = 0
) -> nn.Module:
    """Return a convolution in 1, 2 or 3 dimensions, without a start."""
    return nn.utils.skip_init(
        _CONVOLUTIONS[dims][0], inputs, outputs, kernel_size, stride=stride, padding=padding
    )


def transposed_convolution(
    dims: int, inputs: int, outputs: int, *, kernel_size: int, stride: int = 1, padding: int = 0
) -> nn.Module:
    """Return a transposed convolution in 1, 2 or 3 dimensions, without a start."""
    return nn.utils.skip_init(
        _CONVOLUTIONS[dims][1], inputs, outputs, kernel_size, stride=stride, padding=padding
    )


def join(values: Tensor, condition: Tensor | None) -> Tensor:
    """Return values (m, d) and the condition (m, c) side by side; without one, the values."""
    return values if condition is None else torch.cat([values, condition.to(values)], dim=1)


def rows_of(condition: Tensor | None, rows: Tensor) -> Tensor | None:
    """Return some rows of a condition, if there is one."""
    return None if condition is None else condition[rows]


@torch.no_grad()
def reset(module: nn.Module, *, generator: torch.Generator) -> None:
    """Start every dense layer and convolution in ``module`` afresh; normalisations to identity.

    Weights are uniform, as wide as keeps the variance of values and of gradients alike; biases 0.

    References
    ----------
    Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward neural
    networks, equation 16.
    """
    for part in module.modules():
        weight, bias = getattr(part, "weight", None), getattr(part, "bias", None)
        if isinstance(part, nn.Linear | nn.modules.conv._ConvNd) and isinstance(weight, Tensor):
            field = math.prod(weight.shape[2:])
            width = math.sqrt(6 / (field * (weight.shape[0] + weight.shape[1])))
            draw = draw_uniform(tuple(weight.shape), like=weight, generator=generator)
            weight.copy_(width * draw)
            if isinstance(bias, Tensor):
                bias.zero_()
        elif isinstance(part, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm):
            part.reset_parameters()
