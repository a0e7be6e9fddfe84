"""Thresholds and intervals that keep their promise for the next case, whatever the model.

All of it rests on one assumption: the next case and the n cases that were looked at could have come
in any order. Promises are about such cases on average, not about each one.
"""

import math

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError, DataError, ShapeError

#: Added to every volume before its logarithm, so that an empty mask has one; in ml.
OFFSET_ML = 0.1
#: Cuts that inner and outer masks choose among. Below the first every voxel is in, above the last
#: none, so that a mask that keeps its promise always exists.
CUTS: NDArray[np.float64] = np.concatenate(
    [[0.0], 1.0 / (1.0 + np.exp(-np.linspace(-9.0, 9.0, 181))), [1.0]]
)


def check_coverage(coverage: float) -> None:
    """Raise where a coverage is not strictly between 0 and 1.

    Raises
    ------
    ConfigError
    """
    # Written so that NaN fails too.
    if not 0.0 < coverage < 1.0:
        raise ConfigError(
            f"A coverage lies between 0 and 1, both excluded, but it is {coverage}.",
            hint="Write 0.9 for 90 %.",
        )


def cases_needed(coverage: float) -> int:
    """Return the fewest cases that a coverage can be promised from.

    Examples
    --------
    >>> cases_needed(0.9), cases_needed(0.8)
    (9, 4)
    """
    check_coverage(coverage)
    # Rounded first: 1 / (1 - .9) is a little more than 10.
    return math.ceil(round(1.0 / (1.0 - coverage), 9)) - 1


def best_coverage(n: int) -> float:
    """Return the largest coverage that can be promised from ``n`` cases."""
    return n / (n + 1)


def coverage_to_ask(n: int) -> str:
    """Return :func:`best_coverage` in words, rounded down: rounded up it could not be promised.

    Examples
    --------
    >>> coverage_to_ask(8), coverage_to_ask(9)
    ('0.88', '0.90')
    """
    return f"{100 * n // (n + 1) / 100:.2f}"


def conformal_quantile(scores: NDArray[np.float64], coverage: float) -> float:
    """Return the value that the score of the next case does not exceed with the stated chance.

    It is the ``ceil((n + 1) coverage)``-th smallest of the n scores, and infinite where there are
    fewer: then no finite value can be promised.

    Parameters
    ----------
    scores : ndarray, shape (n,)
    coverage : float

    References
    ----------
    Vovk, Gammerman, Shafer 2005, "Algorithmic learning in a random world", section 4.1; Lei et al.
    2018, "Distribution-free predictive inference for regression", algorithm 2.
    """
    n = _checked(scores)
    check_coverage(coverage)
    rank = math.ceil(round((n + 1) * coverage, 9))
    return math.inf if rank > n else float(np.sort(scores)[rank - 1])


def percentile_among(scores: NDArray[np.float64], value: float) -> float:
    """Return the share in % of ``scores`` below a value; equal ones count half."""
    _checked(scores)
    return float(100.0 * ((scores < value) + 0.5 * (scores == value)).mean())


def controlled_cut(losses: NDArray[np.float64], allowed: float, *, safe: int) -> int:
    """Return the number of the cut at which the next case's expected loss is at most ``allowed``.

    Conformal risk control: of all cuts with ``n / (n + 1) mean(loss) + 1 / (n + 1) <= allowed`` it
    takes the one farthest from the safe end.

    Parameters
    ----------
    losses : ndarray, shape (n, cuts)
        Of each case at each cut, in [0, 1]; never smaller farther from the safe end.
    allowed : float
        Largest expected loss, between 0 and 1.
    safe : 0 or -1
        The end at which every loss is 0.

    Raises
    ------
    DataError
        So few cases that no cut can be promised.
    ShapeError
        Losses that are not monotone, not 0 at the safe end, or not in [0, 1].

    References
    ----------
    Angelopoulos et al. 2024, "Conformal risk control", equation 4 and theorem 1, with B = 1.
    """
    check_coverage(allowed)
    away = losses if safe == 0 else losses[:, ::-1]
    n = len(away)
    if n < cases_needed(1.0 - allowed):
        raise DataError(
            f"An expected loss of at most {allowed:g} can be promised from "
            f"{cases_needed(1.0 - allowed)} cases on, but there are {n}.",
            hint=f"Add labelled cases, or ask for a coverage of at most {coverage_to_ask(n)}.",
        )
    if away[:, 0].any() or not ((np.diff(away) >= 0).all() and (away <= 1).all()):
        raise ShapeError(
            "Losses must be 0 at the safe end and never fall on the way from it up to 1.",
            hint="Make them with missed_shares or false_shares.",
        )
    bound = n / (n + 1) * away.mean(axis=0) + 1.0 / (n + 1)
    # Rounding of the mean must not cost the bound that holds exactly.
    last = int(np.flatnonzero(bound <= allowed + 1e-12)[-1])
    return last if safe == 0 else len(bound) - 1 - last


def missed_shares(
    probability: NDArray[np.floating], mask: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the share of the true voxels outside the outer mask at each of ``CUTS``.

    The outer mask is the decided mask with all voxels whose probability is at least the cut. A case
    without any true voxel misses none.

    Parameters
    ----------
    probability : ndarray, shape (*s,)
    mask : boolean ndarray, shape (*s,)
        As decided without a calibration.
    truth : boolean ndarray, shape (*s,)
    """
    total = np.count_nonzero(truth)
    if total == 0:
        return np.zeros(len(CUTS))
    doubtful = np.sort(probability[truth & ~mask].astype(np.float64))
    return np.searchsorted(doubtful, CUTS, side="left") / total


def false_shares(
    probability: NDArray[np.floating], mask: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the share of the inner mask's voxels that are not true at each of ``CUTS``.

    The inner mask is what is above the cut in the decided mask; an empty one has no false voxel. A
    share is not monotone in the cut, so each is the largest at its own cut and all stricter ones:
    an upper bound that is.

    Parameters
    ----------
    probability, mask, truth
        As for :func:`missed_shares`.

    References
    ----------
    Angelopoulos et al. 2024, "Conformal risk control", section 2.3: the monotonised risk.
    """
    inside = np.sort(probability[mask].astype(np.float64))
    wrong = np.sort(probability[mask & ~truth].astype(np.float64))
    kept = len(inside) - np.searchsorted(inside, CUTS, side="right")
    false = len(wrong) - np.searchsorted(wrong, CUTS, side="right")
    shares = false / np.maximum(kept, 1)
    return np.maximum.accumulate(shares[::-1])[::-1]


def log_volume_spread(volumes_ml: NDArray[np.float64], *, floor: float) -> float:
    """Return how unsure posterior samples are of a volume, on the scale of its logarithm.

    Parameters
    ----------
    volumes_ml : ndarray, shape (K,)
    floor : float
        Joined to the samples' standard deviation as the root of the sum of squares, because samples
        that agree may all be wrong; it is all there is for K = 1.
    """
    return math.hypot(floor, float(np.log(volumes_ml + OFFSET_ML).std()))


def log_volume_score(predicted_ml: float, true_ml: float, *, spread: float) -> float:
    """Return how far a predicted volume is from the true one: log ratio over spread, above 0."""
    ratio = (true_ml + OFFSET_ML) / (predicted_ml + OFFSET_ML)
    return abs(math.log(ratio)) / spread


def volume_interval_ml(predicted_ml: float, *, spread: float, factor: float) -> tuple[float, float]:
    """Return the volumes whose :func:`log_volume_score` is at most ``factor``, in ml.

    Examples
    --------
    >>> volume_interval_ml(10.0, spread=1.0, factor=float("inf"))
    (0.0, inf)
    """
    if math.isinf(factor):
        return 0.0, math.inf
    reach, middle = math.exp(factor * spread), predicted_ml + OFFSET_ML
    return max(0.0, middle / reach - OFFSET_ML), middle * reach - OFFSET_ML


def _checked(scores: NDArray[np.float64]) -> int:
    """Return the number of scores."""
    if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
        raise DataError(
            "A calibration needs the score of at least one case, none of them NaN, but the scores "
            f"are {scores.tolist()[:5]}.",
            hint="Give labelled cases that the model was not trained on.",
        )
    return len(scores)
