"""How the voxels of one grid fall on the voxels of another.

Three cases, from exact to general: every target voxel *is* a source voxel (crop, pad, flip, swap of
axes: values are moved, never interpolated); the axes are parallel (one small matrix per axis);
anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medseg.errors import ScanError
from medseg.geometry import Grid

Box = tuple[tuple[int, int, int], tuple[int, int, int]]

# In voxels at the farthest corner: above the rounding of affines stored in single precision, and
# far below what interpolation could show.
_TOLERANCE_VOXELS = 2e-3
# In standard deviations; 1e-4 of the weight lies farther out.
_BLUR_REACH = 4.0


def voxel_map(source: Grid, target: Grid) -> NDArray[np.float64]:
    """Return the (4, 4) matrix from voxel positions of ``target`` to those of ``source``."""
    return np.linalg.inv(source.affine) @ target.affine


@dataclass(frozen=True)
class ParallelAxes:
    """Along target axis ``j``, source axis ``axes[j]`` is at ``step[j] * index + start[j]``."""

    axes: tuple[int, int, int]
    step: tuple[float, float, float]
    start: tuple[float, float, float]

    @property
    def is_exact(self) -> bool:
        """True when every target voxel is a source voxel or outside: nothing is interpolated."""
        return all(
            abs(s) == 1 and float(b).is_integer()
            for s, b in zip(self.step, self.start, strict=True)
        )


def parallel_axes(source: Grid, target: Grid) -> ParallelAxes | None:
    """Return how two grids with parallel axes relate, or None when their axes are not parallel.

    Steps of one voxel and whole offsets are recognised within 0.002 voxels and then hold exactly.
    """
    matrix = voxel_map(source, target)
    corners = np.array(list(product(*((0, n - 1) for n in target.shape))), dtype=np.float64)
    for digits in (np.round, lambda values: values):
        ideal = np.zeros((3, 4))
        axes = np.abs(matrix[:3, :3]).argmax(axis=0)
        if sorted(axes.tolist()) != [0, 1, 2]:
            return None
        ideal[axes, range(3)] = digits(matrix[axes, range(3)])
        ideal[:, 3] = digits(matrix[:3, 3])
        difference = (matrix[:3] - ideal) @ np.column_stack([corners, np.ones(8)]).T
        if np.abs(difference).max() <= _TOLERANCE_VOXELS:
            a, b, c = (int(axis) for axis in axes)
            step = ideal[[a, b, c], range(3)]
            start = ideal[[a, b, c], 3]
            return ParallelAxes((a, b, c), tuple(step.tolist()), tuple(start.tolist()))
    return None


def move_voxels(
    data: Tensor, relation: ParallelAxes, shape: Sequence[int], *, fill: float = 0.0
) -> Tensor:
    """Return the voxels of an exactly related grid, without arithmetic on their values.

    Parameters
    ----------
    data : Tensor, shape (n, x, y, z), any type
        Values on the source grid.
    relation : ParallelAxes
        One whose ``is_exact`` holds.
    shape : sequence of 3 int
        Of the target grid.
    fill : float
        Value of target voxels outside the source.

    Returns
    -------
    Tensor, shape (n, x', y', z'), same type
    """
    moved = data.permute(0, *(axis + 1 for axis in relation.axes))
    padding: list[int] = []
    for j in reversed(range(3)):
        length, start = moved.shape[j + 1], int(relation.start[j])
        if relation.step[j] < 0:
            moved, start = moved.flip(j + 1), length - 1 - start
        stop = start + int(shape[j])
        # Clamped to the source: a grid that misses it altogether takes no voxel and is all padding.
        low, high = min(max(start, 0), length), max(min(stop, length), 0)
        moved = moved.narrow(j + 1, low, max(high - low, 0))
        before = min(max(-start, 0), int(shape[j]))
        padding += [before, int(shape[j]) - before - moved.shape[j + 1]]
    return functional.pad(moved, padding, value=fill).contiguous()


def interpolation_matrix(positions: Tensor, length: int, *, sigma: float) -> Tensor:
    """Return the weights of linear interpolation along one axis, after a Gaussian blur.

    Parameters
    ----------
    positions : Tensor, shape (p,), float64
        Fractional source indices. Up to half a voxel beyond the ends the end value holds; farther
        out all weights are 0.
    length : int
        Voxels along the source axis.
    sigma : float
        Standard deviation of the blur in source voxels; 0 for none.

    Returns
    -------
    Tensor, shape (p, length), float32
        Rows sum to 1, or to 0 outside.
    """
    index = torch.arange(length, dtype=torch.float64)
    clamped = positions.clamp(0, length - 1)
    weights = (1 - (clamped[:, None] - index).abs()).clamp(min=0)
    if sigma > 0:
        weights = weights @ blur_matrix(length, sigma=sigma)
    inside = (positions >= -0.5) & (positions <= length - 0.5)
    return (weights * inside[:, None]).float()


def blur_matrix(length: int, *, sigma: float) -> Tensor:
    """Return a Gaussian blur along one axis, shape (length, length), float64.

    Cut at four standard deviations and at the ends; rows sum to 1.
    """
    index = torch.arange(length, dtype=torch.float64)
    distance = (index[:, None] - index).abs() / sigma
    weights = torch.exp(-0.5 * distance**2) * (distance <= _BLUR_REACH)
    return weights / weights.sum(dim=1, keepdim=True)


def bounding_box(mask: Tensor) -> Box:
    """Return start and stop of the smallest box that holds every true voxel.

    Parameters
    ----------
    mask : Tensor, shape (x, y, z), bool

    Raises
    ------
    ScanError
        No voxel is true.
    """
    if not bool(mask.any()):
        raise ScanError(
            f"A box needs at least one voxel inside, but this {tuple(mask.shape)} mask has none.",
            hint="Check the brain mask.",
        )
    ranges = []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        hits = torch.nonzero(mask.any(dim=others[1]).any(dim=others[0]))
        ranges.append((int(hits[0]), int(hits[-1]) + 1))
    (a, b), (c, d), (e, f) = ranges
    return (a, c, e), (b, d, f)
