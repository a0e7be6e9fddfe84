"""The seam where variational or other convolutions enter a network."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

from torch import nn

from medseg.networks.convolution import Conv3d


@runtime_checkable
class ConvFactory(Protocol):
    """Makes every spatial convolution (kernel size 3) of a network."""

    def __call__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, bias: bool
    ) -> nn.Module:
        """Return a convolution that keeps the grid at stride 1 and divides it by ``stride`` else.

        Parameters
        ----------
        in_channels, out_channels : int
        kernel_size : int
            Odd; the same along every axis.
        stride : int
        bias : bool
        """
        ...


class TorchConvFactory:
    """Plain torch convolutions, zero-padded.

    Parameters
    ----------
    dims : {2, 3}
        Spatial axes.

    Examples
    --------
    >>> TorchConvFactory(2)(1, 4, kernel_size=3, bias=False)
    Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """

    def __init__(self, dims: Literal[2, 3]) -> None:
        self.dims = dims

    def __call__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, bias: bool
    ) -> nn.Module:
        """Return a `torch.nn.Conv2d`, or a `torch.nn.Conv3d` that is fast for single volumes."""
        layer = nn.Conv2d if self.dims == 2 else Conv3d
        padding = kernel_size // 2
        return layer(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
