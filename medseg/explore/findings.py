"""All that is found in a table of features, worked out once for page and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ModelError
from medseg.explore.clusters import Agreement, Clusters, agreements, find_clusters
from medseg.explore.embedding import Components, VaeCodes, principal_components, vae_codes
from medseg.explore.maps import CohortMap, cohort_map
from medseg.explore.retrieval import Recall, distances, nearest, recalls
from medseg.explore.table import FeatureTable
from medseg.explore.unusual import Unusual, find_unusual
from medseg.generative.dimension import Dimension, intrinsic_dimension
from medseg.seeding import numpy_generator

# Components that clusters are looked for in carry this share of the variance.
_CLUSTERED_SHARE = 0.9
# Codes are compared with exact search, which costs the square of the scans.
_MOST_COMPARED = 2000
NEIGHBOURS = 5


@dataclass(frozen=True, eq=False)
class Findings:
    """What a cohort is like.

    Parameters
    ----------
    neighbours : ndarray, shape (n, 5)
        The scans most like each, by exact search.
    dimensions : dict of str to Dimension
        Of scans' features, patches, kernels: of what there is enough of.
    """

    table: FeatureTable
    map: CohortMap
    components: Components
    vae: VaeCodes | None
    neighbours: NDArray[np.int64]
    recalls: list[Recall]
    clusters: Clusters
    agreements: list[Agreement]
    unusual: Unusual
    dimensions: dict[str, Dimension]


def find_all(
    table: FeatureTable, *, seed: int, manifolds: Mapping[str, NDArray[np.floating]] | None = None
) -> Findings:
    """Return everything found in a table.

    Parameters
    ----------
    table : FeatureTable
    seed : int
    manifolds : mapping of name to ndarray (m, ...), optional
        Patches and kernels, whose intrinsic dimension is wanted.
    """
    components = principal_components(table.scores)
    codes = components.codes[:, : components.kept(_CLUSTERED_SHARE)]
    clusters = find_clusters(codes, seed=seed)
    return Findings(
        table=table,
        map=cohort_map(table, seed=seed),
        components=components,
        vae=vae_codes(table, seed=seed),
        neighbours=_neighbours(table.scores, seed=seed),
        recalls=recalls(_some(table.scores, seed=seed), seed=seed),
        clusters=clusters,
        agreements=agreements(clusters, codes, table.groups, seed=seed),
        unusual=find_unusual(table, seed=seed),
        dimensions=_dimensions({"scans": table.scores, **(manifolds or {})}, seed=seed),
    )


def _some(scores: NDArray[np.float64], *, seed: int) -> NDArray[np.float64]:
    order = numpy_generator(seed, "explore", "compared").permutation(len(scores))
    return scores[np.sort(order[:_MOST_COMPARED])]


def _neighbours(scores: NDArray[np.float64], *, seed: int) -> NDArray[np.int64]:
    k = min(NEIGHBOURS, len(scores) - 1)
    if len(scores) <= _MOST_COMPARED:
        return nearest(distances(scores), k, seed=seed)
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k).fit(scores).kneighbors(return_distance=False)


def _dimensions(
    manifolds: Mapping[str, NDArray[np.floating]], *, seed: int
) -> dict[str, Dimension]:
    found = {}
    for name, items in manifolds.items():
        try:
            generator = numpy_generator(seed, "explore", "dimension", name)
            found[name] = intrinsic_dimension(items, generator=generator)
        except ModelError:
            continue  # too few: the page says what is not there
    return found
