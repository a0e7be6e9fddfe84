"""The sections of the page: what each one shows, and what it says when there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from medseg.explore.drawings import (
    cluster_picture,
    colours,
    dimension_picture,
    heat_picture,
    lesion_picture,
    recall_picture,
    usual_picture,
)
from medseg.explore.embedding import FEWEST_FOR_VAE
from medseg.explore.names import MEANINGS, name_of, shown
from medseg.explore.summary import cards, sentences, separating
from medseg.explore.tables import (
    agreement_table,
    dimension_table,
    feature_table,
    recall_table,
)
from medseg.explore.view import View, spread
from medseg.report.columns import number
from medseg.report.sections import Section, duration

_WALL, _QUERIES, _PLACED = 60, 10, 40
_MANY = 300


def _glance(view: View) -> Section:
    section = Section("glance", "At a glance")
    found = view.cohort.findings
    order = np.lexsort((found.components.codes[:, 0], found.clusters.label))
    step = max(math.ceil(len(order) / _WALL), 1)
    wall = sorted({*order[::step].tolist(), *found.unusual.flagged[:12]}, key=list(order).index)
    section.extra = {
        "sentences": sentences(view),
        "cards": cards(view),
        "wall": view.scans(wall),
        "cell": 116 if len(wall) <= 24 else 72,
        "flagged": set(found.unusual.flagged),
        "of": len(order),
    }
    return section


def _unusual(view: View) -> Section:
    section = Section("unusual", "Unusual scans")
    unusual = view.cohort.findings.unusual
    section.pictures = [usual_picture(view.cohort.findings, view.labels)]
    if not unusual.flagged:
        section.absent.append(
            "No scan stands apart: none is more than 3.5 deviations off as a whole, or more than "
            "6 in one feature."
        )
    if len(unusual.nats) < 12:
        section.absent.append(
            f"With {len(unusual.nats)} scans a model of the others is rough: take the order for a "
            "hint of where to look first, not for a verdict."
        )
    least_usual = np.argsort(-unusual.score)[:3]
    chosen = unusual.flagged[:12] or tuple(int(i) for i in least_usual)
    section.extra["odd"] = [
        (view.scan(i), f"{unusual.score[i]:.1f}", [r.words for r in unusual.reasons[i]])
        for i in chosen
    ]
    section.extra["are_flagged"] = bool(unusual.flagged)
    section.extra["more"] = len(unusual.flagged) - 12
    return section


def _map(view: View) -> Section:
    section = Section("map", "The map of the cohort")
    found = view.cohort.findings
    som, table = found.map, found.table
    rows, columns = som.grid
    per_node = 12 if len(table) <= _MANY else 4
    nodes = []
    for node in range(rows * columns):
        members = som.members(node)
        traits = view.traits(som.planes[:, node // columns, node % columns])
        names = ", ".join(view.labels[i] for i in members[:8])
        more = f" and {len(members) - 8} more" if len(members) > 8 else ""
        title = f"{len(members)} scan{'s' * (len(members) != 1)}: {names}{more}" if members else ""
        nodes.append(
            {
                "scans": view.scans(members[:per_node]),
                "count": len(members),
                "traits": traits,
                "title": title or "no scan",
            }
        )
    section.extra = {
        "rows": rows,
        "columns": columns,
        "nodes": nodes,
        "first": int(som.hits.argmax()),
        "maps": _whole_maps(view),
        "planes": [_plane(view, i) for i in som.order],
        "words": (
            f"{rows} × {columns} nodes, batch training from the plane of the two main directions. "
            f"Quantisation error {som.quantisation_error:.2f} robust deviations (one node alone: "
            f"{som.one_node_error:.2f}); topographic error {som.topographic_error:.3f} "
            "(share of scans whose two nearest nodes do not touch)."
        ),
    }
    return section


def _whole_maps(view: View) -> list[dict[str, Any]]:
    som = view.cohort.findings.map
    counts = [str(int(value)) if value else "" for value in som.hits.ravel()]
    return [
        {
            "title": "Scans per node",
            "words": "how many scans each node wins",
            "colours": colours(np.sqrt(som.hits), "YlGnBu"),
            "texts": counts,
            "dark": [bool(v > 0.3 * som.hits.max()) for v in som.hits.ravel()],
        },
        {
            "title": "Borders (U-matrix)",
            "words": "mean distance of a node to those that touch it: light ridges part clusters",
            "colours": colours(som.u_matrix, "magma"),
        },
        {
            "title": "Density",
            "words": "mean distance of a node to its nearest scans: dark is dense",
            "colours": colours(som.density, "cividis"),
        },
    ]


def _plane(view: View, index: int) -> dict[str, Any]:
    table, plane = view.cohort.findings.table, view.cohort.findings.map.planes[index]
    feature = table.features[index]
    values = table.in_units(feature, plane)
    # What the map smears over a border is 0 to three digits: 0.00004 of a presence says nothing.
    values[np.abs(values) < 1e-3 * float(np.ptp(values))] = 0.0
    return {
        "title": name_of(feature).title,
        "low": shown(float(values.min())),
        "high": shown(float(values.max()), feature),
        "colours": colours(plane, "viridis"),
    }


def _embedding(view: View) -> Section:
    section = Section("embedding", "The cohort on a plane")
    found = view.cohort.findings
    axes = []
    for i in range(min(2, found.components.codes.shape[1])):
        made_of = found.components.words(i, found.table.features)
        names = ", ".join(name_of(name).title for name in made_of)
        axes.append(f"{100 * found.components.shares[i]:.0f} % of the variance: {names}")
    planes = [
        {
            "title": "Principal components",
            "axes": [*axes, ""][:2],
            **_placed(view, _two(found.components.codes)),
        }
    ]
    if found.vae is None:
        section.absent.append(
            f"A variational autoencoder is fitted to {FEWEST_FOR_VAE} scans or more; there are "
            f"{len(found.table)}."
        )
    else:
        gain = found.vae.held_out_nats - found.vae.gaussian_nats
        planes.append(
            {
                "title": "Codes of a variational autoencoder",
                "axes": ["first number of the code", "second number of the code"],
                "note": f"{number(gain, 1, signed=True)} nats per held-out scan against "
                "independent Gaussians",
                **_placed(view, found.vae.codes),
            }
        )
    section.extra = {"planes": planes, "group": view.group, "legend": view.legend}
    return section


def _two(codes: np.ndarray) -> np.ndarray:
    return np.hstack([codes, np.zeros((len(codes), 2))])[:, :2]


def _placed(view: View, codes: np.ndarray) -> dict[str, Any]:
    """Return where scans lie in percent of the plane: pictures for some, dots for all."""
    low, high = codes.min(0), codes.max(0)
    places = 6 + 88 * (codes - low) / np.maximum(high - low, 1e-12)
    flagged = view.cohort.findings.unusual.flagged[:8]
    chosen = spread(places, _PLACED, first=flagged)
    return {
        "dots": [
            (view.colours[i], round(float(x), 2), round(float(100 - y), 2), view.labels[i])
            for i, (x, y) in enumerate(places)
        ],
        "pictures": [
            (view.scan(i), round(float(places[i, 0]), 2), round(float(100 - places[i, 1]), 2))
            for i in (chosen if view.cohort.extracted is not None else [])
        ],
    }


def _alike(view: View) -> Section:
    section = Section("alike", "Scans like this one")
    found = view.cohort.findings
    queries = spread(found.components.codes, _QUERIES)
    section.extra["queries"] = [(view.scan(i), view.scans(found.neighbours[i])) for i in queries]
    picture = recall_picture(found)
    section.show(picture, "Recall of codes needs more scans than are here.")
    if found.recalls:
        section.folded = [recall_table(view)]
    return section


def _clusters(view: View) -> Section:
    section = Section("clusters", "Clusters, sites and scanners")
    found = view.cohort.findings
    clusters = found.clusters
    if clusters.silhouettes:
        section.pictures = [cluster_picture(found, view.group, view.group_names)]
    else:
        section.absent.append("Clusters need at least four different scans.")
    if found.agreements:
        section.tables = [agreement_table(view)]
    else:
        section.absent.append(
            "No site or scanner is known: put the cases into a folder per site, or give --groups."
        )
    centre = found.components.codes
    parts = []
    for label in range(clusters.count if clusters.silhouettes else 0):
        members = np.flatnonzero(clusters.label == label)
        away = np.linalg.norm(centre[members] - centre[members].mean(0), axis=1)
        chosen = members[np.argsort(away)[:6]]
        traits = view.traits(found.table.scores[members].mean(0), most=5)
        parts.append((label + 1, len(members), traits, view.scans(chosen)))
    section.extra["clusters"] = parts
    section.extra["separating"] = separating(view)
    section.extra["group"] = view.group
    return section


def _features(view: View) -> Section:
    section = Section("features", "Features")
    table = view.cohort.findings.table
    section.pictures = [heat_picture(view.cohort.findings)]
    for names, words in (
        (table.constant, "the same for all scans"),
        (table.sparse, "missing for more than half of the scans"),
        (table.ignored, "neither numbers nor groups"),
    ):
        if names:
            titles = ", ".join(name_of(name).title for name in names)
            section.absent.append(f"Left out ({len(names)}), {words}: {titles}.")
    section.folded = [feature_table(view)]
    used = {name.rpartition(".")[2] for name in table.everything}
    section.extra["meanings"] = [(k.replace("_", " "), v) for k, v in MEANINGS.items() if k in used]
    return section


def _lesions(view: View) -> Section:
    section = Section("lesions", "Lesions")
    extracted = view.cohort.extracted
    if extracted is None or not extracted.lesions:
        section.absent.append(
            "No scan has a mask with lesions: only features of whole scans are shown."
        )
        return section
    with_mask = sum("lesion.volume_ml" in row for row in extracted.features)
    section.pictures = [lesion_picture(extracted.lesions, view.colours, dict(view.legend))]
    section.extra["legend"] = view.legend
    if with_mask < len(extracted.features):
        section.absent.append(f"{len(extracted.features) - with_mask} scans have no mask.")
    return section


def _dimensions(view: View) -> Section:
    section = Section("dimension", "How much do they really vary?")
    found = view.cohort.findings.dimensions
    if not found:
        section.absent.append("An intrinsic dimension needs 10 different scans or more.")
        return section
    section.pictures = [dimension_picture(found)]
    section.tables = [dimension_table(view)]
    if not any(name.startswith("kernels") for name in found):
        section.absent.append("Give --kernels, a harvested kernel set, to see that of kernels.")
    return section


def _provenance(view: View) -> Section:
    section = Section("provenance", "How this page was made")
    cohort = view.cohort
    seconds = cohort.facts.get("seconds")
    versions = cohort.facts.get("versions")
    section.extra = {
        "failures": [failure.row() for failure in cohort.failures],
        "show_names": cohort.settings.show_names,
        "facts": [
            ("command", cohort.command),
            ("seed", str(cohort.settings.seed)),
            ("git commit", str(cohort.facts.get("git_commit") or "not known")),
            *(
                (str(k), str(v))
                for k, v in (versions.items() if isinstance(versions, dict) else ())
            ),
            *(
                (f"time: {k}", duration(float(v)))
                for k, v in (seconds.items() if isinstance(seconds, dict) else ())
            ),
        ],
        "cached": len(cohort.extracted.cached) if cohort.extracted is not None else 0,
    }
    return section


SECTIONS: tuple[Callable[[View], Section], ...] = (
    _glance,
    _unusual,
    _map,
    _embedding,
    _alike,
    _clusters,
    _lesions,
    _features,
    _dimensions,
    _provenance,
)
