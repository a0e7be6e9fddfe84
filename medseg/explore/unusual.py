"""Scans that are not like the others, and in what."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.explore.embedding import principal_components
from medseg.explore.names import compared, name_of, shown
from medseg.explore.table import FeatureTable, robust_centre
from medseg.generative.pca import PcaSettings, Ppca
from medseg.seeding import numpy_generator, torch_generator

# More scans than this are judged in as many parts, each by a model of all others.
_MOST_FITS = 100
_KEPT_SHARE = 0.8
# A modified z-score below -3.5 is an outlier (Iglewicz and Hoaglin 1993).
LIMIT = 3.5
# Among many features, one that is far off hardly moves a scan as a whole.
FEATURE_LIMIT = 6.0
# What no other scan has is infinitely far: it is told of, but need not come first.
_FARTHEST_RANK = 2.0
# Quartiles of fewer scans are too rough for that.
FEWEST_FOR_FEATURES = 15
_FLOOR = 0.25
_REMARKABLE = 2.5
_MOST_REASONS = 4


@dataclass(frozen=True)
class Reason:
    """One feature in which a scan stands apart.

    Parameters
    ----------
    feature, words : str
        ``words`` is a sentence.
    deviations : float
        Robust deviations from the median of the others, signed; infinite where all others are the
        same.
    """

    feature: str
    words: str
    deviations: float


@dataclass(frozen=True, eq=False)
class Unusual:
    """How usual each scan is.

    Parameters
    ----------
    nats : ndarray, shape (n,)
        Log density of each scan under a model of the others.
    score : ndarray, shape (n,)
        How far each scan is from the others, in robust deviations of that from its median.
    flagged : tuple of int
        Scans with a score above 3.5, or, among 15 and more, a feature over 6 robust deviations off;
        the most unusual first.
    reasons : tuple of tuple of Reason
        For each scan, the strongest first.
    leave_out : str
        How the models were fitted, in words.
    latent : int
        Components of the model.
    """

    nats: NDArray[np.float64]
    score: NDArray[np.float64]
    flagged: tuple[int, ...]
    reasons: tuple[tuple[Reason, ...], ...]
    leave_out: str
    latent: int


def find_unusual(table: FeatureTable, *, seed: int) -> Unusual:
    """Return how usual each scan is under a probabilistic PCA of the others.

    Everything about a scan is held against the other scans only: the centre and the deviation of
    each feature, and the directions in which the others vary. The cube root of the squared
    Mahalanobis distance, twice the nats that a scan lacks to the likeliest one, is nearly normal,
    so that robust deviations of it mean what they say.

    Parameters
    ----------
    table : FeatureTable
        Of n scans; with n <= 100 each is left out on its own, otherwise in 100 parts.
    seed : int
        Of the parts.

    References
    ----------
    Tipping and Bishop (1999), Probabilistic principal component analysis. Wilson and Hilferty
    (1931), The distribution of chi-square, for the cube root.
    """
    n, d = table.values.shape
    values = np.stack(
        [
            compared(name, column)
            for name, column in zip(table.features, table.values.T, strict=True)
        ],
        1,
    )
    parts = np.array_split(
        numpy_generator(seed, "explore", "parts").permutation(n), min(n, _MOST_FITS)
    )
    latent = min(principal_components(table.scores).kept(_KEPT_SHARE), max((n - 1) // 3, 1), d)
    nats, squared = np.zeros(n), np.zeros(n)
    for number, part in enumerate(parts):
        others = np.setdiff1d(np.arange(n), part)
        inside, outside = _standardised(values, others)
        nats[part], squared[part] = _log_density(
            inside, outside[part], latent, seed=seed, number=number
        )
    away = np.cbrt(np.maximum(squared, 0))
    middle = float(np.median(away))
    deviation = 1.4826 * float(np.median(np.abs(away - middle)))
    score = (away - middle) / max(deviation, 1e-12)
    reasons = tuple(_reasons(table, i) for i in range(n))
    alone = np.array([abs(found[0].deviations) if found else 0.0 for found in reasons])
    alone = alone if n >= FEWEST_FOR_FEATURES else np.zeros(n)
    rank = np.maximum(score / LIMIT, np.minimum(alone / FEATURE_LIMIT, _FARTHEST_RANK))
    order = [int(i) for i in np.argsort(-rank, kind="stable") if rank[i] > 1]
    one = len(parts) == n
    return Unusual(
        nats=nats,
        score=score,
        flagged=tuple(order),
        reasons=reasons,
        leave_out="each scan left out on its own"
        if one
        else f"in {len(parts)} parts, each left out",
        latent=latent,
    )


def _standardised(
    values: NDArray[np.float64], others: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the others, and all scans, in deviations of the others; missing values 0."""
    known = values[others]
    centre, spread = np.nanmean(known, 0), np.nanstd(known, 0)
    # The others may agree in what the scan alone has: a floor keeps that from being infinite.
    spread = np.maximum(spread, _FLOOR * np.nanstd(values, 0))
    scores = np.nan_to_num((values - centre) / np.maximum(spread, 1e-30))
    return scores[others], scores


def _log_density(
    others: NDArray[np.float64],
    rows: NDArray[np.float64],
    latent: int,
    *,
    seed: int,
    number: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return nats of ``rows`` under a model of the others, and squared Mahalanobis distances."""
    model = Ppca((others.shape[1],), PcaSettings(latent=min(latent, len(others) - 1)))
    model.fit(
        torch.from_numpy(others).float(), generator=torch_generator(seed, "explore", "ppca", number)
    )
    with torch.no_grad():
        nats = model.bound(torch.from_numpy(rows).float()).double().numpy()
        likeliest = float(model.bound(model.mean[None]))
    return nats, 2 * (likeliest - nats)


def _reasons(table: FeatureTable, scan: int) -> tuple[Reason, ...]:
    found = []
    for name in table.features:
        column = compared(name, table.column(name))
        value, others = column[scan], np.delete(column, scan)
        if not math.isfinite(value) or not np.isfinite(others).any():
            continue
        middle, deviation = robust_centre(others)
        all_same = float(np.nanmax(others) - np.nanmin(others)) <= 1e-6 * max(abs(middle), 1e-30)
        away = (value - middle) / deviation
        if all_same and value != middle:
            away = math.copysign(math.inf, value - middle)
        if abs(away) >= _REMARKABLE:
            others_raw = np.delete(table.column(name), scan)
            words = _words(name, float(table.column(name)[scan]), others_raw, away)
            found.append(Reason(name, words, float(away)))
    found.sort(key=lambda reason: -abs(reason.deviations))
    return tuple(found[:_MOST_REASONS])


def _words(name: str, value: float, others: NDArray[np.float64], away: float) -> str:
    """Return the sentence that says in what a scan stands apart.

    Examples
    --------
    >>> _words("flair.noise", 0.3, np.array([0.05, 0.06, 0.04]), 6.0)
    'FLAIR noise is very high: 0.3, others 0.04 to 0.06 (median 0.05).'
    >>> _words("t2.here", 0.0, np.array([1.0, 1.0]), -math.inf)
    'T2 is missing, which 100 % of the others have.'
    """
    title = name_of(name).title
    share = float(np.nanmean(others))
    if name.endswith(".here"):
        image = title.removesuffix(" present")
        if value:
            return f"{image} is there, which {100 * (1 - share):.0f} % of the others lack."
        return f"{image} is missing, which {100 * share:.0f} % of the others have."
    low, middle, high = (float(v) for v in np.nanquantile(others, [0.0, 0.5, 1.0]))
    degree = ("very " if abs(away) >= 5 else "") + ("high" if away > 0 else "low")
    if low == high:
        return f"{title} is {shown(value, name)}; all others have {shown(low, name)}."
    return (
        f"{title} is {degree}: {shown(value, name)}, others {shown(low)} to {shown(high)} "
        f"(median {shown(middle)})."
    )
