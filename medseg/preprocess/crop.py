"""Boxes of voxels; undoing a crop fills the rest with 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from medseg.geometry import Grid
from medseg.preprocess.lattice import Box
from medseg.preprocess.resample import BackTo, resample_member
from medseg.preprocess.step import Member, Undo


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
