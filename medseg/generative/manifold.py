"""The surface that data lie on: its tangent at a point, and smooth functions on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ModelError

Rows = NDArray[np.floating]

# Bandwidths that are tried, over the median distance between items.
_BANDWIDTHS = np.geomspace(0.02, 2.0, 25)
#: Parts that the error is told of, each with a bandwidth chosen on the others.
_FOLDS = 10


@dataclass(frozen=True, eq=False)
class Tangent:
    """The plane next to a point.

    Parameters
    ----------
    centre : ndarray, shape (d,)
        Mean of the neighbours.
    basis : ndarray, shape (k, d)
        Orthonormal, the direction of most variance first.
    variances : ndarray, shape (min(n, d),)
        Of the neighbours along all directions, descending: a drop after the k-th says that the
        surface has k dimensions there.
    """

    centre: Rows
    basis: Rows
    variances: Rows

    def distance(self, items: Rows) -> Rows:
        """Return how far items (m, d) lie off the plane, (m,), in their units."""
        away = np.asarray(items, dtype=np.float64) - self.centre
        return np.linalg.norm(away - (away @ self.basis.T) @ self.basis, axis=1)


def tangent_at(items: Rows, point: Rows, *, dimension: int, neighbours: int = 20) -> Tangent:
    """Return the tangent plane of the surface near ``point`` by PCA of the nearest items.

    Parameters
    ----------
    items : ndarray, shape (m, d)
    point : ndarray, shape (d,)
    dimension : int
        Of the plane, at most d; see :func:`medseg.generative.dimension.intrinsic_dimension`.
    neighbours : int
        Items taken; more smooth noise out, and bend the plane over curvature.

    Raises
    ------
    ModelError
        Fewer items than ``neighbours``, or too few neighbours for the dimension.
    """
    rows = _finite(items)
    if not 0 < dimension < neighbours <= len(rows) or dimension > rows.shape[1]:
        raise ModelError(
            f"A plane of {dimension} dimensions is found from more neighbours than that, of at "
            f"least as many items, in as many numbers, but neighbours is {neighbours} and items "
            f"are {rows.shape}.",
            hint="Give more items, or ask for fewer dimensions.",
        )
    order = np.argsort(np.linalg.norm(rows - point, axis=1), kind="stable")
    near = rows[order[:neighbours]]
    centre = near.mean(0)
    _, sizes, basis = np.linalg.svd(near - centre, full_matrices=False)
    return Tangent(centre, basis[:dimension], sizes**2 / (neighbours - 1))


@dataclass(frozen=True, eq=False)
class KernelRegression:
    """A smooth function of items: ``f(x) = sum_i K(x, x_i) y_i / sum_i K(x, x_i)``.

    K is Gaussian in the distance. Such as the Dice that is to be expected of a scan, from its
    features and the Dice of scans with a reference.

    Parameters
    ----------
    items : ndarray, shape (m, d)
        In units in which distances mean something, such as standard deviations.
    values : ndarray, shape (m,)
    bandwidth : float
        Standard deviation of K.
    error : float
        Root mean square of what each value is from the one told by others, the bandwidth chosen
        without it, too: the least of many errors is smaller than what is to be expected.
    baseline : float
        The same of the mean of the others: a regression that does not beat it knows nothing.

    References
    ----------
    Nadaraya (1964), On estimating regression. Watson (1964), Smooth regression analysis.
    """

    items: Rows
    values: Rows
    bandwidth: float
    error: float
    baseline: float

    @classmethod
    def fit(cls, items: Rows, values: Rows) -> KernelRegression:
        """Return the regression with the bandwidth of the least leave-one-out error.

        Raises
        ------
        ModelError
            Fewer than 3 items, not one value each, not all finite, or all items the same.
        """
        rows, known = _finite(items), _finite(np.asarray(values)[:, None])[:, 0]
        if len(rows) < 3 or len(rows) != len(known):
            raise ModelError(
                f"A regression needs 3 items or more, with one value each, but there are "
                f"{len(rows)} items and {len(known)} values."
            )
        squared = _squared(rows, rows)
        scale = float(np.sqrt(np.median(squared[~np.eye(len(rows), dtype=bool)])))
        if scale == 0:
            raise ModelError("Items must differ for a regression, but most of them are the same.")
        np.fill_diagonal(squared, np.inf)
        widths = scale * _BANDWIDTHS
        told = np.empty(len(known))
        # Any order does, but not that of the items, of which neighbours may be alike.
        order = np.random.default_rng(0).permutation(len(known))
        for asked in np.array_split(order, min(_FOLDS, len(known))):
            kept = np.setdiff1d(order, asked)
            width = _best(squared[np.ix_(kept, kept)], known[kept], widths)
            told[asked] = _mean(squared[np.ix_(asked, kept)], known[kept], width)
        others = (known.sum() - known) / (len(known) - 1)
        width = _best(squared, known, widths)
        return cls(rows, known, width, _rms(told - known), _rms(others - known))

    def __call__(self, items: Rows) -> Rows:
        """Return the values told for items (n, d), (n,)."""
        return _mean(_squared(_finite(items), self.items), self.values, self.bandwidth)


def _best(squared: Rows, values: Rows, widths: Rows) -> float:
    """Return the bandwidth of the least leave-one-out error; the diagonal is infinite."""
    errors = [_rms(_mean(squared, values, width) - values) for width in widths]
    return float(widths[int(np.argmin(errors))])


def _mean(squared: Rows, values: Rows, width: float) -> Rows:
    logs = -0.5 * squared / width**2
    # Relative to the nearest item, whose weight is 1, so that far from all of them it still counts.
    weights = np.exp(logs - logs.max(1, keepdims=True))
    return (weights @ values) / weights.sum(1)


def _squared(first: Rows, second: Rows) -> Rows:
    return ((first[:, None] - second[None]) ** 2).sum(2)


def _rms(values: Rows) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _finite(items: Rows) -> Rows:
    rows = np.asarray(items, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ModelError(f"Items must be rows of finite numbers, but they are {rows.shape}.")
    return rows
