"""One U-Net for two and three dimensions."""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.errors import ConfigError, ShapeError
from medseg.networks.blocks import BlockStyle, ConvBlock, Features, UpStage
from medseg.networks.conv_factory import ConvFactory, TorchConvFactory
from medseg.networks.convolution import PointwiseConv
from medseg.networks.initialise import initialise
from medseg.settings import settings
from medseg.shapes import ImageBatch, LogitBatch


@settings
class UNetSettings:
    """The numbers of a U-Net."""

    #: Spatial axes of the image.
    dims: Literal[2, 3] = 3
    #: Modalities.
    in_channels: int = Field(ge=1)
    #: Regions, or background and classes.
    out_channels: int = Field(ge=1)
    #: Channels per level, the finest first. Each level after the first halves the grid.
    widths: tuple[int, ...] = Field(default=(16, 32, 32, 64), min_length=2)
    #: Convolutions of a level's block on the way down, and on the way up.
    encoder_convs: int = Field(default=2, ge=1)
    decoder_convs: int = Field(default=2, ge=1)
    #: Sum a block's entry to its last convolution.
    residual: bool = True
    #: How a level's features join the upsampled coarser ones.
    skip: Literal["add", "concat"] = "add"
    #: A 1x1 convolution and interpolation, or a transposed convolution of kernel and stride 2.
    upsampling: Literal["nearest", "linear", "transposed"] = "nearest"
    #: Learn shifts: in the normalisation, the upsampling and the head. Never in a convolution
    #: that is normalised after, where they would cancel.
    bias: bool = False
    activation: Literal["relu", "leaky_relu", "elu"] = "relu"
    #: Share of the channels left out at random after each block; 0 for no dropout.
    dropout: float = Field(default=0.0, ge=0, lt=1)


class UNet(nn.Module):
    """A U-Net whose every 3-kernel convolution comes from a `ConvFactory`.

    Any grid size works: a level of odd length is halved with its last voxel kept, and what comes up
    again is cropped. So nothing is computed on padding, and no padding enters the statistics of the
    normalisation. Inside, tensors are in channels-last order. The layers of kernel
    size 3 are named in order of depth: ``stem``, ``encoder.0`` ..., ``decoder.0`` ... (the finest
    last); ``head`` is a 1x1 convolution.

    Parameters
    ----------
    settings : UNetSettings
    conv : ConvFactory, optional
        Makes the 3-kernel convolutions; plain torch ones by default.

    Raises
    ------
    ConfigError
        When a width is not positive.

    References
    ----------
    Ronneberger et al. 2015, "U-Net"; Çiçek et al. 2016, "3D U-Net"; residual blocks as in He et
    al. 2016, "Deep residual learning", figure 2.
    """

    def __init__(self, settings: UNetSettings, conv: ConvFactory | None = None) -> None:
        super().__init__()
        if min(settings.widths) < 1:
            raise ConfigError(
                f"every width is at least 1, but widths = {settings.widths}",
                hint="Give the channels of each level, the finest first.",
            )
        self.settings = settings
        widths, dims = settings.widths, settings.dims
        style = BlockStyle(
            dims=dims,
            conv=conv or TorchConvFactory(dims),
            residual=settings.residual,
            activation=settings.activation,
            bias=settings.bias,
            dropout=settings.dropout,
        )
        convs = settings.encoder_convs
        self.stem = ConvBlock(settings.in_channels, widths[0], style=style, convs=convs)
        self.encoder = nn.ModuleList(
            ConvBlock(fine, coarse, style=style, convs=convs, stride=2)
            for fine, coarse in pairwise(widths)
        )
        self.decoder = nn.ModuleList(
            UpStage(
                coarse,
                fine,
                style=style,
                convs=settings.decoder_convs,
                upsampling=settings.upsampling,
                skip=settings.skip,
            )
            for coarse, fine in pairwise(widths[::-1])
        )
        self.head = PointwiseConv(widths[0], settings.out_channels, bias=settings.bias)
        initialise(self, settings.activation)

    def forward(self, image: ImageBatch) -> LogitBatch:
        """Return logits on the grid of the image.

        Parameters
        ----------
        image : Tensor, shape (b, c, *s)

        Returns
        -------
        Tensor, shape (b, n, *s)

        Raises
        ------
        ShapeError
            When axes or channels are not those of the settings.
        """
        return self.decode(self.encode(image))

    def encode(self, image: ImageBatch) -> list[Features]:
        """Return the features of each level on the way down, the finest first.

        Raises
        ------
        ShapeError
            As in :meth:`forward`.
        """
        self._check(image)
        levels = [self.stem(_channels_last(image))]
        for stage in self.encoder:
            levels.append(stage(levels[-1]))
        return levels

    def decode(self, levels: list[Features]) -> LogitBatch:
        """Return the logits for what :meth:`encode` returned; the list is used up."""
        features = levels.pop()
        for stage in self.decoder:
            features = stage(features, levels.pop())
        return self.head(features)

    def input_block_names(self) -> tuple[str, ...]:
        """Return the name of the finest block on the way down."""
        return ("stem",)

    def output_block_names(self) -> tuple[str, ...]:
        """Return the names of the finest block on the way up and of the head."""
        return (f"decoder.{len(self.decoder) - 1}", "head")

    def _check(self, image: Tensor) -> None:
        wanted = self.settings
        if image.ndim != wanted.dims + 2 or image.shape[1] != wanted.in_channels:
            raise ShapeError(
                f"the network takes (b, {wanted.in_channels}, *s) with {wanted.dims} spatial axes, "
                f"but the image is {tuple(image.shape)}",
                hint="Check the channels and whether the network is for slices or volumes.",
            )
        if 0 in image.shape[2:]:
            raise ShapeError(f"an image has voxels, but its shape is {tuple(image.shape)}")


def _channels_last(image: Tensor) -> Tensor:
    """Return the image in channels-last order, with strides that say so even for one channel."""
    order = torch.channels_last_3d if image.ndim == 5 else torch.channels_last
    if image.shape[1] == 1:
        # `contiguous` sees both orders in one channel and keeps strides that the first
        # convolution would read as channels-first, for the whole network.
        return image.clone(memory_format=order)
    return image.contiguous(memory_format=order)
