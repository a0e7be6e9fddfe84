"""Boxes of voxels; undoing a crop fills the rest with 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from medseg.errors import ScanError
from medseg.geometry import Grid
from medseg.preprocess.resample import BackTo, resample_member
from medseg.preprocess.step import Member, Undo

Box = tuple[tuple[int, int, int], tuple[int, int, int]]


@dataclass(frozen=True)
class Crop:
    """The step that keeps ``data[start:stop]``; a box larger than the scan pads it with 0.

    Parameters
    ----------
    start, stop : tuple of 3 int
        First voxel kept, and first voxel no longer kept, along each axis.
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    def apply(self, member: Member) -> tuple[Member, Undo]:
        """Return the member inside the box, and the way back."""
        changed = resample_member(member, member.grid.crop(self.start, self.stop))
        return changed, BackTo(member.grid)


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


def box_on(box: Box, source: Grid, target: Grid, *, margin_mm: float) -> Box:
    """Return the box of ``target`` voxels that holds a box of ``source`` and a margin, clipped to
    it.

    Parameters
    ----------
    box : start and stop on ``source``
    source, target : Grid
    margin_mm : float
        Kept around the box along every axis of ``target``.
    """
    faces: Sequence[tuple[float, float]] = [(a - 0.5, b - 0.5) for a, b in zip(*box, strict=True)]
    corners = target.to_voxel(source.to_world(list(product(*faces))))
    margin = margin_mm / np.array(target.spacing_mm)
    # The slack keeps rounding from adding a voxel to a box that ends on a face.
    low = np.floor(corners.min(axis=0) - margin + 0.5 + 1e-3).astype(int)
    high = np.ceil(corners.max(axis=0) + margin + 0.5 - 1e-3).astype(int)
    low = np.clip(low, 0, np.array(target.shape) - 1)
    high = np.clip(high, low + 1, target.shape)
    (a, c, e), (b, d, f) = low.tolist(), high.tolist()
    return (a, c, e), (b, d, f)
