"""Whether probabilities mean what they say: per voxel, of being inside the region or not."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.errors import ScanError, ShapeError
from medseg.metrics.masks import as_mask
from medseg.metrics.metric import Metric

#: Probabilities are kept this far from 0 and 1 in the likelihood: float32 sigmoids saturate.
CLIP = 1e-6
DEFAULT_BINS = 15

_EMPTY = "nothing special: averaged over voxels"
NLL_NATS = Metric(
    name="nll_nats",
    title="NLL",
    unit="nats",
    direction="lower",
    empty=_EMPTY,
    perfect=0.0,
    worst=float(-np.log(CLIP)),
    needs_probability=True,
)
BRIER = Metric(
    name="brier",
    title="Brier",
    unit="1",
    direction="lower",
    empty=_EMPTY,
    perfect=0.0,
    worst=1.0,
    needs_probability=True,
)
ECE = Metric(
    name="ece",
    title="ECE",
    unit="1",
    direction="lower",
    empty=_EMPTY,
    perfect=0.0,
    worst=1.0,
    needs_probability=True,
)


class ReliabilityBin(TypedDict):
    """One bar of a reliability plot.

    ``bin`` counts from 0; ``confidence`` is the mean predicted probability of the bin's voxels and
    ``accuracy`` the share of them that are inside the region, both NaN when ``count`` is 0.
    """

    bin: int
    confidence: float
    accuracy: float
    count: int


def _voxels(
    probability: ArrayLike, truth: ArrayLike, inside: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    probabilities, true = np.asarray(probability), as_mask(truth, name="reference")
    if probabilities.shape != true.shape or true.size == 0:
        raise ShapeError(
            "Probability and reference must have one shape with at least one voxel, but theirs are "
            f"{probabilities.shape} and {true.shape}.",
            hint="Bring the probability to the reference's grid first.",
        )
    if inside is not None:
        chosen = as_mask(inside, name="mask of scored voxels")
        if chosen.shape != true.shape or not chosen.any():
            raise ShapeError(
                f"The mask of scored voxels must have shape {true.shape} and at least one voxel, "
                f"but it has shape {chosen.shape} and {int(chosen.sum())} voxels.",
                hint="Leave it out to score every voxel.",
            )
        probabilities, true = probabilities[chosen], true[chosen]
    values = probabilities.astype(np.float64).ravel()
    # Written so that NaN fails too.
    if not ((values >= -CLIP) & (values <= 1 + CLIP)).all():
        raise ScanError(
            "Probabilities lie between 0 and 1, but these run from "
            f"{values.min()} to {values.max()}.",
            hint="Apply the sigmoid or softmax to logits first.",
        )
    return values.clip(0.0, 1.0), true.ravel()


def negative_log_likelihood_nats(
    probability: ArrayLike, truth: ArrayLike, *, inside: ArrayLike | None = None
) -> float:
    """Return the mean negative log-likelihood in nats per voxel.

    Parameters
    ----------
    probability : array, shape (*s,)
        Of being inside the region; clipped to ``CLIP .. 1 - CLIP``.
    truth : boolean array, shape (*s,)
    inside : boolean array, shape (*s,), optional
        The voxels that count, for example the brain; all when left out.

    Examples
    --------
    >>> round(negative_log_likelihood_nats([0.5, 0.5], [True, False]), 4)
    0.6931
    """
    values, true = _voxels(probability, truth, inside)
    likelihood = np.where(true, values, 1.0 - values)
    return float(-np.log(likelihood.clip(CLIP, 1.0 - CLIP)).mean())


def brier_score(
    probability: ArrayLike, truth: ArrayLike, *, inside: ArrayLike | None = None
) -> float:
    """Return the mean squared difference between probability and outcome.

    References
    ----------
    Brier, "Verification of forecasts expressed in terms of probability", 1950 (half of eq. 2, two
    classes).
    """
    values, true = _voxels(probability, truth, inside)
    return float(np.square(values - true).mean())


def reliability_bins(
    probability: ArrayLike,
    truth: ArrayLike,
    n_bins: int = DEFAULT_BINS,
    *,
    inside: ArrayLike | None = None,
) -> list[ReliabilityBin]:
    """Return predicted against observed frequency in ``n_bins`` bins of equal width over 0..1.

    Parameters
    ----------
    probability : array, shape (*s,)
        Of being inside the region. A value on an inner edge belongs to the upper bin.
    truth : boolean array, shape (*s,)
    n_bins : int
    inside : boolean array, shape (*s,), optional
        The voxels that count.

    Returns
    -------
    list of ReliabilityBin
        All bins, empty ones too.
    """
    if n_bins < 1:
        raise ShapeError(f"A reliability plot needs at least one bin, but {n_bins} were asked for.")
    values, true = _voxels(probability, truth, inside)
    place = np.minimum((values * n_bins).astype(np.int64), n_bins - 1)
    count = np.bincount(place, minlength=n_bins)
    predicted = np.bincount(place, weights=values, minlength=n_bins)
    observed = np.bincount(place, weights=true, minlength=n_bins)
    return [_bin(i, predicted[i], observed[i], int(count[i])) for i in range(n_bins)]


def _bin(index: int, predicted: float, observed: float, count: int) -> ReliabilityBin:
    if count == 0:
        return ReliabilityBin(bin=index, confidence=float("nan"), accuracy=float("nan"), count=0)
    return ReliabilityBin(
        bin=index,
        confidence=float(predicted / count),
        accuracy=float(observed / count),
        count=count,
    )


def pool_reliability(tables: Sequence[Sequence[ReliabilityBin]]) -> list[ReliabilityBin]:
    """Return the bins of all voxels of several cases together, from the bins of each.

    Raises
    ------
    ShapeError
        No table, or tables with different numbers of bins.
    """
    lengths = {len(table) for table in tables}
    if len(lengths) != 1:
        raise ShapeError(
            f"Reliability tables are pooled bin by bin, but they have {sorted(lengths)} bins.",
            hint="Make all of them with one number of bins.",
        )
    pooled = []
    for index, bins in enumerate(zip(*tables, strict=True)):
        used = [one for one in bins if one["count"]]
        predicted = sum(one["confidence"] * one["count"] for one in used)
        observed = sum(one["accuracy"] * one["count"] for one in used)
        pooled.append(_bin(index, predicted, observed, sum(one["count"] for one in used)))
    return pooled


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the expected calibration error: the mean over voxels of ``|confidence - accuracy|``.

    Parameters
    ----------
    bins : sequence of ReliabilityBin
        From :func:`reliability_bins` or :func:`pool_reliability`.

    References
    ----------
    Naeini, Cooper, Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning",
    2015; here with equal-width bins of the region's probability rather than of the predicted
    class's, so that over- and underestimated risk do not hide behind a correct background.
    """
    used = [one for one in bins if one["count"]]
    total = sum(one["count"] for one in used)
    error = sum(abs(one["confidence"] - one["accuracy"]) * one["count"] for one in used)
    return error / total if total else float("nan")
