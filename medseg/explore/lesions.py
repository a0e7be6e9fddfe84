"""Size, shape, place and contrast of each lesion of a mask."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy import ndimage

from medseg.geometry import Grid
from medseg.metrics.lesions import LesionSettings, label_lesions

# The shell that a lesion is compared with: not the blurred rim, not another tissue.
_SHELL_MM = (1.5, 5.0)
_FARTHEST_RATIO = 50.0
#: Lesions with contrast and shape; a mask in a thousand pieces is measured by its largest.
MOST_LESIONS = 200


def lesion_rows(
    mask: NDArray[np.bool_],
    images: Mapping[str, NDArray[np.floating]],
    *,
    brain: NDArray[np.bool_],
    grid: Grid,
    ranges: Mapping[str, float],
) -> tuple[list[dict[str, float]], int]:
    """Return a row per lesion, the largest first, and how many there are.

    Parameters
    ----------
    mask, brain : ndarray, shape (x, y, z), bool
    images : mapping of modality to ndarray, shape (x, y, z)
    grid : Grid
        Of all of them.
    ranges : mapping of modality to float
        The tissue range that contrast is a share of.

    Returns
    -------
    rows : list of dict
        ``lesion`` (1 is the largest), ``volume_ml``, ``x_mm``, ``y_mm``, ``z_mm`` (centroid minus
        that of the brain: right, front, up), ``sphericity``, ``extent``, ``elongation``,
        ``flatness``, ``<modality>.contrast``. At most 200 rows.
    count : int
        Lesions, those without a row included.

    Notes
    -----
    Sphericity is the surface of the ball of equal volume over the lesion's, which is estimated by
    Crofton's formula: for a lesion of a few voxels it can exceed 1.

    References
    ----------
    Lehmann and Legland (2012), Efficient N-dimensional surface estimation using Crofton formula and
    run-length encoding, Insight Journal.
    """
    spacing = grid.spacing_mm
    labels, count = label_lesions(mask, spacing_mm=spacing, settings=LesionSettings())
    labels[labels > MOST_LESIONS] = 0
    shapes = _shapes(labels, spacing)
    centre = grid.to_world(np.argwhere(brain).mean(0))
    boxes = ndimage.find_objects(labels, max_label=min(count, MOST_LESIONS))
    rows = []
    for number, box in enumerate(boxes, start=1):
        inside = labels[box] == number
        first = np.array([side.start for side in box])
        place = grid.to_world(np.argwhere(inside).mean(0) + first) - centre
        row = {
            "lesion": float(number),
            "volume_ml": float(inside.sum()) * grid.voxel_volume_mm3 / 1000.0,
            **dict(zip(("x_mm", "y_mm", "z_mm"), map(float, place), strict=True)),
            "extent": float(inside.mean()),
            **shapes[number],
        }
        rows.append(row | _contrasts(number, box, labels, mask, images, brain, spacing, ranges))
    return rows, count


def _shapes(labels: NDArray[np.int32], spacing: tuple[float, ...]) -> dict[int, dict[str, float]]:
    statistics = SimpleITK.LabelShapeStatisticsImageFilter()
    statistics.ComputePerimeterOn()
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(labels))
    image.SetSpacing(tuple(reversed(spacing)))
    statistics.Execute(image)
    return {
        number: {
            "sphericity": _finite(statistics.GetRoundness(number)),
            "elongation": _finite(statistics.GetElongation(number)),
            "flatness": _finite(statistics.GetFlatness(number)),
        }
        for number in statistics.GetLabels()
    }


def _finite(value: float) -> float:
    # A lesion in one plane or line has no third axis: ITK says 0, infinity, or a huge number.
    return float(value) if 0 < value < _FARTHEST_RATIO else math.nan


def _contrasts(
    number: int,
    box: tuple[slice, ...],
    labels: NDArray[np.int32],
    mask: NDArray[np.bool_],
    images: Mapping[str, NDArray[np.floating]],
    brain: NDArray[np.bool_],
    spacing: tuple[float, ...],
    ranges: Mapping[str, float],
) -> dict[str, float]:
    wide = tuple(
        slice(max(side.start - margin, 0), side.stop + margin)
        for side, margin in zip(box, (math.ceil(_SHELL_MM[1] / s) for s in spacing), strict=True)
    )
    inside = labels[wide] == number
    distance = np.asarray(ndimage.distance_transform_edt(~inside, sampling=spacing))
    low, high = _SHELL_MM
    near = max(low, min(spacing)) <= distance  # thick voxels: at least the next one
    shell = near & (distance <= max(high, 1.5 * max(spacing))) & brain[wide] & ~mask[wide]
    if not shell.any():
        return {f"{name}.contrast": math.nan for name in images}
    return {
        f"{name}.contrast": float(data[wide][inside].mean() - data[wide][shell].mean())
        / ranges[name]
        for name, data in images.items()
    }


def lesion_summary(rows: list[dict[str, float]], count: int, brain_ml: float) -> dict[str, float]:
    """Return the features of a scan that its lesions make, by name; a mask without any has 0 ml."""
    volumes = np.array([row["volume_ml"] for row in rows])
    total = float(volumes.sum())
    features = {
        "lesion.volume_ml": total,
        "lesion.count": float(count),
        "lesion.largest_ml": float(volumes.max(initial=0.0)),
        "lesion.median_ml": float(np.median(volumes)) if rows else 0.0,
        "lesion.share": total / brain_ml if brain_ml > 0 else math.nan,
    }
    if not rows:
        return features
    for name in ("sphericity", "extent", "elongation"):
        features[f"lesion.{name}"] = _weighted([row[name] for row in rows], volumes)
    for name in (key for key in rows[0] if key.endswith(".contrast")):
        features[name] = _weighted([row[name] for row in rows], volumes)
    side = np.sign([row["x_mm"] for row in rows])
    features["lesion.left_right"] = float((side * volumes).sum()) / total
    features["lesion.height_mm"] = _weighted([row["z_mm"] for row in rows], volumes)
    return features


def _weighted(values: list[float], weights: NDArray[np.floating]) -> float:
    found = np.array(values)
    known = np.isfinite(found)
    return float(np.average(found[known], weights=weights[known])) if known.any() else math.nan
