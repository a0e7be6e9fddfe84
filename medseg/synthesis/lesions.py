"""Single lesions cut out of scans: shape and looks in a cube of their own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as nnf
from scipy import ndimage
from torch import Tensor

from medseg.errors import DataError

# The cube is this much longer than what the lesion needs, so that its border is always inside.
_ROOM = 1.2
_LEAST_SCALE = 1e-6


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A scan with its lesions marked, as lesions are learned from.

    Parameters
    ----------
    identifier : str
    image : Tensor, shape (c, x, y, z), float32
        Any units; see :func:`normal_tissue`.
    label : Tensor, shape (x, y, z), integer
        0 is background.
    brain : Tensor, shape (x, y, z), bool
    spacing_mm : tuple of 3 float
    """

    identifier: str
    image: Tensor
    label: Tensor
    brain: Tensor
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Lesion:
    """One lesion in a cube.

    Parameters
    ----------
    parts : Tensor, shape (k, s, s, s), float32, 0 or 1
        Nested: the innermost label, then it and the next one, ...; the last is the whole lesion.
    image : Tensor, shape (c, s, s, s), float32
        In deviations of the normal tissue from its median; outside the lesion the value of the
        nearest voxel inside.
    half_side_mm : float
        Half the side of the cube.
    parent : str
        The scan it comes from.
    """

    parts: Tensor
    image: Tensor
    half_side_mm: float
    parent: str

    def turned(self, axes: Sequence[int], flips: Sequence[int]) -> Lesion:
        """Return the lesion with its axes in another order and some of them mirrored."""
        order = (0, *(axis + 1 for axis in axes))
        places = [axis + 1 for axis in flips]
        parts, image = (x.permute(order).flip(places) for x in (self.parts, self.image))
        return Lesion(parts, image, self.half_side_mm, self.parent)


def normal_tissue(image: Tensor, label: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
    """Return median and standard deviation of each channel, (c,), in the brain outside lesions.

    A scan with a large lesion is thus measured like one without.

    Raises
    ------
    DataError
        No voxel of the brain is outside the lesions.
    """
    inside = image[:, brain & (label == 0)]
    if inside.shape[1] < 2:
        raise DataError(
            "A scan needs normal tissue to measure intensities by, but every voxel of the brain is "
            "lesion.",
            hint="Check the mask, or leave the scan out.",
        )
    return inside.median(dim=1).values, inside.std(dim=1).clamp(min=_LEAST_SCALE)


def order_labels(scans: Sequence[LabelledScan]) -> tuple[int, ...]:
    """Return the labels that occur, from the one deepest inside the lesions to the outermost.

    Raises
    ------
    DataError
        No scan has a label.
    """
    depth, count = dict[int, float](), dict[int, int]()
    for scan in scans:
        mask = (scan.label > 0).numpy()
        inside = np.asarray(ndimage.distance_transform_edt(mask, sampling=scan.spacing_mm))
        for value in scan.label.unique().tolist():
            if value:
                found = inside[(scan.label == value).numpy()]
                depth[value] = depth.get(value, 0.0) + float(found.sum())
                count[value] = count.get(value, 0) + len(found)
    if not count:
        raise DataError(
            f"Lesions are learned from masks with lesions, but none of {len(scans)} scans has one.",
            hint="Give scans with their masks.",
        )
    return tuple(sorted(count, key=lambda value: -depth[value] / count[value]))


def cut_lesions(
    scan: LabelledScan, *, labels: Sequence[int], side: int, least_voxels: int
) -> list[Lesion]:
    """Return the lesions of a scan: its connected components, each in a cube round its middle.

    Parameters
    ----------
    scan : LabelledScan
    labels : sequence of int
        From the innermost to the outermost; see :func:`order_labels`.
    side : int
        Voxels along the cube.
    least_voxels : int
        Smaller components of the scan are left out.
    """
    offset, scale = normal_tissue(scan.image, scan.label, scan.brain)
    wide = (-1, 1, 1, 1)
    image = (scan.image - offset.view(wide)) / scale.view(wide)
    names = np.empty(tuple(scan.label.shape), dtype=np.int32)
    ndimage.label((scan.label > 0).numpy(), structure=np.ones((3, 3, 3)), output=names)
    lesions = []
    for number in np.flatnonzero(np.bincount(names.ravel(), minlength=1) >= least_voxels):
        if number == 0:
            continue
        mine = torch.from_numpy(names == number)
        lesions.append(_cut(scan, image, mine, labels=labels, side=side))
    return lesions


def _cut(
    scan: LabelledScan, image: Tensor, mine: Tensor, *, labels: Sequence[int], side: int
) -> Lesion:
    voxels = torch.nonzero(mine).float()
    low, high = voxels.amin(0), voxels.amax(0)
    spacing = torch.tensor(scan.spacing_mm)
    half_side_mm = float(_ROOM * ((high - low + 1) * spacing).max() / 2)
    nested = torch.stack(
        [
            (mine & torch.isin(scan.label, torch.tensor(labels[: k + 1]))).float()
            for k in range(len(labels))
        ]
    )
    both = torch.cat([nested, image])
    cube = sample_cube(both, (low + high) / 2, half_side_mm / spacing, side)
    parts = (cube[: len(labels)] > 0.5).float()
    if not bool(parts[-1].any()):
        # A thin lesion can slip between the points of the cube.
        parts[-1] = (cube[len(labels) - 1] >= cube[len(labels) - 1].max()).float()
    filled = fill_outside(cube[len(labels) :], parts[-1] > 0.5)
    return Lesion(parts, filled, half_side_mm, scan.identifier)


def sample_cube(volume: Tensor, centre: Tensor, half_side: Tensor, side: int) -> Tensor:
    """Return ``volume``, shape (n, x, y, z), at the points of a cube, linearly; 0 outside it.

    Parameters
    ----------
    volume : Tensor
    centre, half_side : Tensor, shape (3,)
        Of the cube along each axis, in voxels of the volume.
    side : int
        Points along each axis of the cube.

    Returns
    -------
    Tensor, shape (n, side, side, side)
    """
    ramp = (torch.arange(side) + 0.5) / side * 2 - 1
    last = torch.tensor(volume.shape[1:]).float()
    axes = [(2 * (centre[axis] + half_side[axis] * ramp) + 1) / last[axis] - 1 for axis in range(3)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return nnf.grid_sample(volume[None], grid.flip(-1)[None], align_corners=False)[0]


def fill_outside(image: Tensor, inside: Tensor) -> Tensor:
    """Return ``image``, shape (c, *s), with every voxel outside like the nearest one inside."""
    nearest = ndimage.distance_transform_edt(
        ~inside.numpy(), return_distances=False, return_indices=True
    )
    places = [torch.from_numpy(axis).long() for axis in np.asarray(nearest)]
    return image[(slice(None), *places)]
