"""The tables of the page, as records that the report's template prints."""

from __future__ import annotations

import numpy as np

from medseg.explore.clusters import WEAK_SILHOUETTE
from medseg.explore.features import PATCH_SIDE
from medseg.explore.names import MEANINGS, name_of, shown
from medseg.explore.view import View
from medseg.generative.dimension import latent_size
from medseg.report.columns import number
from medseg.report.tables import Cell, Row, Table


def recall_table(view: View) -> Table:
    """Return recall of each method, length of code and k."""
    rows = [
        Row(
            one.method,
            [
                Cell(str(one.bits), one.bits),
                Cell(str(one.k), one.k),
                Cell(number(one.recall, 3), one.recall),
                Cell(number(one.reranked, 3), one.reranked),
                Cell(number(one.chance, 3), one.chance),
            ],
        )
        for one in view.cohort.findings.recalls
    ]
    columns = [
        ("Codes", ""), ("Bits", ""), ("k", ""), ("Recall@k ↑", "the k nearest codes"),
        ("Reranked ↑", "exact search among the 4 k nearest codes"), ("Chance", ""),
    ]  # fmt: skip
    return Table("Recall of binary codes against exact search.", columns, [("", rows)])


def agreement_table(view: View) -> Table:
    """Return how well the clusters agree with each known grouping."""
    rows = [
        Row(
            {"grid": "grid (voxel size)"}.get(one.group, one.group),
            [
                Cell(str(one.n), one.n),
                Cell(number(one.rand, 3), one.rand),
                Cell(number(one.chance, 3), one.chance),
                Cell(number(one.silhouette, 3), one.silhouette),
            ],
        )
        for one in view.cohort.findings.agreements
    ]
    columns = [
        ("Grouping", ""),
        ("Scans", "whose group is known"),
        ("Adjusted Rand", "clusters against this grouping: 1 the same, 0 as by chance"),
        ("95 % by chance", "95th percentile over 500 shuffles"),
        ("Silhouette", "of the grouping itself: how far apart its groups lie"),
    ]
    caption = (
        f"Clusters against what is known of the scans' origin. A silhouette below "
        f"{WEAK_SILHOUETTE} is no substantial structure."
    )
    return Table(caption, columns, [("", rows)])


def feature_table(view: View) -> Table:
    """Return unit and range of each feature that is compared."""
    table = view.cohort.findings.table
    rows = []
    for feature in table.features:
        column = table.column(feature)
        low, middle, high = (float(v) for v in np.nanquantile(column, [0, 0.5, 1]))
        rows.append(
            Row(
                name_of(feature).title,
                [
                    Cell(name_of(feature).unit),
                    Cell(shown(low), low),
                    Cell(shown(middle), middle),
                    Cell(shown(high), high),
                    Cell(
                        str(int((~np.isfinite(column)).sum())), float((~np.isfinite(column)).sum())
                    ),
                    Cell("ratio" if name_of(feature).logarithmic else "difference"),
                ],
                title=MEANINGS.get(feature.rpartition(".")[2], ""),
            )
        )
    columns = [("Feature", ""), ("Unit", ""), ("Least", ""), ("Median", ""), ("Most", ""),
               ("Missing", "scans"), ("Compared by", "")]  # fmt: skip
    return Table("Features that are compared.", columns, [("", rows)])


def dimension_table(view: View) -> Table:
    """Return the intrinsic dimensions, and the length of code they ask for."""
    found = view.cohort.findings.dimensions
    rows = [
        Row(
            name,
            [
                Cell(str(one.n), one.n),
                Cell(str(one.size), one.size),
                Cell(number(one.two_nn, 1), one.two_nn,
                     small=f"[{number(one.low, 1)}, {number(one.high, 1)}]"),
                Cell(number(one.mle, 1), one.mle),
                Cell(str(latent_size(one)), latent_size(one)),
            ],
        )
        for name, one in found.items()
    ]  # fmt: skip
    columns = [
        ("Of", ""), ("Items", ""), ("Numbers each", ""),
        ("TwoNN", "Facco et al. 2017, with bootstrap 95 % interval"),
        ("MLE", "Levina and Bickel 2004, 20 neighbours"),
        ("Proposed code", "length of an autoencoder's code: the larger estimate, rounded up"),
    ]  # fmt: skip
    caption = (
        "Intrinsic dimension: how many numbers an item really has. Patches are "
        f"{PATCH_SIDE} × {PATCH_SIDE} × {PATCH_SIDE} voxels."
    )
    return Table(caption, columns, [("", rows)])
