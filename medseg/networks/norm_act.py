"""Instance normalisation, residual sum and activation in one autograd function.

Torch's own instance normalisation and group normalisation are slow on channels-last CPU tensors,
the latter also inexact there when a channel's mean is far above its standard deviation. But one
sample in channels-last order is a table (voxels, channels), and instance normalisation of it is
batch normalisation of its columns, for which torch has two-pass kernels that are fast forward and
backward, vectorised, threaded, and that keep their statistics in float32 for bf16 input.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from medseg.errors import ShapeError
from medseg.shapes import ImageBatch

Activation = Literal["relu", "leaky_relu", "elu", "none"]

#: Slope of the leaky ReLU below 0, as in nnU-Net.
LEAKY_SLOPE = 0.01

_aten = torch.ops.aten


class InstanceNormAct(nn.Module):
    """``activation(gain * (x - mean) / sqrt(variance + eps) + shift + residual)``.

    Mean and (biased) variance are those of each channel of each case over its voxels, always in
    float32 or better. A channel that is constant, or has one voxel, gives ``shift``.

    Parameters
    ----------
    channels : int
    activation : {"relu", "leaky_relu", "elu", "none"}
    shift : bool
        Learn a shift. Without one, and without biases around, a network ignores the input's scale.
    eps : float
        Added to the variance.

    Notes
    -----
    Memory: the input and the output are kept for the backward pass, never a copy in another memory
    order. The output is what the next convolution keeps anyway. Differentiable once.

    References
    ----------
    Ulyanov et al. 2016, "Instance normalization", eq. (2). The gradient is that of Ioffe and
    Szegedy 2015, section 3, with the case in the place of the batch.
    """

    def __init__(
        self,
        channels: int,
        activation: Activation = "relu",
        *,
        shift: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels)) if shift else None

    def forward(self, image: ImageBatch, residual: ImageBatch | None = None) -> ImageBatch:
        """Return the normalised, summed and activated image in the memory order of ``image``.

        Parameters
        ----------
        image : Tensor, shape (b, c, *s)
        residual : Tensor, shape (b, c, *s), optional
            Added before the activation.

        Raises
        ------
        ShapeError
            When the channels or the residual's shape do not fit.
        """
        if image.ndim < 3 or image.shape[1] != self.gain.numel():
            raise ShapeError(
                f"expected (b, {self.gain.numel()}, *s), but the image is {tuple(image.shape)}"
            )
        if residual is not None and residual.shape != image.shape:
            raise ShapeError(
                f"a residual has its image's shape {tuple(image.shape)}, "
                f"but it is {tuple(residual.shape)}"
            )
        return _NormAct.apply(image, self.gain, self.shift, residual, self.activation, self.eps)  # pyright: ignore[reportReturnType]

    def extra_repr(self) -> str:
        """Return the settings shown in the printed network."""
        return f"{self.gain.numel()}, {self.activation}, shift={self.shift is not None}"


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        gain: Tensor,
        shift: Tensor | None,
        residual: Tensor | None,
        activation: Activation,
        eps: float,
    ) -> Tensor:
        image, gain = _dense(image), _statistics_dtype(gain, image)
        shift = None if shift is None else _statistics_dtype(shift, image)
        out, statistics = _normalise(image, gain, shift, eps)
        if residual is not None:
            out.add_(residual)
        _activate_(out, activation)
        kept = None if activation == "none" else out
        ctx.save_for_backward(image, kept, gain, statistics.mean, statistics.inverse_std)
        ctx.activation, ctx.eps = activation, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, out, gain, mean, inverse_std = ctx.saved_tensors
        grad = grad.to(image.dtype).contiguous(memory_format=_memory_format(image))
        grad = _activation_grad(grad, out, ctx.activation)
        mask = list(ctx.needs_input_grad[:3])
        statistics = _Statistics(mean, inverse_std, ctx.eps)
        grads = _normalise_grad(grad, image, gain, statistics, mask) if any(mask) else [None] * 3
        return (*grads, grad if ctx.needs_input_grad[3] else None, None, None)


def _memory_format(image: Tensor) -> torch.memory_format:
    """Return channels-last where the tensor is in that order alone, else contiguous."""
    if image.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last_3d if image.ndim == 5 else torch.channels_last


def _dense(image: Tensor) -> Tensor:
    """Return the image itself where its order is one of the two, else a contiguous copy."""
    if image.ndim in (4, 5) and image.is_contiguous(memory_format=_memory_format(image)):
        return image
    return image.contiguous()


def _statistics_dtype(parameter: Tensor, image: Tensor) -> Tensor:
    """Return the parameter in float32 (float64 for such images).

    Torch keeps mean and standard deviation in the dtype of the parameters.
    """
    return parameter.to(torch.promote_types(image.dtype, torch.float32))


class _Statistics(NamedTuple):
    """Mean and inverse standard deviation ``(tables, columns)``, with what guarded the latter."""

    mean: Tensor
    inverse_std: Tensor
    eps: float


def _table_count(image: Tensor) -> int:
    """Return 1 for a channels-first image, whose cases join into more columns, else the cases."""
    return 1 if image.is_contiguous() else image.shape[0]


def _tables(image: Tensor, count: int) -> list[Tensor]:
    """Return ``count`` views whose batch statistics are the image's instance statistics."""
    if count == 1:
        return [image.view(1, -1, *image.shape[2:])]
    return list(image.split(1))


def _per_column(parameter: Tensor, mean: Tensor) -> Tensor:
    """Return one value per column of a table."""
    copies = mean.shape[1] // parameter.numel()
    return parameter if copies == 1 else parameter.repeat(copies)


def _normalise(
    image: Tensor, gain: Tensor, shift: Tensor | None, eps: float
) -> tuple[Tensor, _Statistics]:
    """Return the normalised image and its statistics."""
    count = _table_count(image)
    out = torch.empty_like(image)
    mean = gain.new_empty(count, image.shape[0] * image.shape[1] // count)
    inverse_std = torch.empty_like(mean)
    gain = _per_column(gain, mean)
    shift = None if shift is None else _per_column(shift, mean)
    tables = zip(_tables(image, count), _tables(out, count), mean, inverse_std, strict=True)
    for table, *result in tables:
        torch.native_batch_norm(
            table, gain, shift, None, None, True, 0.0, eps, out=tuple(result)
        )  # fmt: skip
    return out, _Statistics(mean, inverse_std, eps)


def _normalise_grad(
    grad: Tensor, image: Tensor, gain: Tensor, statistics: _Statistics, mask: list[bool]
) -> list[Tensor | None]:
    """Return the gradients of image, gain and shift, those that ``mask`` asks for."""
    mean, inverse_std, eps = statistics
    count, batch = mean.shape[0], image.shape[0]
    gain = _per_column(gain, mean)
    tables = zip(_tables(grad, count), _tables(image, count), mean, inverse_std, strict=True)
    parts = [
        _aten.native_batch_norm_backward(g, x, gain, None, None, m, s, True, eps, mask)
        for g, x, m, s in tables
    ]
    images, gains, shifts = zip(*parts, strict=True)
    image_grad = None
    if mask[0]:
        image_grad = images[0].view_as(image) if count == 1 else torch.cat(images)
    return [
        image_grad,
        torch.cat(gains).view(batch, -1).sum(0) if mask[1] else None,
        torch.cat(shifts).view(batch, -1).sum(0) if mask[2] else None,
    ]


def _activate_(out: Tensor, activation: Activation) -> None:
    if activation == "relu":
        F.relu_(out)
    elif activation == "leaky_relu":
        F.leaky_relu_(out, LEAKY_SLOPE)
    elif activation == "elu":
        F.elu_(out)


def _activation_grad(grad: Tensor, out: Tensor | None, activation: Activation) -> Tensor:
    """Return the gradient before the activation, from the activation's own result."""
    if activation == "relu":
        return _aten.threshold_backward(grad, out, 0)
    if activation == "leaky_relu":
        return _aten.leaky_relu_backward(grad, out, LEAKY_SLOPE, True)
    if activation == "elu":
        return _aten.elu_backward(grad, 1.0, 1.0, 1.0, True, out)
    return grad
