"""The cohort in a few sentences and numbers, written from the findings and no further."""

from __future__ import annotations

import numpy as np

from medseg.explore.clusters import WEAK_SILHOUETTE
from medseg.explore.names import name_of
from medseg.explore.view import View
from medseg.generative.dimension import latent_size


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def sentences(view: View) -> list[str]:
    """Return the sentences that open the page."""
    cohort, found = view.cohort, view.cohort.findings
    table = found.table
    people = len({*cohort.extracted.subjects}) if cohort.extracted is not None else 0
    of = f" of {_count(people, 'person').replace('persons', 'people')}" if people else ""
    sites = len({*table.groups.get("site", ())} - {""})
    where = f" from {_count(sites, 'site')}" if sites > 1 else ""
    told = [f"{_count(len(table), 'scan')}{of}{where}, compared by {len(table.features)} features."]
    if cohort.failures:
        told.append(f"{_count(len(cohort.failures), 'scan')} could not be read, see the end.")
    flagged = len(found.unusual.flagged)
    stand = "stands" if flagged == 1 else "stand"
    told.append(
        f"{_count(flagged, 'scan')} {stand} apart from the rest."
        if flagged
        else "No scan stands apart from the rest."
    )
    return [*told, *_cluster_words(view), *_code_words(view)]


def _cluster_words(view: View) -> list[str]:
    found = view.cohort.findings
    clusters = found.clusters
    if not clusters.silhouettes:
        return []
    if clusters.silhouette < WEAK_SILHOUETTE:
        return [
            f"They form no clear clusters (best silhouette {clusters.silhouette:.2f}, with "
            f"{clusters.count})."
        ]
    words = f"They fall into {clusters.count} clusters (silhouette {clusters.silhouette:.2f})"
    best = max(
        (one for one in found.agreements if one.rand > one.chance),
        key=lambda one: one.rand,
        default=None,
    )
    if best is None:
        return [f"{words}."]
    names = {"grid": "voxel size"}.get(best.group, best.group)
    return [
        f"{words}, which agree with {names} beyond chance (adjusted Rand {best.rand:.2f}, by "
        f"chance below {best.chance:.2f})."
    ]


def _code_words(view: View) -> list[str]:
    recalls = [one for one in view.cohort.findings.recalls if one.k == 5]
    if not recalls:
        return []
    best = max(recalls, key=lambda one: (one.recall, -one.bits))
    return [
        f"Codes of {best.bits} bits ({best.method}) find {best.recall:.2f} of the 5 most similar "
        f"scans (by chance {best.chance:.2f})."
    ]


def cards(view: View) -> list[tuple[str, str, str]]:
    """Return name, number and words of what is worth a card."""
    found = view.cohort.findings
    shown = [
        ("Scans", str(len(found.table)), f"{len(view.cohort.failures)} could not be read"),
        ("Unusual", str(len(found.unusual.flagged)), "stand apart from the others"),
    ]
    if found.clusters.silhouettes:
        clear = found.clusters.silhouette >= WEAK_SILHOUETTE
        words = f"best silhouette {found.clusters.silhouette:.2f}"
        shown.append(("Clear clusters", str(found.clusters.count) if clear else "none", words))
    for name in ("patches", "scans"):
        if name in found.dimensions:
            one = found.dimensions[name]
            words = f"of {one.size} numbers; a code of {latent_size(one)} would do"
            shown.append((f"Dimension of {name}", f"{one.two_nn:.1f}", words))
    return shown


def separating(view: View, *, most: int = 6) -> list[tuple[str, float]]:
    """Return the features that differ most between the main groups, with the share of their
    variance that lies between groups (eta squared).
    """
    table = view.cohort.findings.table
    if view.group is None:
        return []
    column = np.array(table.groups[view.group])
    known = column != ""
    scores, names = table.scores[known], column[known]
    total = ((scores - scores.mean(0)) ** 2).sum(0)
    between = np.zeros(scores.shape[1])
    for name in set(names):
        some = scores[names == name]
        between += len(some) * (some.mean(0) - scores.mean(0)) ** 2
    shares = between / np.maximum(total, 1e-12)
    order = np.argsort(-shares)[:most]
    return [(name_of(table.features[i]).title, float(shares[i])) for i in order]
