"""Which arm is best how often: mean ranks over subjects, and how far they must lie apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from medseg.errors import DataError


@dataclass(frozen=True)
class Ranking:
    """Ranks of several arms on the same subjects.

    Parameters
    ----------
    mean_ranks : ndarray, shape (arms,)
        1 is best; ties share their mean rank.
    friedman_chi2, p_friedman : float
        Test that all arms rank alike; NaN with fewer than three arms or two subjects, or when no
        subject tells any two arms apart.
    critical_difference : float
        See :func:`critical_difference`; NaN with fewer than two subjects.
    n_subjects : int
    """

    mean_ranks: NDArray[np.float64]
    friedman_chi2: float
    p_friedman: float
    critical_difference: float
    n_subjects: int


def rank_arms(scores: ArrayLike) -> Ranking:
    """Rank arms within each subject, higher scores first, and average over subjects.

    Parameters
    ----------
    scores : array-like, shape (subjects, arms)
        Finite; one mean score per subject and arm.

    Raises
    ------
    DataError
        When it is no table of finite numbers with at least one subject and two arms.

    References
    ----------
    Friedman, The use of ranks to avoid the assumption of normality, 1937. Demšar, Statistical
    comparisons of classifiers over multiple data sets, 2006, section 3.2.2.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or len(table) < 1 or table.shape[1] < 2 or not np.isfinite(table).all():
        raise DataError(
            f"Ranks need finite scores of at least one subject and two arms, but the table has the "
            f"shape {table.shape} and {int((~np.isfinite(table)).sum())} entries are not finite.",
            hint="Rank the arms that have scores of the same subjects.",
        )
    subjects, arms = table.shape
    chi2 = p = math.nan
    if arms > 2 and subjects > 1 and bool((np.ptp(table, axis=1) > 0).any()):
        # Typed loosely: scipy's own annotation of the result is an unnamed tuple.
        found: Any = friedmanchisquare(*table.T)
        chi2, p = float(found.statistic), float(found.pvalue)
    return Ranking(
        mean_ranks=np.asarray(rankdata(-table, axis=1), dtype=np.float64).mean(axis=0),
        friedman_chi2=chi2,
        p_friedman=p,
        critical_difference=critical_difference(arms, subjects) if subjects > 1 else math.nan,
        n_subjects=subjects,
    )


def critical_difference(n_arms: int, n_subjects: int, *, alpha: float = 0.05) -> float:
    """Return how far the mean ranks of two arms must lie apart (Nemenyi).

    ``q sqrt(k (k + 1) / (6 n))`` of k arms and n subjects, where q is the upper quantile of the
    studentised range with infinite degrees of freedom over the square root of 2.

    References
    ----------
    Nemenyi, Distribution-free multiple comparisons, 1963. Demšar 2006, equation 6 of section 3.2.2.

    Examples
    --------
    >>> round(critical_difference(4, 14), 2)
    1.25
    """
    q = float(studentized_range.ppf(1.0 - alpha, n_arms, np.inf)) / math.sqrt(2.0)
    return q * math.sqrt(n_arms * (n_arms + 1) / (6.0 * n_subjects))
