"""Lesions as things to be found, not voxels to be counted.

A lesion is a connected component. It is *found* when the other mask covers enough of it: at least
one voxel, and at least the stated share of its voxels. Components below the minimum volume are no
lesions: they are neither to be found nor false alarms. They still count as part of the other mask,
so a large prediction over a tiny reference spot is not a false alarm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy import ndimage

from medseg.geometry import Grid
from medseg.metrics.masks import Mask, as_mask, check_spacing, mask_pair
from medseg.metrics.metric import Metric
from medseg.settings import settings

_EMPTY = "no lesion in both: 1; in one: 0"
LESION_SENSITIVITY = Metric(
    name="lesion_sensitivity",
    title="Lesion sensitivity",
    unit="1",
    direction="higher",
    empty=_EMPTY,
    perfect=1.0,
    worst=0.0,
)
LESION_PRECISION = Metric(
    name="lesion_precision",
    title="Lesion precision",
    unit="1",
    direction="higher",
    empty=_EMPTY,
    perfect=1.0,
    worst=0.0,
)
LESION_F1 = Metric(
    name="lesion_f1",
    title="Lesion F1",
    unit="1",
    direction="higher",
    empty=_EMPTY,
    perfect=1.0,
    worst=0.0,
)


@settings
class LesionSettings:
    """What a lesion is and when it is found.

    Parameters
    ----------
    connectivity : 6, 18 or 26
        Neighbours in 3D: sharing a face; an edge too; a corner too. In 2D these mean 4, 8 and 8.
    min_volume_mm3 : float
        Smaller components are no lesions. 0 keeps every component.
    min_overlap_share : float
        Share of a lesion's own voxels that the other mask must cover; 0 means one voxel is enough.
    """

    connectivity: Literal[6, 18, 26] = 26
    min_volume_mm3: float = Field(default=0.0, ge=0)
    min_overlap_share: float = Field(default=0.0, ge=0, le=1)


@dataclass(frozen=True)
class LesionScores:
    """Counts of lesions and what follows from them.

    Parameters
    ----------
    n_reference, n_found : int
        Lesions of the reference, and those of them that were found.
    n_predicted, n_true : int
        Lesions of the prediction, and those of them that lie on the reference.
    """

    n_reference: int
    n_found: int
    n_predicted: int
    n_true: int

    @property
    def sensitivity(self) -> float:
        """Found share of the reference's lesions."""
        if self.n_reference == 0:
            return float(self.n_predicted == 0)
        return self.n_found / self.n_reference

    @property
    def precision(self) -> float:
        """Share of the predicted lesions that lie on the reference."""
        if self.n_predicted == 0:
            return float(self.n_reference == 0)
        return self.n_true / self.n_predicted

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and precision."""
        total = self.sensitivity + self.precision
        return 2.0 * self.sensitivity * self.precision / total if total else 0.0


def label_lesions(
    mask: ArrayLike, *, spacing_mm: Sequence[float], settings: LesionSettings
) -> tuple[NDArray[np.int32], int]:
    """Return the lesions of a mask numbered 1, 2, ... from the largest down, and their count.

    Parameters
    ----------
    mask : boolean array, shape (*s,), two or three axes
    spacing_mm : sequence of float
        Voxel size in mm along each axis.
    settings : LesionSettings

    Returns
    -------
    labels : ndarray, shape (*s,), int32
        0 outside and in components that are too small.
    count : int
    """
    inside = as_mask(mask, name="mask")
    voxel_mm3 = float(np.prod(check_spacing(spacing_mm, dims=inside.ndim)))
    reach = min({6: 1, 18: 2, 26: 3}[settings.connectivity], inside.ndim)
    structure = ndimage.generate_binary_structure(inside.ndim, reach)
    labels = np.zeros(inside.shape, dtype=np.int32)
    found = ndimage.label(inside, structure=structure, output=labels)
    components = int(found if isinstance(found, int) else found[1])  # an int when given an output
    sizes = np.bincount(labels.ravel(), minlength=components + 1)[1:]
    kept = np.flatnonzero(sizes * voxel_mm3 >= settings.min_volume_mm3)
    # A stable order, so that equal sizes keep the order of the scan and files compare equal.
    ranked = kept[np.argsort(-sizes[kept], kind="stable")]
    renumber = np.zeros(components + 1, dtype=np.int32)
    renumber[ranked + 1] = np.arange(1, ranked.size + 1, dtype=np.int32)
    return renumber[labels], int(ranked.size)


def covered_shares(labels: NDArray[np.int32], count: int, other: Mask) -> NDArray[np.float64]:
    """Return the share of each lesion's voxels that lie in ``other``, shape (count,)."""
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    covered = np.bincount(labels[other], minlength=count + 1)[1:]
    return covered / np.maximum(sizes, 1)


def is_found(shares: NDArray[np.float64], settings: LesionSettings) -> NDArray[np.bool_]:
    """Return which lesions count as found, given the shares of them that are covered."""
    return (shares > 0) & (shares >= settings.min_overlap_share)


def lesion_scores(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: Sequence[float],
    settings: LesionSettings | None = None,
) -> LesionScores:
    """Return how many lesions were found and how many predictions are real.

    Parameters
    ----------
    prediction, reference : boolean arrays of one shape
    spacing_mm : sequence of float
        Voxel size in mm along each axis.
    settings : LesionSettings, optional

    References
    ----------
    Commowick et al., "Objective evaluation of multiple sclerosis lesion segmentation using a data
    management and processing infrastructure", 2018: lesion-wise sensitivity, precision and F1.
    """
    rule = settings or LesionSettings()
    predicted, true = mask_pair(prediction, reference)
    true_labels, n_reference = label_lesions(true, spacing_mm=spacing_mm, settings=rule)
    labels, n_predicted = label_lesions(predicted, spacing_mm=spacing_mm, settings=rule)
    found = is_found(covered_shares(true_labels, n_reference, predicted), rule)
    real = is_found(covered_shares(labels, n_predicted, true), rule)
    return LesionScores(n_reference, int(found.sum()), n_predicted, int(real.sum()))


def lesion_table(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    grid: Grid,
    settings: LesionSettings | None = None,
) -> list[dict[str, object]]:
    """Return one row for each lesion of the reference and of the prediction.

    Parameters
    ----------
    prediction, reference : boolean arrays, shape (x, y, z)
    grid : Grid
        Where the masks lie.
    settings : LesionSettings, optional

    Returns
    -------
    list of dict
        ``side`` ("reference" or "prediction"), ``lesion`` (1 is the largest of its side),
        ``volume_mm3``, ``x_mm``, ``y_mm``, ``z_mm`` (centroid, RAS), ``covered`` (share of it in
        the other mask) and ``found`` (by the rule of the settings: a missed lesion or a false alarm
        where false).
    """
    rule = settings or LesionSettings()
    predicted, true = mask_pair(prediction, reference)
    rows: list[dict[str, object]] = []
    for side, mask, other in (("reference", true, predicted), ("prediction", predicted, true)):
        labels, count = label_lesions(mask, spacing_mm=grid.spacing_mm, settings=rule)
        shares = covered_shares(labels, count, other)
        found = is_found(shares, rule)
        for row, share, hit in zip(
            describe_lesions(labels, count, grid), shares, found, strict=True
        ):
            rows.append({"side": side, **row, "covered": float(share), "found": bool(hit)})
    return rows


def describe_lesions(
    labels: NDArray[np.int32], count: int, grid: Grid
) -> list[dict[str, float | int]]:
    """Return number, volume in mm3 and centroid in RAS mm of lesions 1..count of a label array."""
    if count == 0:
        return []
    numbers = np.arange(1, count + 1)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    centroids = ndimage.center_of_mass(labels > 0, labels, numbers)
    places = grid.to_world(np.asarray(centroids))
    return [
        {
            "lesion": int(number),
            "volume_mm3": float(size * grid.voxel_volume_mm3),
            "x_mm": float(place[0]),
            "y_mm": float(place[1]),
            "z_mm": float(place[2]),
        }
        for number, size, place in zip(numbers, sizes, places, strict=True)
    ]
