"""Networks from slices to slices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.networks.convolution import PointwiseConv
from medseg.networks.unet import UNet, UNetSettings
from medseg.shapes import ImageBatch
from medseg.translation.slices import centre_channels


def slice_unet(
    in_channels: int, out_channels: int, *, widths: tuple[int, ...], silent: bool = True
) -> UNet:
    """Return a U-Net for slices; silent, its last layer is 0 and what it adds begins at nothing."""
    network = UNet(
        UNetSettings(
            dims=2,
            in_channels=in_channels,
            out_channels=out_channels,
            widths=widths,
            encoder_convs=2,
            decoder_convs=1,
            residual=False,
            skip="concat",
            upsampling="nearest",
            bias=True,
            activation="leaky_relu",
        )
    )
    if silent:
        with torch.no_grad():
            network.head.weight.zero_()
    return network


class Generator(nn.Module):
    """From stacks of neighbouring slices to slices: a linear map of the voxel plus a U-Net.

    With ``copies`` the linear part starts by copying each slice of the first modality (or each
    modality, where as many come out as go in), and the U-Net starts at 0. So training starts at the
    identity, and a contrast that is a linear map of another needs no U-Net. What is 0 in all
    modalities of a slice lies outside the brain and stays 0.

    Parameters
    ----------
    modalities : (int, int)
        How many go in and come out.
    reach : int
        Neighbours on each side of a slice that go in.
    widths : tuple of int
        Of the U-Net's levels.
    whole_stack : bool
        Whether the neighbours come out too; they have to where another generator takes over.
    copies : bool
        Start as the identity rather than at random.
    """

    def __init__(
        self,
        modalities: tuple[int, int],
        *,
        reach: int,
        widths: tuple[int, ...],
        whole_stack: bool = False,
        copies: bool = True,
    ) -> None:
        super().__init__()
        inputs, outputs = modalities
        size = 2 * reach + 1
        self._inputs, self._outputs, self._size = inputs, outputs, size
        self._kept = list(range(size)) if whole_stack else [reach]
        channels = outputs * len(self._kept)
        self.linear = PointwiseConv(inputs * size, channels, bias=True)
        self.unet = slice_unet(inputs * size, channels, widths=widths, silent=copies)
        with torch.no_grad():
            self.linear.weight.zero_()
            if self.linear.bias is not None:
                self.linear.bias.zero_()
            for channel in range(channels) if copies else ():
                output, place = divmod(channel, len(self._kept))
                source = output if inputs == outputs else 0
                self.linear.weight[channel, source * size + self._kept[place]] = 1.0

    @property
    def out_channels(self) -> int:
        """Channels that come out."""
        return self._outputs * len(self._kept)

    def forward(self, image: ImageBatch) -> ImageBatch:
        """Return slices (b, out, *s) of stacks (b, in * (2 reach + 1), *s)."""
        made = self.linear(image) + self.unet(image)
        return made * self.inside(image)

    def inside(self, image: Tensor) -> Tensor:
        """Return 1 where a voxel of the slices that come out is inside the brain, (b, out, *s)."""
        slices = (image != 0).unflatten(1, (self._inputs, self._size)).any(1)[:, self._kept]
        return slices.repeat(1, self._outputs, *[1] * (image.ndim - 2)).to(image.dtype)


class CyclePair(nn.Module):
    """Two generators, there and back, which start at random.

    Two copies of the identity would close the cycle perfectly, and its absolute value has a kink
    there that no discriminator pulls them out of.

    Parameters
    ----------
    modalities : (int, int)
        Of the first and the second domain.
    reach : int
        Neighbours on each side; stacks go in and come out.
    widths : tuple of int
    identity : bool
        Also return what each makes of its own output's domain, for a loss that asks for no change;
        not where the domains differ in their number of modalities.
    """

    def __init__(
        self,
        modalities: tuple[int, int],
        *,
        reach: int,
        widths: tuple[int, ...],
        identity: bool = False,
    ) -> None:
        super().__init__()
        first, second = modalities
        self.there, self.back = (
            Generator(between, reach=reach, widths=widths, whole_stack=True, copies=False)
            for between in ((first, second), (second, first))
        )
        self.channels = (self.back.out_channels, self.there.out_channels)
        self.identity = identity and first == second
        self._centres = centre_channels(second, reach=reach)

    @property
    def sizes(self) -> list[int]:
        """Channels of each part that :meth:`forward` returns."""
        a, b = self.channels
        return [b, a, a, b, *([b, a] if self.identity else [])]

    def forward(self, image: ImageBatch) -> ImageBatch:
        """Return all that a step needs, one beside the other.

        Parameters
        ----------
        image : Tensor, shape (b, first + second, *s)
            Stacks x of the first and y of the second domain, of different subjects.

        Returns
        -------
        Tensor, shape (b, sum of sizes, *s)
            ``G(x), F(y), F(G(x)), G(F(y))`` and, with ``identity``, ``G(y), F(x)``. One call, so
            that a strategy for several devices sees one forward.
        """
        x, y = image.split(list(self.channels), dim=1)
        second, first = self.there(x), self.back(y)
        parts = [second, first, self.back(second), self.there(first)]
        if self.identity:
            parts += [self.there(y), self.back(x)]
        return torch.cat(parts, dim=1)

    def translate(self, image: ImageBatch) -> ImageBatch:
        """Return the middle slices in the second domain of stacks of the first."""
        return self.there(image)[:, self._centres]
