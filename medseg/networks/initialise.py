"""Starting values of plain layers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from medseg.networks.convolution import PointwiseConv
from medseg.networks.norm_act import LEAKY_SLOPE, Activation


def initialise(network: nn.Module, activation: Activation) -> None:
    """Draw every plain convolution's weights so that it keeps the variance of its input.

    Those of kernel size 3 feed an activation and get He's gain for it; 1x1 and transposed ones are
    linear and get 1. Biases are 0. Layers of other classes are left as their factory made
    them. Draws from torch's global generator: see `medseg.seeding.seeded_torch`.

    References
    ----------
    He et al. 2015, "Delving deep into rectifiers", eq. (10) and (15).
    """
    for layer in network.modules():
        if isinstance(layer, PointwiseConv):
            _draw(layer, inputs=layer.weight.shape[1], gain=1.0)
        elif isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d):
            # With kernel = stride, each voxel sums over the input channels alone.
            _draw(layer, inputs=layer.in_channels, gain=1.0)
        elif isinstance(layer, nn.Conv2d | nn.Conv3d):
            _draw(layer, inputs=layer.weight[0].numel(), gain=_gain(activation))


def _draw(layer: PointwiseConv | _ConvNd, *, inputs: int, gain: float) -> None:
    with torch.no_grad():
        layer.weight.normal_(0.0, gain / inputs**0.5)
        if layer.bias is not None:
            layer.bias.zero_()


def _gain(activation: Activation) -> float:
    if activation == "none":
        return 1.0
    if activation == "leaky_relu":
        return nn.init.calculate_gain("leaky_relu", LEAKY_SLOPE)
    # ELU halves the variance of a standard normal about as ReLU does.
    return nn.init.calculate_gain("relu")
