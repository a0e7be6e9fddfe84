"""The two parts a U-Net is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medseg.networks.conv_factory import ConvFactory
from medseg.networks.convolution import PointwiseConv
from medseg.networks.dropout import ChannelDropout
from medseg.networks.norm_act import Activation, InstanceNormAct
from medseg.shapes import ImageBatch

#: Output of a block, on a grid and with channels of its own.
Features = Float[Tensor, "b out ..."]
Upsampling = Literal["nearest", "linear", "transposed"]


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of a network share.

    Parameters
    ----------
    dims : {2, 3}
        Spatial axes.
    conv : ConvFactory
        Makes the convolutions of kernel size 3.
    residual : bool
        Sum a block's entry to its last convolution.
    activation : {"relu", "leaky_relu", "elu", "none"}
    bias : bool
        Learn the shifts of normalisations and the biases of convolutions without one.
    dropout : float
        Share of the channels left out at random after each block.
    """

    dims: Literal[2, 3]
    conv: ConvFactory
    residual: bool
    activation: Activation
    bias: bool
    dropout: float = 0.0


class ConvBlock(nn.Module):
    """Convolutions of kernel size 3, each with instance normalisation and activation.

    Where the block keeps its shape, the residual sum goes round all of it. Where it changes width
    or grid, the first convolution does that and the sum goes round the others: no projection is
    needed, and everything inside stays normalised.

    Parameters
    ----------
    in_channels, out_channels : int
    style : BlockStyle
    convs : int
        Convolutions, at least one.
    stride : int
        Of the first convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, style: BlockStyle, convs: int, stride: int = 1
    ) -> None:
        super().__init__()
        self.residual = style.residual
        self.keeps_shape = stride == 1 and in_channels == out_channels
        inputs = [in_channels] + [out_channels] * (convs - 1)
        strides = [stride] + [1] * (convs - 1)
        self.convs = nn.ModuleList(
            style.conv(width, out_channels, kernel_size=3, stride=step, bias=False)
            for width, step in zip(inputs, strides, strict=True)
        )
        self.norms = nn.ModuleList(
            InstanceNormAct(out_channels, style.activation, shift=style.bias) for _ in inputs
        )
        self.dropout = ChannelDropout(out_channels, style.dropout) if style.dropout > 0 else None

    def forward(self, image: ImageBatch) -> Features:
        """Return the block's features, on the grid divided by its stride."""
        entry = image if self.keeps_shape else None
        last = len(self.convs) - 1
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            image = norm(conv(image), entry if self.residual and i == last else None)
            if entry is None:
                entry = image
        return image if self.dropout is None else self.dropout(image)


class UpStage(nn.Module):
    """One level on the way up: finer grid, joined with the level's own features, convolved.

    Parameters
    ----------
    coarse, fine : int
        Channels of the level below, and of this one.
    style : BlockStyle
    convs : int
        Convolutions of kernel size 3.
    upsampling : {"nearest", "linear", "transposed"}
        A 1x1 convolution and interpolation, or a transposed convolution of kernel and stride 2.
    skip : {"add", "concat"}
    """

    def __init__(
        self,
        coarse: int,
        fine: int,
        *,
        style: BlockStyle,
        convs: int,
        upsampling: Upsampling,
        skip: Literal["add", "concat"],
    ) -> None:
        super().__init__()
        self.skip = skip
        self.scaled_by: Literal["transpose", "nearest", "bilinear", "trilinear"]
        if upsampling == "transposed":
            layer = nn.ConvTranspose2d if style.dims == 2 else nn.ConvTranspose3d
            self.project = layer(coarse, fine, 2, 2, bias=style.bias)
            self.scaled_by = "transpose"
        else:
            self.project = PointwiseConv(coarse, fine, bias=style.bias)
            linear = "bilinear" if style.dims == 2 else "trilinear"
            self.scaled_by = "nearest" if upsampling == "nearest" else linear
        joined = 2 * fine if skip == "concat" else fine
        self.block = ConvBlock(joined, fine, style=style, convs=convs)

    def forward(
        self, image: Float[Tensor, "b coarse *t"], skip: Float[Tensor, "b fine *s"]
    ) -> Float[Tensor, "b fine *s"]:
        """Return the features on the finer grid.

        Parameters
        ----------
        image : Tensor, shape (b, coarse, *t)
        skip : Tensor, shape (b, fine, *s)
            Each of s is twice that of t, or one less.
        """
        # The 1x1 convolution comes first: it commutes with interpolation and is 2**dims times
        # cheaper on the coarse grid.
        image = self.project(image)
        if self.scaled_by != "transpose":
            image = F.interpolate(image, scale_factor=2.0, mode=self.scaled_by)
        cropped = image[(..., *(slice(length) for length in skip.shape[2:]))]
        if self.skip == "concat":
            return self.block(torch.cat([skip, cropped], dim=1))
        # A sum into a true crop would leave gaps in memory.
        same = image.shape[2:] == skip.shape[2:]
        return self.block(image.add_(skip) if same else cropped + skip)
