"""A copy of a network in layers that tracers and compilers understand."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medseg.errors import ModelError, ShapeError
from medseg.networks.convolution import Conv3d, PointwiseConv
from medseg.networks.norm_act import LEAKY_SLOPE, Activation, InstanceNormAct
from medseg.networks.unet import UNet
from medseg.variational.convert import to_deterministic


def plain_network(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU that computes the same and can be traced for any grid and batch.

    What is fast in torch is in the way of a compiler: a custom autograd function, a single volume
    cut into two slabs, matrix products in the place of 1x1 convolutions, a fixed memory order. Each
    is exchanged for the plain operation that it computes. A variational network gives its means.

    Parameters
    ----------
    network : nn.Module
        Not changed.
    """
    copy = frozen_copy(network).cpu()
    for parent in list(copy.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, _plain_layer(child))
    return _PlainUNet(copy) if isinstance(copy, UNet) else _plain_layer(copy)


def frozen_copy(network: nn.Module) -> nn.Module:
    """Return a deep copy for inference; a variational network gives its means, or held sample."""
    return to_deterministic(network).eval().requires_grad_(False)


class ImageLayout(NamedTuple):
    """What a network's first convolution takes."""

    channels: int
    dims: int

    def check(self, images: Tensor) -> None:
        """Raise ``ShapeError`` for images that are not (b, channels, *s) with at least one voxel.

        Compiled code would answer with an error of its own, or with nonsense.
        """
        wrong = images.ndim != self.dims + 2 or images.shape[1] != self.channels
        if wrong or 0 in images.shape:
            raise ShapeError(
                f"the network takes (b, {self.channels}, *s) with {self.dims} spatial axes, but "
                f"the images are {tuple(images.shape)}",
                hint="Check the channels and whether the network is for slices or volumes.",
            )


def image_layout(network: nn.Module) -> ImageLayout:
    """Return what images a network takes.

    Raises
    ------
    ModelError
        It has no convolution to read that from.
    """
    if isinstance(network, UNet):
        return ImageLayout(network.settings.in_channels, network.settings.dims)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            return ImageLayout(layer.in_channels, len(layer.kernel_size))
    raise ModelError(
        f"an engine is made for a network with convolutions, but {type(network).__name__} has none",
        hint="Use the engine eager.",
    )


def example_images(network: nn.Module) -> Tensor:
    """Return a small batch to trace with.

    All axes of all levels of a U-Net are odd in it, so that the traced way is the one that crops,
    which is right for even ones too.
    """
    layout = image_layout(network)
    levels = len(network.settings.widths) if isinstance(network, UNet) else 4
    return torch.zeros(2, layout.channels, *[2 ** (levels - 1) + 1] * layout.dims)


def _plain_layer(layer: nn.Module) -> nn.Module:
    if isinstance(layer, InstanceNormAct):
        return _PlainNormAct(layer)
    if isinstance(layer, PointwiseConv):
        return _PlainPointwise(layer)
    if isinstance(layer, Conv3d):
        plain = nn.Conv3d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # pyright: ignore[reportArgumentType]
            layer.stride,  # pyright: ignore[reportArgumentType]
            layer.padding,  # pyright: ignore[reportArgumentType]
            bias=layer.bias is not None,
            device="meta",
        )
        plain.weight, plain.bias = layer.weight, layer.bias
        return plain
    return layer


class _PlainUNet(nn.Module):
    """`UNet.forward` without its checks and memory order."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.stem, self.head = network.stem, network.head
        self.encoder, self.decoder = network.encoder, network.decoder

    def forward(self, image: Tensor) -> Tensor:
        features, skips = self.stem(image), []
        for stage in self.encoder:
            skips.append(features)
            features = stage(features)
        for stage in self.decoder:
            features = stage(features, skips.pop())
        return self.head(features)


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda image: F.leaky_relu(image, LEAKY_SLOPE),
    "elu": F.elu,
    "none": lambda image: image,
}


class _PlainNormAct(nn.Module):
    def __init__(self, layer: InstanceNormAct) -> None:
        super().__init__()
        self.activation: Activation = layer.activation
        self.eps = layer.eps
        self.gain = layer.gain
        # Compilers know instance normalisation with both parameters only.
        absent = nn.Parameter(torch.zeros_like(layer.gain), requires_grad=False)
        self.shift = absent if layer.shift is None else layer.shift

    def forward(self, image: Tensor, residual: Tensor | None = None) -> Tensor:
        # Not `F.instance_norm`, which refuses an image of one voxel.
        out = torch.instance_norm(
            image, self.gain, self.shift, None, None, True, 0.0, self.eps, False
        )
        return _ACTIVATIONS[self.activation](out if residual is None else out + residual)


class _PlainPointwise(nn.Module):
    def __init__(self, layer: PointwiseConv) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, image: Tensor) -> Tensor:
        convolve = F.conv2d if image.ndim == 4 else F.conv3d
        kernel = self.weight.reshape(*self.weight.shape, *[1] * (image.ndim - 2))
        return convolve(image, kernel, self.bias)
