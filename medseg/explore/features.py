"""What can be measured on a scan without knowing what it shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from medseg.explore.lesions import lesion_rows, lesion_summary
from medseg.explore.thumbnail import thumbnail
from medseg.geometry import Grid
from medseg.preprocess.brain import brain_mask
from medseg.preprocess.lattice import bounding_box
from medseg.scan import Case

#: Changes whenever a feature does, so that what was measured before is measured again.
VERSION = "2"
#: Side of a patch in voxels, and how many a scan gives.
PATCH_SIDE, PATCHES = 5, 64
_PREFERRED = ("flair", "t1c", "t2", "t1")
# Median absolute deviation of a standard normal.
_MAD_OF_NORMAL = 0.6745

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Measured:
    """What is kept of a scan.

    Parameters
    ----------
    features : dict
        By name; NaN where a scan has no such thing.
    lesions : list of dict
        A row per lesion, see :func:`medseg.explore.lesions.lesion_rows`.
    thumbnail : bytes
        A JPEG.
    patches : ndarray, shape (64, 5, 5, 5), float32
        Of one modality, in deviations from the mean of the brain.
    """

    features: dict[str, float]
    lesions: list[dict[str, float]]
    thumbnail: bytes
    patches: Array


def measure(case: Case, *, generator: np.random.Generator) -> Measured:
    """Return features, lesions, a picture and patches of a case.

    Parameters
    ----------
    case : Case
    generator : numpy.random.Generator
        Places the patches.

    Raises
    ------
    ScanError
        No brain stands out from the background.
    """
    features = _grid_features(case.grid)
    ornt = nib.orientations.io_orientation(case.grid.affine)
    whole = _ras(brain_mask(case).data.numpy() > 0, ornt)
    features["brain.volume_ml"] = float(whole.sum()) * case.grid.voxel_volume_mm3 / 1000.0
    features["brain.cut_share"] = _faces_share(whole)
    images = {name: _ras(scan.data.numpy(), ornt) for name, scan in case.scans.items()}
    mask = None if case.label is None else _ras(case.label.data.numpy(), ornt)
    grid = case.grid.reoriented("RAS")
    picked = next((name for name in _PREFERRED if name in images), next(iter(images)))
    picture = thumbnail(images[picked], whole, mask, spacing_mm=grid.spacing_mm)
    # Everything else happens in the brain's box, which is half the volume or less.
    box = tuple(map(slice, *bounding_box(torch.from_numpy(np.ascontiguousarray(whole)))))
    brain, grid = whole[box], grid.crop([s.start for s in box], [s.stop for s in box])
    ranges: dict[str, float] = {}
    for name in images:
        images[name] = np.ascontiguousarray(images[name][box])
        found = _image_features(images[name], brain, grid.spacing_mm)
        ranges[name] = max(found["p95"] - found["p05"], 1e-12)
        features |= {f"{name}.{key}": value for key, value in found.items()}
    lesions: list[dict[str, float]] = []
    if mask is not None:
        inside = mask[box] > 0
        lesions, count = lesion_rows(inside, images, brain=brain, grid=grid, ranges=ranges)
        features |= lesion_summary(lesions, count, features["brain.volume_ml"])
        features |= _label_volumes(mask[box], grid.voxel_volume_mm3)
    patches = _patches(images[picked], brain, generator)
    return Measured(features, lesions, picture, patches)


def _ras(data: NDArray, orientation: NDArray) -> NDArray:
    """Return a view with axes to the right, the front and up, or nearly so."""
    return nib.orientations.apply_orientation(data, orientation)


def _grid_features(grid: Grid) -> dict[str, float]:
    turned = grid.reoriented("RAS")
    sides = turned.spacing_mm
    extent = [side * length for side, length in zip(sides, turned.shape, strict=True)]
    return {
        "grid.in_plane_mm": min(sides),
        "grid.slice_mm": max(sides),
        "grid.voxel_mm3": grid.voxel_volume_mm3,
        **{f"grid.extent_{axis}_mm": v for axis, v in zip("xyz", extent, strict=True)},
    }


def _faces_share(brain: NDArray[np.bool_]) -> float:
    """Return the share of the brain's voxels on the top and side faces; the neck is always cut."""
    faces = [brain[0], brain[-1], brain[:, 0], brain[:, -1], brain[:, :, -1]]
    return float(sum(int(face.sum()) for face in faces)) / max(int(brain.sum()), 1)


def _image_features(
    data: Array, brain: NDArray[np.bool_], spacing_mm: tuple[float, ...]
) -> dict[str, float]:
    inside = data[brain]
    p05, p50, p95 = (float(v) for v in np.quantile(inside, [0.05, 0.5, 0.95]))
    span = p95 - p05 if p95 > p05 else math.nan
    centred = np.clip(inside, *np.quantile(inside, [0.001, 0.999])) - float(inside.mean())
    std = float(centred.std())
    return {
        "here": 1.0,
        "p05": p05,
        "p50": p50,
        "p95": p95,
        "skew": float((centred.astype(np.float64) ** 3).mean()) / std**3 if std > 0 else math.nan,
        "noise": _noise(data, brain) / span,
        "sharpness": _sharpness(data, brain, spacing_mm) / span,
        "shading": _shading(data, brain) / span,
        "slice_jump": _slice_jump(data, brain) / span,
    }


def _noise(data: Array, brain: NDArray[np.bool_]) -> float:
    """Return the noise's deviation from the finest diagonal wavelet detail in the brain.

    The detail of a block of 2 x 2 x 2 voxels, whose deviation is that of one voxel: anatomy hardly
    reaches it, and the median ignores where it does. Resampling lowers it.

    References
    ----------
    Donoho and Johnstone (1994), Ideal spatial adaptation by wavelet shrinkage, section 4.
    """
    even = tuple(slice(0, length - length % 2) for length in data.shape)
    detail, whole = data[even], brain[even]
    for axis in range(3):
        first = [slice(None)] * 3
        second = [slice(None)] * 3
        first[axis], second[axis] = slice(0, None, 2), slice(1, None, 2)
        detail = (detail[tuple(first)] - detail[tuple(second)]) / math.sqrt(2)
        whole = whole[tuple(first)] & whole[tuple(second)]
    return float(np.median(np.abs(detail[whole]))) / _MAD_OF_NORMAL if whole.any() else math.nan


def _sharpness(data: Array, brain: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> float:
    """Return the 95th percentile of the gradient's length in the brain, per mm."""
    squared = np.zeros_like(data)
    for axis, side in enumerate(spacing_mm):
        if data.shape[axis] > 1:
            squared += np.gradient(data, side, axis=axis) ** 2
    return float(np.sqrt(np.quantile(squared[brain], 0.95)))


def _shading(data: Array, brain: NDArray[np.bool_]) -> float:
    """Return the largest difference of the brain's median between two opposite halves."""
    worst = 0.0
    for axis in range(3):
        counts = brain.sum(axis=tuple(i for i in range(3) if i != axis)).cumsum()
        cut = int(np.searchsorted(counts, counts[-1] / 2)) + 1
        low, high = np.split(np.arange(data.shape[axis]), [cut])
        if len(low) and len(high):
            halves = [
                np.take(data, part, axis=axis)[np.take(brain, part, axis=axis)]
                for part in (low, high)
            ]
            if all(half.size for half in halves):
                worst = max(worst, abs(float(np.median(halves[0]) - np.median(halves[1]))))
    return worst


def _slice_jump(data: Array, brain: NDArray[np.bool_]) -> float:
    """Return how far slices' medians stand from the mean of their neighbours', worst axis."""
    worst = 0.0
    for axis in range(3):
        planes, inside = np.moveaxis(data, axis, 0), np.moveaxis(brain, axis, 0)
        areas = inside.sum(axis=(1, 2))
        full = [i for i in range(len(planes)) if areas[i] > 0.3 * areas.max()]
        medians = np.array([np.median(planes[i][inside[i]]) for i in full])
        if len(medians) > 4:
            bend = medians[1:-1] - (medians[:-2] + medians[2:]) / 2
            worst = max(worst, float(np.median(np.abs(bend))))
    return worst


def _label_volumes(labels: NDArray, voxel_mm3: float) -> dict[str, float]:
    """Return the volume of each label, where there is more than one; 256 of them are anatomy."""
    values, counts = np.unique(labels, return_counts=True)
    found = {int(v): int(n) for v, n in zip(values, counts, strict=True) if v > 0}
    if not 1 < len(found) <= 8:
        return {}
    return {f"label.{value}_ml": n * voxel_mm3 / 1000.0 for value, n in found.items()}


def _patches(data: Array, brain: NDArray[np.bool_], generator: np.random.Generator) -> Array:
    inside = data[brain]
    scaled = (data - inside.mean()) / max(float(inside.std()), 1e-12)
    limits = np.array(data.shape) - PATCH_SIDE
    if (limits < 0).any():
        return np.zeros((0, *(PATCH_SIDE,) * 3), dtype=np.float32)
    half = PATCH_SIDE // 2
    centres = brain[tuple(slice(half, half + length + 1) for length in limits)]
    places = np.argwhere(centres)
    if not len(places):
        return np.zeros((0, *(PATCH_SIDE,) * 3), dtype=np.float32)
    chosen = places[generator.integers(len(places), size=PATCHES)]
    cuts = [
        scaled[x : x + PATCH_SIDE, y : y + PATCH_SIDE, z : z + PATCH_SIDE] for x, y, z in chosen
    ]
    return np.stack(cuts).astype(np.float32)
