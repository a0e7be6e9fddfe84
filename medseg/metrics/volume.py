"""How much was segmented."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from medseg.metrics.masks import as_mask, check_spacing, mask_pair
from medseg.metrics.metric import Metric

VOLUME_ERROR_ML = Metric(
    name="volume_error_ml",
    title="Volume error",
    unit="ml",
    direction="zero",
    empty="an empty mask has 0 ml",
    perfect=0.0,
    worst=None,
)
VOLUME_ERROR_PERCENT = Metric(
    name="volume_error_percent",
    title="Volume error",
    unit="%",
    direction="zero",
    empty="both empty: 0; reference empty: undefined",
    perfect=0.0,
    worst=-100.0,
)


def volume_ml(mask: ArrayLike, *, spacing_mm: Sequence[float]) -> float:
    """Return the volume of a mask in ml, voxels times the product of the spacing.

    Examples
    --------
    >>> volume_ml(np.ones((10, 10, 10), dtype=bool), spacing_mm=(1.0, 1.0, 2.0))
    2.0
    """
    array = as_mask(mask, name="mask")
    voxel_mm3 = float(np.prod(check_spacing(spacing_mm, dims=array.ndim)))
    return int(np.count_nonzero(array)) * voxel_mm3 / 1000.0


def volume_errors(
    prediction: ArrayLike, reference: ArrayLike, *, spacing_mm: Sequence[float]
) -> tuple[float, float]:
    """Return predicted minus reference volume, in ml and in percent of the reference.

    Parameters
    ----------
    prediction, reference : boolean arrays of one shape
    spacing_mm : sequence of float
        Voxel size in mm along each axis.

    Returns
    -------
    error_ml, error_percent : float
        Negative where too little was segmented. The percentage is NaN when only the reference is
        empty.
    """
    predicted, true = mask_pair(prediction, reference)
    found_ml = volume_ml(predicted, spacing_mm=spacing_mm)
    true_ml = volume_ml(true, spacing_mm=spacing_mm)
    error_ml = found_ml - true_ml
    if true_ml > 0:
        return error_ml, 100.0 * error_ml / true_ml
    return error_ml, 0.0 if found_ml == 0 else float("nan")
