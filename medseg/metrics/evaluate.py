"""Every metric of one case, and tables over many."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from medseg.errors import DataError
from medseg.metrics.calibration import (
    BRIER,
    DEFAULT_BINS,
    ECE,
    NLL_NATS,
    brier_score,
    calibration_error,
    negative_log_likelihood_nats,
    reliability_bins,
)
from medseg.metrics.lesions import (
    LESION_F1,
    LESION_PRECISION,
    LESION_SENSITIVITY,
    LesionSettings,
    lesion_scores,
)
from medseg.metrics.masks import as_mask, mask_pair
from medseg.metrics.metric import Metric
from medseg.metrics.overlap import DSC, IOU, dice, intersection_over_union
from medseg.metrics.surface import HD95_MM, NSD, image_diagonal_mm, surface_scores
from medseg.metrics.volume import (
    VOLUME_ERROR_ML,
    VOLUME_ERROR_PERCENT,
    volume_errors,
    volume_ml,
)
from medseg.settings import settings

#: Every metric, in the order of tables.
METRICS: tuple[Metric, ...] = (
    DSC,
    IOU,
    HD95_MM,
    NSD,
    VOLUME_ERROR_ML,
    VOLUME_ERROR_PERCENT,
    LESION_SENSITIVITY,
    LESION_PRECISION,
    LESION_F1,
    NLL_NATS,
    BRIER,
    ECE,
)

#: The key that marks a row of a case without a prediction.
MISSING = "missing"


@settings
class MetricSettings:
    """What the metrics leave open.

    Parameters
    ----------
    nsd_tolerance_mm : float
        Surfaces this close agree, in mm.
    hausdorff_percentile : float
        Of the surface distances behind ``hd95_mm``; the name holds for 95.
    reliability_bins : int
        Bins of equal width behind ``ece``.
    lesions : LesionSettings
        Connectivity, minimum size and matching rule.
    """

    nsd_tolerance_mm: float = Field(default=2.0, gt=0)
    hausdorff_percentile: float = Field(default=95.0, gt=0, le=100)
    reliability_bins: int = Field(default=DEFAULT_BINS, ge=1)
    lesions: LesionSettings = LesionSettings()


def evaluate_masks(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: Sequence[float],
    probability: ArrayLike | None = None,
    inside: ArrayLike | None = None,
    settings: MetricSettings | None = None,
) -> dict[str, float]:
    """Return every metric of one region of one case.

    Parameters
    ----------
    prediction, reference : boolean arrays, shape (*s,), two or three axes
    spacing_mm : sequence of float
        Voxel size in mm along each axis.
    probability : array, shape (*s,), optional
        Of being inside the region; NLL, Brier and ECE are NaN without it.
    inside : boolean array, shape (*s,), optional
        The voxels over which probabilities are scored, for example the brain.
    settings : MetricSettings, optional

    Returns
    -------
    dict
        The names of :data:`METRICS`, then ``volume_ml`` and ``reference_volume_ml``. The value for
        empty masks is in each metric's ``empty``; NaN means undefined.

    Raises
    ------
    ShapeError, LabelError, GeometryError, ScanError
        Arrays of different shapes, no masks, no spacing, no probabilities.
    """
    chosen = settings or MetricSettings()
    predicted, true = mask_pair(prediction, reference)
    hausdorff, nsd = surface_scores(
        predicted,
        true,
        spacing_mm=spacing_mm,
        percentile=chosen.hausdorff_percentile,
        tolerance_mm=chosen.nsd_tolerance_mm,
    )
    error_ml, error_percent = volume_errors(predicted, true, spacing_mm=spacing_mm)
    found = lesion_scores(predicted, true, spacing_mm=spacing_mm, settings=chosen.lesions)
    return {
        "dsc": dice(predicted, true),
        "iou": intersection_over_union(predicted, true),
        "hd95_mm": hausdorff,
        "nsd": nsd,
        "volume_error_ml": error_ml,
        "volume_error_percent": error_percent,
        "lesion_sensitivity": found.sensitivity,
        "lesion_precision": found.precision,
        "lesion_f1": found.f1,
        **_calibration(probability, true, inside, chosen.reliability_bins),
        "volume_ml": volume_ml(predicted, spacing_mm=spacing_mm),
        "reference_volume_ml": volume_ml(true, spacing_mm=spacing_mm),
    }


def _calibration(
    probability: ArrayLike | None, true: ArrayLike, inside: ArrayLike | None, n_bins: int
) -> dict[str, float]:
    if probability is None:
        return {"nll_nats": math.nan, "brier": math.nan, "ece": math.nan}
    return {
        "nll_nats": negative_log_likelihood_nats(probability, true, inside=inside),
        "brier": brier_score(probability, true, inside=inside),
        "ece": calibration_error(reliability_bins(probability, true, n_bins, inside=inside)),
    }


def worst_scores(reference: ArrayLike, *, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Return the row of a case without a prediction: the worst value of every metric.

    Parameters
    ----------
    reference : boolean array, shape (*s,)
    spacing_mm : sequence of float
        Voxel size in mm along each axis.

    Returns
    -------
    dict
        As :func:`evaluate_masks`, with ``missing`` = 1. The Hausdorff distance is the image's
        diagonal, the volume error that of a prediction of nothing.
    """
    true = as_mask(reference, name="reference")
    reference_ml = volume_ml(true, spacing_mm=spacing_mm)
    scores = {metric.name: math.nan if metric.worst is None else metric.worst for metric in METRICS}
    scores["hd95_mm"] = image_diagonal_mm(true.shape, spacing_mm)
    scores["volume_error_ml"] = -reference_ml
    return {**scores, "volume_ml": 0.0, "reference_volume_ml": reference_ml, MISSING: 1.0}


@dataclass(frozen=True)
class Aggregate:
    """One metric over many cases.

    Parameters
    ----------
    metric : str
    n : int
        Cases in the denominator, those without a prediction included.
    n_missing : int
        Cases without a prediction, which count with the worst value.
    n_undefined : int
        Cases left out because the metric is undefined there (NaN in a row that has a prediction).
    mean, std, median : float
        Over ``n`` cases; ``std`` is the sample standard deviation, NaN below two cases.
    """

    metric: str
    n: int
    n_missing: int
    n_undefined: int
    mean: float
    std: float
    median: float


def aggregate(rows: Sequence[Mapping[str, object]]) -> dict[str, Aggregate]:
    """Return mean, spread and counts of every metric that occurs in the rows.

    Parameters
    ----------
    rows : sequence of mapping
        One a case, from :func:`evaluate_masks` or, without a prediction, :func:`worst_scores`. A
        row with a true ``missing`` and nothing else counts too, with each metric's worst value.

    Returns
    -------
    dict from metric name to Aggregate

    Raises
    ------
    DataError
        No row at all; or a missing prediction whose worst value depends on the case and is not in
        its row.
    """
    if not rows:
        raise DataError("A mean needs at least one case, but there is none.")
    present = [metric for metric in METRICS if any(metric.name in row for row in rows)]
    return {metric.name: _aggregate(metric, rows) for metric in present}


def _aggregate(metric: Metric, rows: Sequence[Mapping[str, object]]) -> Aggregate:
    missing = [_is_missing(row) for row in rows]
    values = [_value(metric, row, gone) for row, gone in zip(rows, missing, strict=True)]
    scored = [value for value, gone in zip(values, missing, strict=True) if not gone]
    if scored and all(math.isnan(value) for value in scored):
        # Nobody measured it, so the worst values of the missing ones would stand alone.
        values = [math.nan] * len(values)
    defined = np.array([value for value in values if not math.isnan(value)])
    size = defined.size
    return Aggregate(
        metric=metric.name,
        n=size,
        n_missing=sum(missing),
        n_undefined=len(values) - size,
        mean=float(defined.mean()) if size else math.nan,
        std=float(defined.std(ddof=1)) if size > 1 else math.nan,
        median=float(np.median(defined)) if size else math.nan,
    )


def _is_missing(row: Mapping[str, object]) -> bool:
    return str(row.get(MISSING, "")).lower() in {"1", "1.0", "true", "yes"}


def _number(value: object) -> float:
    """Read a number from a row, which may come from a table on disk, where absent is ``n/a``."""
    if value is None or (isinstance(value, str) and value.strip().lower() in {"", "n/a", "nan"}):
        return math.nan
    return float(value)  # type: ignore[arg-type]


def _value(metric: Metric, row: Mapping[str, object], missing: bool) -> float:
    value = _number(row.get(metric.name))
    if not missing or not math.isnan(value):
        return value
    if metric.worst is None:
        raise DataError(
            "A missing prediction counts with the worst value, but that of "
            f"{metric.name!r} depends on the case and its row holds none: {dict(row)}.",
            hint="Make the row with worst_scores(reference, spacing_mm=...).",
        )
    return metric.worst
