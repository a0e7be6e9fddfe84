"""Split-conformal prediction: how far an interval must be widened to keep its promise."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from medseg.errors import DataError


def conformal_quantile(scores: ArrayLike, *, coverage: float) -> float:
    """Return the score that the next case stays at or below with at least this chance.

    That is the ``ceil((n + 1) coverage)``-th smallest of the n scores, whatever their distribution,
    as long as the next case could have stood in the place of any of them.

    Parameters
    ----------
    scores : array-like, shape (n,)
        How far each calibration case lies outside its interval; negative inside.
    coverage : float
        Above 0 and below 1.

    Returns
    -------
    float
        Infinite when n is too small: 0.9 needs nine scores.

    Raises
    ------
    DataError
        ``coverage`` is out of range or a score is NaN.

    References
    ----------
    Romano, Patterson and Candès, Conformalized quantile regression, 2019, equation 7 and theorem 1.

    Examples
    --------
    >>> conformal_quantile([3.0, 1.0, 2.0, 4.0], coverage=0.8)
    4.0
    >>> conformal_quantile([1.0], coverage=0.9)
    inf
    """
    vector = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not 0.0 < coverage < 1.0 or bool(np.isnan(vector).any()):
        raise DataError(
            f"Calibration needs a coverage between 0 and 1 and scores that are numbers, but the "
            f"coverage is {coverage} and {int(np.isnan(vector).sum())} scores are not.",
            hint="Leave cases without an interval out.",
        )
    # 10 x 0.9 is a little above 9 in floating point, and must not count as 10.
    place = math.ceil((len(vector) + 1) * coverage - 1e-9)
    return float(vector[place - 1]) if place <= len(vector) else math.inf
