"""Convolutions that stay fast where torch's own choice of kernel on the CPU is slow."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medseg.shapes import ImageBatch

#: Below this product of channels and the first two axes, torch takes a single float32 volume away
#: from oneDNN to a kernel of its own (ATen, Convolution.cpp, ``use_mkldnn``).
SINGLE_VOLUME_LIMIT = 20480
#: Where an axis of the result is as short, oneDNN's bf16 gradient of the kernel is wrong: parts of
#: it are never written (torch 2.13, processors with avx512_bf16, kernels of 3 x 3 x 3).
SHORT_AXIS = 2


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d`, with a single small volume computed through `convolve_3d`.

    Only for one dilation, one group and zero padding of an integer width.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve_3d(input, weight, bias, stride=self.stride[0], padding=int(self.padding[0]))


def convolve_3d(
    image: ImageBatch, weight: Tensor, bias: Tensor | None, *, stride: int, padding: int
) -> Float[Tensor, "b n ..."]:
    """Return `torch.nn.functional.conv3d`, also fast for a batch of one small volume.

    Torch computes such a batch more than ten times slower per voxel than a batch of two. So the
    volume is cut across its first axis into two slabs that overlap by the kernel, and these are
    the batch. Volumes so short that the CPU's bf16 gradients are wrong are computed in float32.

    Parameters
    ----------
    image : Tensor, shape (b, c, x, y, z)
    weight : Tensor, shape (n, c, *k)
    bias : Tensor, shape (n,), optional
    stride, padding : int
        Along every axis.
    """
    if _bf16_gradient_errs(image, weight.shape[2:], stride=stride, padding=padding):
        with torch.autocast("cpu", enabled=False):
            exact = convolve_3d(
                image.float(),
                weight.float(),
                None if bias is None else bias.float(),
                stride=stride,
                padding=padding,
            )
        return exact.to(torch.bfloat16)
    if not _misses_onednn(image):
        return F.conv3d(image, weight, bias, stride, padding)
    kernel = weight.shape[2]
    padded = F.pad(image, (0, 0, 0, 0, padding, padding)) if padding else image
    rows = (padded.shape[2] - kernel) // stride + 1
    half = (rows + 1) // 2
    thickness = (half - 1) * stride + kernel
    second = (rows - half) * stride
    slabs = torch.cat([padded[:, :, :thickness], padded[:, :, second : second + thickness]])
    out = F.conv3d(slabs, weight, bias, stride, (0, padding, padding))
    # An odd number of rows was covered with one row twice.
    return torch.cat([out[:1], out[1:, :, 2 * half - rows :]], dim=2)


def _bf16_gradient_errs(image: Tensor, kernel: torch.Size, *, stride: int, padding: int) -> bool:
    """Return whether a gradient is wanted that oneDNN gets wrong."""
    if image.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    cast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if cast else image.dtype
    size = zip(image.shape[2:], kernel, strict=True)
    shortest = min((n + 2 * padding - k) // stride + 1 for n, k in size)
    return dtype == torch.bfloat16 and shortest <= SHORT_AXIS


def _misses_onednn(image: Tensor) -> bool:
    """Return whether torch would compute this batch outside oneDNN."""
    batch, channels, *size = image.shape
    return (
        batch == 1
        and image.device.type == "cpu"
        and image.dtype == torch.float32
        and channels * size[0] * size[1] <= SINGLE_VOLUME_LIMIT
    )


class PointwiseConv(nn.Module):
    """A convolution of kernel size 1, computed as the matrix product it is.

    On channels-last images, which it keeps, this is two to four times as fast on the CPU as torch's
    convolution with such a kernel.

    Parameters
    ----------
    in_channels, out_channels : int
    bias : bool
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def forward(self, image: ImageBatch) -> Float[Tensor, "b n *s"]:
        """Return the image with its channels mixed, in channels-last order."""
        return F.linear(image.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)

    def extra_repr(self) -> str:
        """Return the settings shown in the printed network."""
        out_channels, in_channels = self.weight.shape
        return f"{in_channels}, {out_channels}, bias={self.bias is not None}"
