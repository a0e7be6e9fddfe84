"""Overlap of two masks."""

import numpy as np
from numpy.typing import ArrayLike

from medseg.metrics.masks import mask_pair
from medseg.metrics.metric import Metric

DSC = Metric(
    name="dsc",
    title="Dice",
    unit="1",
    direction="higher",
    empty="both empty: 1; one empty: 0",
    perfect=1.0,
    worst=0.0,
)
IOU = Metric(
    name="iou",
    title="IoU",
    unit="1",
    direction="higher",
    empty="both empty: 1; one empty: 0",
    perfect=1.0,
    worst=0.0,
)


def dice(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the Dice similarity coefficient ``2 TP / (2 TP + FP + FN)`` of one case.

    Parameters
    ----------
    prediction, reference : boolean arrays of one shape

    Returns
    -------
    float
        In 0..1; 1 when both are empty.

    References
    ----------
    Dice, "Measures of the amount of ecologic association between species", 1945.

    Examples
    --------
    >>> dice([True, True, False], [True, False, False])  # doctest: +ELLIPSIS
    0.666...
    >>> dice([False], [False])
    1.0
    """
    predicted, true = mask_pair(prediction, reference)
    total = int(predicted.sum()) + int(true.sum())
    return 2.0 * float(np.count_nonzero(predicted & true)) / total if total else 1.0


def intersection_over_union(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the Jaccard index ``TP / (TP + FP + FN)`` of one case; 1 when both are empty.

    Parameters
    ----------
    prediction, reference : boolean arrays of one shape

    References
    ----------
    Jaccard, "The distribution of the flora in the alpine zone", 1912.
    """
    predicted, true = mask_pair(prediction, reference)
    union = int(np.count_nonzero(predicted | true))
    return float(np.count_nonzero(predicted & true)) / union if union else 1.0


def expected_dice(probability: ArrayLike, prediction: ArrayLike) -> float:
    """Return the Dice coefficient that a network expects of its own mask, without a reference.

    ``2 sum_(i in mask) p_i / (|mask| + sum_i p_i)``: the ratio of the expectations when each voxel
    is lesion with its own probability. A low value asks for a second look.

    Parameters
    ----------
    probability : array, shape (*s,)
        Of being inside the region; 0 outside the brain.
    prediction : boolean array, shape (*s,)

    Returns
    -------
    float
        In 0..1; 1 when the mask is empty and all probabilities are 0.
    """
    chance, mask = np.asarray(probability, dtype=np.float64), np.asarray(prediction, dtype=bool)
    total = float(mask.sum()) + float(chance.sum())
    return 2.0 * float(chance[mask].sum()) / total if total else 1.0
