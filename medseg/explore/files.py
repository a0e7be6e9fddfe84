"""The tables and the JSON beside the page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from medseg.explore.cohort import Cohort
from medseg.generative.dimension import latent_size
from medseg.io.atomic import write_json, write_text


def write_files(cohort: Cohort, out: Path) -> None:
    """Write ``scans.csv``, ``lesions.csv`` (where there are lesions) and ``explore.json``."""
    _write_csv(out / "scans.csv", _scan_rows(cohort))
    if cohort.extracted is not None and cohort.extracted.lesions:
        _write_csv(out / "lesions.csv", _lesion_rows(cohort))
    write_json(out / "explore.json", _summary(cohort))


def _scan_rows(cohort: Cohort) -> list[dict[str, object]]:
    found, table, labels = cohort.findings, cohort.findings.table, cohort.labels()
    rows = []
    for i, name in enumerate(table.identifiers):
        row: dict[str, object] = {"label": labels[i], "case": name}
        row |= {group: column[i] for group, column in table.groups.items()}
        row |= {
            "cluster": int(found.clusters.label[i]) + 1,
            "map_row": int(found.map.node[i]) // found.map.grid[1],
            "map_column": int(found.map.node[i]) % found.map.grid[1],
            "nats": float(found.unusual.nats[i]),
            "unusual_score": float(found.unusual.score[i]),
            "flagged": int(i in found.unusual.flagged),
            "most_like": " ".join(table.identifiers[j] for j in found.neighbours[i]),
        }
        row |= {feature: float(column[i]) for feature, column in table.everything.items()}
        rows.append(row)
    return rows


def _lesion_rows(cohort: Cohort) -> list[dict[str, object]]:
    labels, names = cohort.labels(), cohort.findings.table.identifiers
    lesions = cohort.extracted.lesions if cohort.extracted is not None else []
    return [
        {
            "label": labels[int(row["scan"])],
            "case": names[int(row["scan"])],
            **{key: value for key, value in row.items() if key != "scan"},
        }
        for row in lesions
    ]


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    columns = list({key: None for row in rows for key in row})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_cell(row.get(column)) for column in columns] for row in rows])
    write_text(path, text.getvalue())


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    text = "" if value is None else str(value)
    # A spreadsheet takes these for formulas, and a case may be called anything.
    return f"'{text}" if text[:1] in {"=", "+", "@"} else text


def _summary(cohort: Cohort) -> dict[str, object]:
    found, table = cohort.findings, cohort.findings.table
    return {
        "title": cohort.title,
        "command": cohort.command,
        "settings": asdict(cohort.settings),
        "scans": len(table),
        "failures": [failure.row() for failure in cohort.failures],
        "features": {
            "compared": table.features,
            "constant": table.constant,
            "sparse": table.sparse,
            "ignored": table.ignored,
        },
        "map": {
            "grid": found.map.grid,
            "quantisation_error": found.map.quantisation_error,
            "one_node_error": found.map.one_node_error,
            "topographic_error": found.map.topographic_error,
            "hits": found.map.hits,
            "u_matrix": found.map.u_matrix,
            "density": found.map.density,
        },
        "components": {"variance_shares": found.components.shares},
        "vae": None
        if found.vae is None
        else {
            "held_out_nats": found.vae.held_out_nats,
            "gaussian_nats": found.vae.gaussian_nats,
        },
        "clusters": {"count": found.clusters.count, "silhouettes": found.clusters.silhouettes},
        "agreements": [asdict(one) for one in found.agreements],
        "recalls": [asdict(one) for one in found.recalls],
        "unusual": [
            {
                "case": table.identifiers[i],
                "nats": found.unusual.nats[i],
                "score": found.unusual.score[i],
                "reasons": [reason.words for reason in found.unusual.reasons[i]],
            }
            for i in found.unusual.flagged
        ],
        "dimensions": {
            name: {**asdict(one), "proposed_latent": latent_size(one)}
            for name, one in found.dimensions.items()
        },
        **cohort.facts,
    }
