"""Intrinsic dimension of data: how many numbers an item really has, and so how long a code is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medseg.errors import ModelError

# Ratios beyond this share of them are left out: far tails are where the density is not flat.
_DISCARDED_SHARE = 0.1
_NEIGHBOURS = 20
_RESAMPLES = 200
FEWEST_ITEMS = 10


@dataclass(frozen=True)
class Dimension:
    """Two estimates of an intrinsic dimension.

    Parameters
    ----------
    two_nn, low, high : float
        From the ratio of the two nearest distances, with a bootstrap 95 % interval.
    mle : float
        Maximum likelihood over the nearest neighbours.
    by_items : dict of int to float
        The first estimate on ever fewer items. Fewer items look at a coarser scale: noise fills
        all directions at the finest scale only, so a plateau is to be trusted more than a number
        that falls and falls.
    n, size : int
        Items that were used, and numbers in each.
    """

    two_nn: float
    low: float
    high: float
    mle: float
    by_items: dict[int, float]
    n: int
    size: int


def two_nn_dimension(distances: NDArray[np.floating]) -> float:
    """Return the dimension from the distances to the two nearest neighbours.

    ``mu = r2 / r1`` is Pareto with exponent d, so that ``-log(1 - F(mu)) = d log mu``: d is the
    slope of a line through the origin.

    Parameters
    ----------
    distances : ndarray, shape (m, >= 2)
        To the nearest and second nearest other item, above 0, in this order.

    References
    ----------
    Facco, d'Errico, Rodriguez and Laio (2017), Estimating the intrinsic dimension of datasets by a
    minimal neighborhood information, Scientific Reports 7, 12140, equation 3.
    """
    ratios = np.sort(distances[:, 1] / distances[:, 0])
    kept = int(len(ratios) * (1 - _DISCARDED_SHARE))
    x = np.log(ratios[:kept])
    y = -np.log1p(-np.arange(kept) / len(ratios))
    return float((x @ y) / max(x @ x, 1e-30))


def mle_dimension(distances: NDArray[np.floating]) -> float:
    """Return the maximum likelihood dimension from the distances to the k nearest neighbours.

    ``1 / d(x) = mean_(j < k) log(T_k(x) / T_j(x))``; the inverses are averaged over items.

    Parameters
    ----------
    distances : ndarray, shape (m, k), k >= 3
        Ascending and above 0.

    References
    ----------
    Levina and Bickel (2004), Maximum likelihood estimation of intrinsic dimension, equation 8;
    MacKay and Ghahramani (2005), Comments, for the mean of the inverses.
    """
    inverse = np.log(distances[:, -1:] / distances[:, :-1]).mean(1)
    return float(1 / max(inverse.mean(), 1e-30))


def intrinsic_dimension(
    items: Tensor | NDArray[np.floating],
    *,
    generator: np.random.Generator,
    max_items: int = 4000,
) -> Dimension:
    """Return the intrinsic dimension of items (m, ...), which copies do not change.

    Parameters
    ----------
    items : Tensor or ndarray, shape (m, ...)
        Finite.
    generator : numpy.random.Generator
        Draws the items that are used, where there are more than ``max_items``, and the resamples.
    max_items : int
        Cost grows with its square.

    Raises
    ------
    ModelError
        Fewer than 10 different items.
    """
    rows = np.unique(_rows(items), axis=0)
    if len(rows) < FEWEST_ITEMS:
        raise ModelError(
            f"An intrinsic dimension needs {FEWEST_ITEMS} different items, but there are "
            f"{len(rows)}.",
            hint="Give more items, or choose the size of the code yourself.",
        )
    rows = rows[generator.permutation(len(rows))[:max_items]]
    distances = _neighbour_distances(rows, min(_NEIGHBOURS, len(rows) - 1))
    two_nn = two_nn_dimension(distances)
    draws = generator.integers(len(rows), size=(_RESAMPLES, len(rows)))
    low, high = np.quantile([two_nn_dimension(distances[draw]) for draw in draws], [0.025, 0.975])
    by_items = {len(rows): two_nn}
    count = len(rows) // 2
    while count >= 5 * FEWEST_ITEMS:
        # Disjoint parts, averaged: one part alone would be as noisy as it is small.
        parts = [rows[start : start + count] for start in range(0, len(rows) - count + 1, count)]
        found = [two_nn_dimension(_neighbour_distances(part, 2)) for part in parts[:8]]
        by_items[count] = float(np.mean(found))
        count //= 2
    return Dimension(
        two_nn=two_nn,
        low=float(low),
        high=float(high),
        mle=mle_dimension(distances),
        by_items=by_items,
        n=len(rows),
        size=rows.shape[1],
    )


def propose_latent(
    items: Tensor | NDArray[np.floating], *, generator: np.random.Generator, max_items: int = 4000
) -> int:
    """Return a length for the codes of ``items`` (m, ...): the larger estimate, rounded up.

    At least 1, and less than the numbers in an item. For the setting ``latent`` of an autoencoder
    of any kind.

    Raises
    ------
    ModelError
        Fewer than 10 different items.
    """
    return latent_size(intrinsic_dimension(items, generator=generator, max_items=max_items))


def latent_size(found: Dimension) -> int:
    """Return the length of code that a dimension asks for; see :func:`propose_latent`."""
    return min(max(math.ceil(max(found.two_nn, found.mle)), 1), max(found.size - 1, 1))


def _rows(items: Tensor | NDArray[np.floating]) -> NDArray[np.float64]:
    values = items.detach().cpu().numpy() if isinstance(items, Tensor) else np.asarray(items)
    rows = values.reshape(len(values), -1).astype(np.float64)
    if not np.isfinite(rows).all():
        raise ModelError(
            f"Items must be finite, but {int((~np.isfinite(rows)).any(1).sum())} of {len(rows)} "
            "are not."
        )
    return rows


def _neighbour_distances(rows: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    """Return the distances of each row to its nearest others, (m, neighbours), ascending."""
    from sklearn.neighbors import NearestNeighbors

    found, _ = NearestNeighbors(n_neighbors=neighbours).fit(rows).kneighbors()
    return np.maximum(found, 1e-12 * max(float(found.max()), 1e-300))
