"""Where voxels lie in the world.

A *voxel* position is a triple of array indices, possibly fractional; index 0 is the centre of the
first voxel. A *world* position is a triple of millimetres to the patient's right, anterior and
superior (RAS+), as in NIfTI. A :class:`Grid` ties the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.errors import GeometryError

Affine = NDArray[np.float64]
_SHEAR_TOLERANCE = 1e-3
_PAIRS = ("LR", "PA", "IS")


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of voxels and its place in the world.

    Parameters
    ----------
    shape : tuple of 3 int
        Voxels along each axis, all at least 1.
    affine : ndarray, shape (4, 4), float64
        Maps homogeneous voxel positions to world positions in mm (RAS+). May be oblique or sheared.
    is_guessed : bool
        The file held no affine; this one is a guess, and a file on this grid is to hold none
        either. Of grids that are made of this one (cropped, reoriented) it is not said: what lies
        on them would move, were it guessed again.

    Raises
    ------
    GeometryError
        The shape is not three positive integers, or the affine is not finite, not 4 x 4, or
        singular.

    Examples
    --------
    >>> grid = Grid((4, 5, 6), np.diag([2.0, 1.0, 3.0, 1.0]))
    >>> grid.spacing_mm
    (2.0, 1.0, 3.0)
    >>> grid.orientation
    'RAS'
    >>> grid.to_world([1, 1, 1]).tolist()
    [2.0, 1.0, 3.0]
    """

    shape: tuple[int, int, int]
    affine: Affine
    is_guessed: bool = False

    def __post_init__(self) -> None:
        shape = tuple(int(length) for length in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(
                f"A grid needs three axes of at least one voxel, but its shape is {shape}.",
                hint="Give a three-dimensional volume; split a series into its volumes.",
            )
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(
                f"An affine is a finite 4 x 4 matrix, but this one is {affine.tolist()}.",
                hint="Repair the header's sform or qform.",
            )
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.all(lengths > 0):
            raise GeometryError(
                f"Voxel sizes must be positive, but the affine gives {lengths.tolist()} mm.",
                hint="Repair the header's pixdim, sform or qform.",
            )
        # Relative to the voxel size, so that 0.1 mm voxels are not taken for a singular matrix.
        if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
            raise GeometryError(
                f"An affine must be invertible, but this one is singular: {affine.tolist()}.",
                hint="Two axes point the same way: repair the header's sform or qform.",
            )
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Length in mm of one voxel step along each axis."""
        x, y, z = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel; the determinant, so it is right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def orientation(self) -> str:
        """Anatomical direction each axis points to, for example ``"RAS"`` or ``"LPS"``."""
        return "".join(nib.orientations.aff2axcodes(self.affine))

    @property
    def is_sheared(self) -> bool:
        """True when the axes are not at right angles, which ITK refuses to read."""
        directions = self.affine[:3, :3] / np.array(self.spacing_mm)
        return bool(np.abs(directions.T @ directions - np.eye(3)).max() > _SHEAR_TOLERANCE)

    def to_world(self, voxels: ArrayLike) -> NDArray[np.float64]:
        """Return the world positions in mm, shape (..., 3), of voxel positions, shape (..., 3)."""
        return np.asarray(voxels, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_voxel(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the voxel positions, shape (..., 3), of world positions in mm, shape (..., 3)."""
        offset = np.asarray(points_mm, dtype=np.float64) - self.affine[:3, 3]
        return offset @ np.linalg.inv(self.affine[:3, :3]).T

    def corners_mm(self) -> NDArray[np.float64]:
        """Return the world positions of the eight corner voxels' centres, shape (8, 3)."""
        return self.to_world(list(product(*((0, length - 1) for length in self.shape))))

    def corner_distance_mm(self, other: Grid) -> float:
        """Return the largest distance in mm between corresponding corners of two grids."""
        return float(np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1).max())

    def matches(self, other: Grid, *, tolerance_mm: float) -> bool:
        """Return whether shapes are equal and corners at most ``tolerance_mm`` apart."""
        return self.shape == other.shape and self.corner_distance_mm(other) <= tolerance_mm

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Grid:
        """Return the grid of ``data[start:stop]``; negative ``start`` or large ``stop`` pads.

        Examples
        --------
        >>> grid = Grid((4, 5, 6), np.eye(4))
        >>> inner = grid.crop([1, 0, 2], [3, 5, 6])
        >>> inner.crop([-1, 0, -2], [3, 5, 4]).matches(grid, tolerance_mm=0)
        True
        """
        shape = tuple(int(b) - int(a) for a, b in zip(start, stop, strict=True))
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(np.asarray(start))
        return Grid(shape, affine)  # type: ignore[arg-type]

    def reoriented(self, orientation: str) -> Grid:
        """Return the same voxels with axes swapped and flipped to point along ``orientation``."""
        if len(orientation) != 3 or not all(len({*pair} & {*orientation}) == 1 for pair in _PAIRS):
            raise GeometryError(
                f"An orientation has one letter of each of {_PAIRS}, but it is {orientation!r}.",
                hint="Write for example RAS or LPS.",
            )
        current = nib.orientations.io_orientation(self.affine)
        wanted = nib.orientations.axcodes2ornt(tuple(orientation))
        change = nib.orientations.ornt_transform(current, wanted)
        shape = [0, 0, 0]
        for axis, (target, _) in enumerate(change):
            shape[int(target)] = self.shape[axis]
        affine = self.affine @ nib.orientations.inv_ornt_aff(change, self.shape)
        return Grid((shape[0], shape[1], shape[2]), affine)

    def with_spacing(self, spacing_mm: Sequence[float]) -> Grid:
        """Return a grid with right angles that covers the same field of view at another spacing.

        The outer faces of the first voxels stay together, not their centres, so that the field of
        view does not creep by half a voxel. Shear is removed by the nearest rotation (polar
        decomposition).
        """
        spacing = np.asarray(spacing_mm, dtype=np.float64)
        if spacing.shape != (3,) or not np.all(spacing > 0):
            raise GeometryError(
                f"A spacing is three positive lengths in mm, but it is {spacing.tolist()}."
            )
        directions = self.affine[:3, :3] / np.array(self.spacing_mm)
        left, _, right = np.linalg.svd(directions)
        rotation = left @ right
        faces = np.array([[-0.5] * 3, [length - 0.5 for length in self.shape]])
        corners = self.to_world(list(product(*faces.T)))
        along = corners @ rotation
        low, high = along.min(axis=0), along.max(axis=0)
        # The small slack keeps 160.0000001 mm at 1 mm from becoming 161 voxels.
        count = np.maximum(np.ceil((high - low) / spacing - 1e-3), 1).astype(int)
        affine = np.eye(4)
        affine[:3, :3] = rotation * spacing
        affine[:3, 3] = rotation @ (low + spacing / 2)
        return Grid((int(count[0]), int(count[1]), int(count[2])), affine)
