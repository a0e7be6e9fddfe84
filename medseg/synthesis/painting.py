"""Putting a drawn lesion into a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

_SOFT_VOXELS = 0.7


@dataclass(frozen=True, eq=False)
class DrawnLesion:
    """A lesion that was never there.

    Parameters
    ----------
    levels : Tensor, shape (k, s, s, s)
        Above 0 inside the nested part k; linear between voxels.
    image : Tensor, shape (c, s, s, s)
        In deviations of the normal tissue from its median.
    half_side_mm : float
        Half the side of the cube.
    """

    levels: Tensor
    image: Tensor
    half_side_mm: float

    def turned(self, axes: Sequence[int], flips: Sequence[int]) -> DrawnLesion:
        """Return the lesion with its axes in another order and some of them mirrored."""
        order = (0, *(axis + 1 for axis in axes))
        places = [axis + 1 for axis in flips]
        levels, image = (x.permute(order).flip(places) for x in (self.levels, self.image))
        return DrawnLesion(levels, image, self.half_side_mm)


@dataclass(frozen=True, eq=False)
class Painted:
    """A scan with one lesion more.

    Parameters
    ----------
    image : Tensor, shape (c, x, y, z)
    label : Tensor, shape (x, y, z), integer
        The labels of the new lesion alone, 0 elsewhere.
    share : float
        How much of the lesion found an allowed place.
    """

    image: Tensor
    label: Tensor
    share: float


def paint_lesion(
    image: Tensor,
    lesion: DrawnLesion,
    *,
    labels: Sequence[int],
    centre: Tensor,
    allowed: Tensor,
    normal: tuple[Tensor, Tensor],
    spacing_mm: tuple[float, float, float],
) -> Painted:
    """Return ``image`` with a lesion at ``centre``.

    The lesion ends where ``allowed`` ends. Its border is blended over about a voxel, as a scanner
    averages over a voxel.

    Parameters
    ----------
    image : Tensor, shape (c, x, y, z)
    lesion : DrawnLesion
    labels : sequence of int
        Label of each nested part, innermost first.
    centre : Tensor, shape (3,)
        In voxels.
    allowed : Tensor, shape (x, y, z), bool
    normal : tuple of Tensor, shape (c,)
        Median and deviation of the image's normal tissue.
    spacing_mm : tuple of 3 float
    """
    cube = torch.cat([lesion.levels, lesion.image])
    half = lesion.half_side_mm / torch.tensor(spacing_mm)
    box = _box(centre, half + 1, image.shape[1:])
    drawn, inside = _read_cube(cube, box, centre, half)
    levels, looks = drawn[: len(labels)], drawn[len(labels) :]
    levels = torch.where(inside, levels, torch.full_like(levels, -1.0))
    levels = levels.cummax(dim=0).values
    wanted = levels[-1] > 0
    kept = wanted & allowed[box]
    part = torch.zeros(kept.shape, dtype=torch.int64)
    for position in reversed(range(len(labels))):
        part[kept & (levels[position] > 0)] = labels[position]
    # A labelled voxel is more lesion than not, however thin the lesion is.
    alpha = ((_blurred(kept.float()) + 0.5 * kept) * allowed[box]).clamp(0.0, 1.0)
    offset, scale = (value.view(-1, 1, 1, 1) for value in normal)
    changed = image.clone()
    region = changed[(slice(None), *box)]
    changed[(slice(None), *box)] = region + alpha * (looks * scale + offset - region)
    label = torch.zeros(image.shape[1:], dtype=torch.int64)
    label[box] = part
    return Painted(changed, label, float(kept.sum()) / max(int(wanted.sum()), 1))


def _box(centre: Tensor, reach: Tensor, shape: Sequence[int]) -> tuple[slice, slice, slice]:
    found = []
    for axis in range(3):
        low = min(max(int(torch.floor(centre[axis] - reach[axis])), 0), shape[axis] - 1)
        high = max(min(int(torch.ceil(centre[axis] + reach[axis])) + 1, shape[axis]), low + 1)
        found.append(slice(low, high))
    return found[0], found[1], found[2]


def _read_cube(
    cube: Tensor, box: tuple[slice, slice, slice], centre: Tensor, half: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the cube's values at the voxels of a box, and which of these lie inside the cube."""
    axes = [
        (torch.arange(part.start, part.stop) - centre[axis]) / half[axis]
        for axis, part in enumerate(box)
    ]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    values = nnf.grid_sample(
        cube[None], grid.flip(-1)[None], padding_mode="border", align_corners=False
    )[0]
    return values, (grid.abs() <= 1).all(-1)


def _blurred(mask: Tensor) -> Tensor:
    """Return a mask with a border about a voxel wide: 1 well inside, 0 two voxels outside."""
    ramp = torch.arange(-2, 3).float()
    weights = torch.exp(-0.5 * (ramp / _SOFT_VOXELS) ** 2)
    weights = weights / weights.sum()
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[axis + 2] = 5
        padding = [0, 0, 0]
        padding[axis] = 2
        mask = nnf.conv3d(mask[None, None], weights.view(shape), padding=padding)[0, 0]
    return mask
