"""Thin slices from thick ones, such that averaging them gives the thick ones again."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medseg.errors import ShapeError
from medseg.translation.generator import slice_unet

Thick = Float[Tensor, "b c t x"]
Thin = Float[Tensor, "b c z x"]


def thicken(thin: Thin, factor: int) -> Thick:
    """Return the averages of ``factor`` slices in a row along the third axis.

    This is a box profile without gap or overlap.

    Raises
    ------
    ShapeError
        The slices cannot be divided by the factor.
    """
    slices = thin.shape[2]
    if slices % factor or not slices:
        raise ShapeError(
            f"Slices are averaged {factor} at a time, but there are {slices}.",
            hint="Crop to a multiple of the factor.",
        )
    return thin.unflatten(2, (slices // factor, factor)).mean(3)


def interpolate_slices(thick: Thick, factor: int) -> Thin:
    """Return ``factor`` times as many slices, linear between the middles of the thick ones.

    Beyond the middle of the first and the last one the values stay the same.

    Raises
    ------
    ShapeError
        There is only one slice.
    """
    slices, width = thick.shape[2:]
    if slices < 2:
        raise ShapeError(
            f"Super-resolution needs at least two thick slices, but there is {slices}.",
            hint="Give the whole volume.",
        )
    size = (slices * factor, width)
    return F.interpolate(thick, size=size, mode="bilinear", align_corners=False)


def match_slices(thin: Thin, thick: Thick, factor: int) -> Thin:
    """Return the nearest thin slices, in squared distance, that average to the thick ones.

    Examples
    --------
    >>> import torch
    >>> thick = torch.tensor([1.0, 3.0]).reshape(1, 1, 2, 1)
    >>> match_slices(torch.zeros(1, 1, 4, 1), thick, 2).flatten().tolist()
    [1.0, 1.0, 3.0, 3.0]
    """
    return thin + (thick - thicken(thin, factor)).repeat_interleave(factor, dim=2)


class SuperResolver(nn.Module):
    """Linear interpolation plus a U-Net, made to average to its input.

    It sees planes through the thick slices, each with its neighbours as channels, and begins as the
    interpolation made consistent.

    Parameters
    ----------
    factor : int
        Thin slices per thick one.
    reach : int
        Neighbouring planes on each side.
    widths : tuple of int
        Of the U-Net's levels.
    """

    def __init__(self, *, factor: int, reach: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.factor, self.reach = factor, reach
        self.unet = slice_unet(2 * reach + 1, 1, widths=widths)

    def forward(self, thick: Thick) -> Thin:
        """Return the middle plane (b, 1, factor * t, x) of planes (b, 2 reach + 1, t, x)."""
        smooth = interpolate_slices(thick, self.factor)
        middle = slice(self.reach, self.reach + 1)
        return match_slices(smooth[:, middle] + self.unet(smooth), thick[:, middle], self.factor)
