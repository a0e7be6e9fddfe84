"""Scans that never travel without their grid.

A :class:`Scan` is one image, a :class:`LabelMap` one mask, a :class:`Case` the named scans of one
visit of one subject, all on one grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from medseg.errors import GeometryError, ScanError, ShapeError
from medseg.geometry import Grid
from medseg.shapes import FloatVolume, LabelVolume

GRID_TOLERANCE_MM = 0.1


def _check_shape(kind: str, data: torch.Tensor, grid: Grid) -> None:
    if tuple(data.shape) != grid.shape:
        raise ShapeError(
            f"A {kind} must have the shape of its grid {grid.shape}, but its data are "
            f"{tuple(data.shape)}.",
            hint="Crop or resample the data and the grid together.",
        )


@dataclass(frozen=True, eq=False)
class Scan:
    """One image: voxel values and where they lie.

    Parameters
    ----------
    data : Tensor, shape (x, y, z), float32
        Intensities in the scanner's or the preprocessing's units.
    grid : Grid
        Shape and voxel-to-RAS affine.
    """

    data: FloatVolume
    grid: Grid

    def __post_init__(self) -> None:
        _check_shape("scan", self.data, self.grid)
        if not self.data.is_floating_point():
            raise ShapeError(
                f"A scan holds floating point values, but its data are {self.data.dtype}."
            )


@dataclass(frozen=True, eq=False)
class LabelMap:
    """One mask: integer labels and where they lie.

    Parameters
    ----------
    data : Tensor, shape (x, y, z), an integer type
        0 is background.
    grid : Grid
        Shape and voxel-to-RAS affine.
    """

    data: LabelVolume
    grid: Grid

    def __post_init__(self) -> None:
        _check_shape("label map", self.data, self.grid)
        if self.data.is_floating_point() or self.data.dtype == torch.bool:
            raise ShapeError(f"A label map holds integers, but its data are {self.data.dtype}.")

    def volume_ml(self, labels: tuple[int, ...]) -> float:
        """Return the volume in ml of the voxels whose label is one of ``labels``."""
        inside = torch.isin(self.data, torch.tensor(labels, dtype=self.data.dtype))
        return float(inside.sum()) * self.grid.voxel_volume_mm3 / 1000.0


@dataclass(frozen=True, eq=False)
class Case:
    """The named scans of one visit of one subject, on one grid.

    Parameters
    ----------
    identifier : str
        Unique within a data set; names the output files.
    subject : str
        The person: splits never separate two cases of one subject.
    scans : mapping from modality name ("flair", "t1", "t1c", "t2", ...) to Scan
        At least one.
    label : LabelMap, optional
        The reference segmentation.
    brain : LabelMap, optional
        1 inside the brain, 0 outside.
    synthetic : bool
        True when the case was generated rather than measured.

    Raises
    ------
    ScanError
        No scan at all.
    GeometryError
        Two members differ by more than 0.1 mm at a corner of the grid.
    """

    identifier: str
    subject: str
    scans: Mapping[str, Scan]
    label: LabelMap | None = None
    brain: LabelMap | None = None
    synthetic: bool = field(default=False)

    def __post_init__(self) -> None:
        if not self.scans:
            raise ScanError(
                f"Case {self.identifier!r} has no scan.", hint="Give at least one modality."
            )
        members = {**self.scans, "label": self.label, "brain mask": self.brain}
        first = next(iter(self.scans))
        for name, member in members.items():
            if member is not None:
                self._check_grid(first, name, member.grid)

    def _check_grid(self, first: str, name: str, grid: Grid) -> None:
        reference = self.scans[first].grid
        if grid.shape != reference.shape:
            raise GeometryError(
                f"All scans of case {self.identifier!r} must share one grid, but {first!r} has "
                f"shape {reference.shape} and {name!r} has {grid.shape}.",
                hint="Register and resample them to one of them first.",
            )
        distance_mm = reference.corner_distance_mm(grid)
        if distance_mm > GRID_TOLERANCE_MM:
            raise GeometryError(
                f"All scans of case {self.identifier!r} must share one grid, but {name!r} lies "
                f"{distance_mm:.2f} mm away from {first!r} at the farthest corner "
                f"(tolerance {GRID_TOLERANCE_MM} mm).",
                hint="Register and resample them to one of them first.",
            )

    @property
    def grid(self) -> Grid:
        """The grid that all scans of the case share."""
        return next(iter(self.scans.values())).grid
