"""Statistics of few-shot experiments: every interval and test is over subjects.

Scans of one subject, and one scan scored under several training subsets or seeds, are not
independent: the subject is the unit that is resampled and tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata, wilcoxon

from medseg.errors import DataError
from medseg.seeding import numpy_generator

FloatVector = NDArray[np.float64]
#: Most differences whose signs are counted out instead of approximated.
_EXACT = 50


@dataclass(frozen=True)
class MeanInterval:
    """A mean that never travels without its n.

    Parameters
    ----------
    mean : float
        Over all values, in their unit.
    low, high : float
        Bootstrap percentile interval of the mean; NaN with fewer than two subjects.
    n_values, n_subjects : int
        How many values, of how many subjects.
    """

    mean: float
    low: float
    high: float
    n_values: int
    n_subjects: int


@dataclass(frozen=True)
class PairedDifference:
    """The mean of ``a - b`` over pairs.

    Parameters
    ----------
    difference : float
        Mean over all pairs, in the unit of the values.
    low, high : float
        Bootstrap percentile interval of it; NaN with fewer than two subjects.
    p_wilcoxon : float
        Two-sided signed-rank test on the mean difference of each subject; 1 when all are 0.
        With n subjects it cannot fall below ``2 / 2^n``: 0.25 for three.
    n_values, n_subjects : int
        How many pairs, of how many subjects.
    sd : float
        Standard deviation over subjects of their mean differences; NaN with fewer than two.
    """

    difference: float
    low: float
    high: float
    p_wilcoxon: float
    n_values: int
    n_subjects: int
    sd: float


def bootstrap_mean_interval(
    values: ArrayLike,
    subjects: Sequence[str],
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> MeanInterval:
    """Return the mean of ``values`` with a bootstrap interval that resamples subjects.

    A resample draws as many subjects as there are, with replacement, takes all values of each, and
    averages over values. A subject with more values therefore weighs more, as it does in the mean.

    Parameters
    ----------
    values : array-like, shape (n,)
        One per case (and training subset, seed, ...); finite.
    subjects : sequence of str, length n
        Subject of each value.
    seed : int
        Of the resampling.
    n_resamples : int
        Bootstrap resamples.
    level : float
        Coverage aimed at, above 0 and below 1.

    Raises
    ------
    DataError
        When there are no values, one is not finite, the lengths differ, or ``level`` or
        ``n_resamples`` is out of range.

    Notes
    -----
    Percentile intervals of few subjects are too narrow: with five, 95 % covers about 85 %.

    References
    ----------
    Davison and Hinkley, Bootstrap methods and their application, 1997, sections 2.4 and 3.8.
    """
    vector = _checked(values, subjects)
    sums, counts = _by_subject(vector, subjects)
    low, high = _percentile_interval(sums, counts, seed=seed, n_resamples=n_resamples, level=level)
    return MeanInterval(float(vector.mean()), low, high, len(vector), len(counts))


def crossed_interval(
    values: ArrayLike,
    first: Sequence[str],
    second: Sequence[str],
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> MeanInterval:
    """Return the mean with a bootstrap over two crossed factors that values share, as parents.

    Levels of each factor are drawn with replacement, independently of the other's; a value counts
    as often as both of its own were drawn. For generated subjects that share heads and lesion
    shapes, and are no more independent than these.

    Parameters
    ----------
    values : array-like, shape (n,)
    first, second : sequence of str, length n
        Level of each factor.
    seed, n_resamples, level
        As in :func:`bootstrap_mean_interval`.

    Returns
    -------
    MeanInterval
        ``n_subjects`` counts the pairs of levels. With few levels it is still too narrow.

    References
    ----------
    Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007), section 3.
    """
    vector = _checked(values, first)
    codes = [np.unique(np.asarray(factor), return_inverse=True)[1] for factor in (first, second)]
    pairs = len(set(zip(first, second, strict=True)))
    mean = float(vector.mean())
    if min(int(code.max()) for code in codes) == 0:
        return MeanInterval(mean, float("nan"), float("nan"), len(vector), pairs)
    generator = numpy_generator(seed, "bootstrap of crossed factors")
    counts = np.ones((n_resamples, len(vector)))
    for code in codes:
        n = int(code.max()) + 1
        counts *= generator.multinomial(n, np.full(n, 1.0 / n), size=n_resamples)[:, code]
    total = counts.sum(axis=1)
    # Levels may be drawn that never meet; such a resample says nothing.
    means = (counts @ vector)[total > 0] / total[total > 0]
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return MeanInterval(mean, float(low), float(high), len(vector), pairs)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    subjects: Sequence[str],
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> PairedDifference:
    """Return the mean of ``a - b`` with a bootstrap interval and a Wilcoxon test over subjects.

    Parameters
    ----------
    a, b : array-like, shape (n,)
        Scores of two methods; place i is the same case under the same training subset and seed.
    subjects : sequence of str, length n
        Subject of each pair.
    seed, n_resamples, level
        As in :func:`bootstrap_mean_interval`.

    Raises
    ------
    DataError
        As in :func:`bootstrap_mean_interval`.

    References
    ----------
    Wilcoxon, Individual comparisons by ranking methods, 1945. Zero differences are ranked and then
    left out, after Pratt, 1959.
    """
    difference = _checked(a, subjects) - _checked(b, subjects)
    sums, counts = _by_subject(difference, subjects)
    low, high = _percentile_interval(sums, counts, seed=seed, n_resamples=n_resamples, level=level)
    return PairedDifference(
        difference=float(difference.mean()),
        low=low,
        high=high,
        p_wilcoxon=_signed_rank_p(sums / counts),
        n_values=len(difference),
        n_subjects=len(counts),
        sd=float((sums / counts).std(ddof=1)) if len(counts) > 1 else float("nan"),
    )


def detectable_difference(
    sd: float, n_subjects: int, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Return the smallest true mean difference that a paired comparison would find.

    ``(z_(1 - alpha / 2) + z_power) sd / sqrt(n)``: the normal approximation of a two-sided paired
    test at ``alpha``, which finds a difference of this size with chance ``power``. With fewer than
    about 20 subjects the true one is somewhat larger.

    Parameters
    ----------
    sd : float
        Standard deviation over subjects of the paired differences.
    n_subjects : int

    Returns
    -------
    float
        In the unit of ``sd``; NaN with fewer than two subjects.

    References
    ----------
    Chow, Shao, Wang and Lokhnygina, Sample size calculations in clinical research, 3rd ed., 2017,
    section 3.1.1, solved for the difference.
    """
    if n_subjects < 2:
        return float("nan")
    return float((norm.ppf(1.0 - alpha / 2.0) + norm.ppf(power)) * sd / np.sqrt(n_subjects))


def referral_gain(
    values: ArrayLike,
    kept: ArrayLike,
    subjects: Sequence[str],
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> MeanInterval:
    """Return the mean of the kept values minus that of all, with a bootstrap over subjects.

    Parameters
    ----------
    values : array-like, shape (n,)
    kept : boolean array-like, shape (n,)
        False where the case is referred to a human; at least one is True.
    subjects, seed, n_resamples, level
        As in :func:`bootstrap_mean_interval`. Who is referred stays fixed in the resamples.
    """
    vector, keep = _checked(values, subjects), np.asarray(kept, dtype=np.float64)
    sums, counts = _by_subject(vector, subjects)
    kept_sums, _ = _by_subject(vector * keep, subjects)
    kept_counts, _ = _by_subject(keep, subjects)
    gain = float(kept_sums.sum() / kept_counts.sum() - vector.mean())
    if len(counts) < 2:
        return MeanInterval(gain, float("nan"), float("nan"), len(vector), len(counts))
    drawn = _draws(len(counts), seed=seed, n_resamples=n_resamples)
    left = drawn @ kept_counts
    # A resample may hold referred cases only; it says nothing about the rest.
    some = left > 0
    gains = (drawn @ kept_sums)[some] / left[some] - (drawn @ sums)[some] / (drawn @ counts)[some]
    low, high = np.quantile(gains, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return MeanInterval(gain, float(low), float(high), len(vector), len(counts))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's step-down rule, in the order given.

    ``adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j))`` over the sorted values.
    Rejecting where it is at most alpha keeps the chance of any false rejection at alpha or below.

    Raises
    ------
    DataError
        When a value is not within 0 and 1.

    References
    ----------
    Holm, A simple sequentially rejective multiple test procedure, 1979.

    Examples
    --------
    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise DataError(
            f"p-values must lie within 0 and 1, but they are {list(p_values)}",
            hint="leave out comparisons that were not tested",
        )
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * p[order]))
    return adjusted.tolist()


def _checked(values: ArrayLike, subjects: Sequence[str]) -> FloatVector:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) != len(subjects) or len(vector) == 0:
        raise DataError(
            f"there must be one value per entry of subjects and at least one, but the values have "
            f"the shape {vector.shape} and there are {len(subjects)} subjects",
            hint="pass one number per scored case",
        )
    wrong = np.flatnonzero(~np.isfinite(vector))
    if len(wrong):
        raise DataError(
            f"values must be finite, but {len(wrong)} are not, the first {vector[wrong[0]]} "
            f"of subject {subjects[int(wrong[0])]}",
            hint="score missing predictions by the metric's policy instead of leaving them out",
        )
    return vector


def _by_subject(vector: FloatVector, subjects: Sequence[str]) -> tuple[FloatVector, FloatVector]:
    """Return the sum and the count of the values of each subject."""
    _, number = np.unique(np.asarray(subjects), return_inverse=True)
    sums, counts = np.bincount(number, weights=vector), np.bincount(number)
    return sums.astype(np.float64), counts.astype(np.float64)


def _percentile_interval(
    sums: FloatVector, counts: FloatVector, *, seed: int, n_resamples: int, level: float
) -> tuple[float, float]:
    if not 0.0 < level < 1.0 or n_resamples < 1:
        raise DataError(
            f"level must lie between 0 and 1 and n_resamples must be at least 1, "
            f"but they are {level} and {n_resamples}",
            hint="0.95 and 2000 are usual",
        )
    n = len(sums)
    if n < 2:
        return float("nan"), float("nan")
    drawn = _draws(n, seed=seed, n_resamples=n_resamples)
    means = (drawn @ sums) / (drawn @ counts)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _draws(n: int, *, seed: int, n_resamples: int) -> NDArray[np.int64]:
    """Return how often each of n subjects is in each resample, shape (n_resamples, n)."""
    generator = numpy_generator(seed, "bootstrap of subjects")
    drawn = generator.multinomial(n, np.full(n, 1.0 / n), size=n_resamples)
    drawn.flags.writeable = False
    return drawn


def _signed_rank_p(differences: FloatVector) -> float:
    """Return the two-sided p of Wilcoxon's signed ranks, zeros ranked but not signed (Pratt 1959).

    Exact over all signs of up to ``_EXACT`` differences that are not zero, ties and zeros or not:
    the normal approximation is too small by half where zeros abound.
    """
    if not differences.any():
        return 1.0
    doubled = np.rint(2.0 * rankdata(np.abs(differences))).astype(np.int64)
    signed = doubled[differences != 0]
    if len(signed) > _EXACT:
        # Typed loosely: scipy's own annotation of the result is an unnamed tuple.
        result: Any = wilcoxon(differences, zero_method="pratt")
        return float(result.pvalue)
    # Share of the signs whose positive ranks have each sum.
    share = np.ones(1)
    for rank in signed:
        grown = np.zeros(len(share) + rank)
        grown[: len(share)] += 0.5 * share
        grown[rank:] += 0.5 * share
        share = grown
    positive = int(doubled[differences > 0].sum())
    tails = share[: positive + 1].sum(), share[positive:].sum()
    return float(min(1.0, 2.0 * min(tails)))
