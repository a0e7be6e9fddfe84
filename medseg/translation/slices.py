"""Volumes as stacks of neighbouring slices: what a network for slices sees of the third axis."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.errors import ShapeError


def stack_neighbours(volume: Tensor, *, reach: int) -> Tensor:
    """Return each slice along the last axis with its neighbours as channels (2.5D).

    Parameters
    ----------
    volume : Tensor, shape (c, x, y, z)
    reach : int
        Neighbours on each side; the first and last slice repeat beyond the ends.

    Returns
    -------
    Tensor, shape (c * (2 reach + 1), x, y, z)
        Channel ``i * (2 reach + 1) + j`` is channel i, ``j - reach`` slices further.

    Raises
    ------
    ShapeError
        There are fewer than ``2 reach + 1`` slices.
    """
    slices = volume.shape[-1]
    if slices < 2 * reach + 1:
        raise ShapeError(
            f"A translator that looks at {reach} neighbours on each side needs at least "
            f"{2 * reach + 1} slices, but the scan has {slices}.",
            hint="Give the whole volume, or train with neighbours=0.",
        )
    offsets = torch.arange(-reach, reach + 1)
    places = (torch.arange(slices)[None] + offsets[:, None]).clamp(0, slices - 1)
    # (c, x, y, 2 reach + 1, z), then the neighbours beside their channel.
    return volume[..., places].movedim(-2, 1).flatten(0, 1)


def centre_channels(channels: int, *, reach: int) -> list[int]:
    """Return where the middle slices of ``channels`` stacked channels are.

    Examples
    --------
    >>> centre_channels(2, reach=1)
    [1, 4]
    """
    size = 2 * reach + 1
    return [size * channel + reach for channel in range(channels)]
