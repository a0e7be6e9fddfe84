"""The cohort on a self-organising map: where scans are dense, where they part, what nodes are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.explore.table import FeatureTable
from medseg.generative.som import Som, SomSettings
from medseg.seeding import torch_generator

# Vesanto's rule of thumb for the number of nodes, held between a map one can see and one the page
# can carry.
_NODES_PER_ROOT, _SHORTEST, _LONGEST = 5.0, 3, 12
_DENSITY_NEIGHBOURS = 3


@dataclass(frozen=True, eq=False)
class CohortMap:
    """A fitted map and its pictures.

    Parameters
    ----------
    node : ndarray, shape (n,)
        The winner of each scan, ``row * columns + column``.
    hits, u_matrix, density : ndarray, shape (rows, columns)
        Scans per node; mean distance of a node to those that touch it; mean distance of a node to
        its nearest scans, so that small is dense. In robust deviations.
    planes : ndarray, shape (d, rows, columns)
        Each feature over the map, in robust deviations from the cohort's median.
    order : tuple of int
        Features in an order that puts planes that look alike side by side.
    quantisation_error : float
        Mean distance of scans to their node, in robust deviations.
    one_node_error : float
        The same for a map of one node: what the map is to be held against.
    topographic_error : float
        Share of scans whose two nearest nodes do not touch.
    """

    node: NDArray[np.int64]
    hits: NDArray[np.int64]
    u_matrix: NDArray[np.float64]
    density: NDArray[np.float64]
    planes: NDArray[np.float64]
    order: tuple[int, ...]
    quantisation_error: float
    one_node_error: float
    topographic_error: float

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.hits.shape
        return rows, columns

    def members(self, node: int) -> list[int]:
        """Return the scans of a node."""
        return np.flatnonzero(self.node == node).tolist()


def grid_for(scores: NDArray[np.float64]) -> tuple[int, int]:
    """Return rows and columns for scans (n, d): about ``5 sqrt(n)`` nodes, as long as the scans.

    The sides are as the deviations along the two main directions.

    References
    ----------
    Vesanto and Alhoniemi (2000), Clustering of the self-organizing map, section III.
    """
    nodes = _NODES_PER_ROOT * math.sqrt(len(scores))
    spread = np.linalg.svd(scores - scores.mean(0), compute_uv=False)
    second = float(spread[1]) if len(spread) > 1 else 0.0
    ratio = min(max(float(spread[0]) / max(second, 1e-12), 1.0), 2.0)
    rows = min(max(round(math.sqrt(nodes / ratio)), _SHORTEST), _LONGEST)
    return rows, min(max(round(nodes / rows), _SHORTEST), _LONGEST)


def cohort_map(table: FeatureTable, *, seed: int) -> CohortMap:
    """Return the self-organising map of a cohort, of batch kind and starting on the main plane.

    Parameters
    ----------
    table : FeatureTable
        Of n scans.
    seed : int
        Of the map; a batch map from the plane does not draw.
    """
    items = torch.from_numpy(table.scores).float()
    rows, columns = grid_for(table.scores)
    # The density around the nodes is not used here, and a full shape costs d^3.
    som = Som((items.shape[1],), SomSettings(size_x=rows, size_y=columns, shape="round"))
    som.fit(items, generator=torch_generator(seed, "explore", "map"))
    with torch.no_grad():
        place = som.encode(items).long()
        planes = som.component_planes().double().numpy()
        neighbours = min(_DENSITY_NEIGHBOURS, len(items))
        return CohortMap(
            node=(place[:, 0] * columns + place[:, 1]).numpy(),
            hits=som.hits(items).long().numpy(),
            u_matrix=som.u_matrix().double().numpy(),
            density=som.density_map(items, neighbours=neighbours).double().numpy(),
            planes=planes,
            order=_alike(planes.reshape(len(planes), -1)),
            quantisation_error=som.quantisation_error(items),
            one_node_error=float((items - items.mean(0)).norm(dim=1).mean()),
            topographic_error=som.topographic_error(items),
        )


def _alike(planes: NDArray[np.float64]) -> tuple[int, ...]:
    """Return rows ordered as the leaves of a tree that joins what correlates, sign aside."""
    if len(planes) < 3:
        return tuple(range(len(planes)))
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    centred = planes - planes.mean(1, keepdims=True)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    distance = np.clip(1 - np.abs(unit @ unit.T), 0, None)
    np.fill_diagonal(distance, 0)
    joined = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return tuple(int(i) for i in leaves_list(joined))
