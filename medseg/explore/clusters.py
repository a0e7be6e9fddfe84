"""Groups among the scans, held against the sites and scanners they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.seeding import derive_seed, numpy_generator

#: A silhouette below this is no substantial structure (Kaufman and Rousseeuw 1990, table 4).
WEAK_SILHOUETTE = 0.25
_MOST_CLUSTERS, _STARTS, _SHUFFLES = 8, 10, 500


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of a cohort.

    Parameters
    ----------
    label : ndarray, shape (n,)
        Of each scan; the largest cluster is 0.
    silhouettes : dict of int to float
        Mean silhouette by number of clusters; the best was taken.
    """

    label: NDArray[np.int64]
    silhouettes: dict[int, float]

    @property
    def count(self) -> int:
        """How many clusters."""
        return int(self.label.max()) + 1

    @property
    def silhouette(self) -> float:
        """Mean silhouette of the clusters."""
        return self.silhouettes.get(self.count, float("nan"))


@dataclass(frozen=True)
class Agreement:
    """How well the clusters are a known grouping.

    Parameters
    ----------
    group : str
        Site, scanner.
    n : int
        Scans whose group is known.
    rand : float
        Adjusted Rand index: 1 the same, 0 as by chance.
    chance : float
        Its 95th percentile when the groups are shuffled.
    silhouette : float
        Of the known groups themselves: how far apart they are.
    """

    group: str
    n: int
    rand: float
    chance: float
    silhouette: float


def find_clusters(codes: NDArray[np.float64], *, seed: int) -> Clusters:
    """Return clusters of scans by their codes (n, k), as many as give the best silhouette."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    n = len(codes)
    best, silhouettes = np.zeros(n, dtype=np.int64), {}
    for count in range(2, min(_MOST_CLUSTERS, n - 1) + 1):
        start = derive_seed(seed, "explore", "clusters", count) % 2**31
        model = KMeans(count, n_init=_STARTS, random_state=start)  # pyright: ignore[reportArgumentType]
        label = np.asarray(model.fit_predict(codes), dtype=np.int64)
        if len(set(label)) < count:
            break  # fewer different scans than clusters
        silhouettes[count] = float(silhouette_score(codes, label))
        if silhouettes[count] >= max(silhouettes.values()):
            best = label
    order = np.argsort(-np.bincount(best), kind="stable")
    return Clusters(np.argsort(order)[best], silhouettes)


def agreements(
    clusters: Clusters,
    codes: NDArray[np.float64],
    groups: Mapping[str, Sequence[str]],
    *,
    seed: int,
) -> list[Agreement]:
    """Return how well clusters agree with each known grouping of the scans.

    References
    ----------
    Hubert and Arabie (1985), Comparing partitions, equation 5.
    """
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    found = []
    for name, column in groups.items():
        known = np.array([i for i, value in enumerate(column) if value], dtype=int)
        names = np.array(column)[known]
        if len(set(names)) < 2:
            continue
        label = clusters.label[known]
        rng = numpy_generator(seed, "explore", "shuffles", name)
        shuffled = [adjusted_rand_score(rng.permutation(names), label) for _ in range(_SHUFFLES)]
        apart = (
            float(silhouette_score(codes[known], names))
            if len(set(names)) < len(known)
            else float("nan")
        )
        found.append(
            Agreement(
                group=name,
                n=len(known),
                rand=float(adjusted_rand_score(names, label)),
                chance=float(np.quantile(shuffled, 0.95)),
                silhouette=apart,
            )
        )
    return found
