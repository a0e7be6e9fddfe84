"""From the scores of all cells to summary, paired differences and reliability."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from medseg.experiment.cell import Cell
from medseg.experiment.forgetting import write_forgetting
from medseg.experiment.statistics import bootstrap_mean_interval, holm, paired_difference
from medseg.io.atomic import read_table, write_table

Row = dict[str, object]
_MEANS = (
    "iou", "hd95_mm", "nsd", "volume_error_ml", "lesion_f1", "nll_nats", "brier", "ece",
)  # fmt: skip
_AGAINST = ("threshold", "zero_shot", "ri", "pr", "wise")
_ARM = ("method", "source", "n", "region")


def write_tables(cells: Sequence[Cell], out: Path, *, seed: int) -> None:
    """Write ``scores.tsv``, ``summary.tsv``, ``paired.tsv`` and ``reliability.tsv`` of a run."""
    rows = [
        row for cell in cells for row in read_table(out / "cells" / cell.identifier / "scores.tsv")
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_table(out / "scores.tsv", rows, columns=columns)
    arms = _grouped(rows)
    write_table(out / "summary.tsv", [_summary(key, arms[key], seed) for key in arms])
    write_table(out / "paired.tsv", _paired(arms, seed))
    write_table(out / "reliability.tsv", _reliability(cells, out))
    write_forgetting([out / "cells" / cell.identifier for cell in cells], out, seed=seed)


def _grouped(rows: Sequence[dict[str, str]]) -> dict[tuple[str, ...], list[dict[str, str]]]:
    arms: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        arms.setdefault(tuple(row[name] for name in _ARM), []).append(row)
    return arms


def _number(text: str) -> float:
    return float("nan") if text in ("", "n/a") else float(text)


def _summary(key: tuple[str, ...], rows: Sequence[dict[str, str]], seed: int) -> Row:
    dsc = [_number(row["dsc"]) for row in rows]
    interval = bootstrap_mean_interval(dsc, [row["subject"] for row in rows], seed=seed)
    means: Row = {}
    for name in _MEANS:
        values = np.array([_number(row.get(name, "")) for row in rows])
        defined = values[np.isfinite(values)]
        means[f"mean_{name}"] = float(defined.mean()) if len(defined) else None
    return {
        **dict(zip(_ARM, key, strict=True)),
        "n_cases": len({row["case"] for row in rows}),
        "n_cells": len({row["subset"] for row in rows}),
        "mean_dsc": interval.mean,
        "low_dsc": interval.low,
        "high_dsc": interval.high,
        **means,
    }


def _paired(arms: dict[tuple[str, ...], list[dict[str, str]]], seed: int) -> list[Row]:
    """Every arm against the baselines, on the same cases after training on the same subset."""
    found: list[Row] = []
    for key, rows in arms.items():
        method, source, n, region = key
        for other, theirs in arms.items():
            same = other[0] in _AGAINST and other[3] == region and other[:2] != key[:2]
            comparable = other[2] == n or other[0] == "zero_shot"
            if not (same and comparable) or other[1] not in ("none", source) or method == other[0]:
                continue
            found.append(_difference(key, other[0], rows, theirs, seed))
    order = sorted(found, key=_family)
    adjusted: list[Row] = []
    for _, members in groupby(order, key=_family):
        family = list(members)
        for row, p in zip(family, holm([float(str(r["p_wilcoxon"])) for r in family]), strict=True):
            adjusted.append({**row, "p_holm": p})
    return adjusted


def _family(row: Row) -> tuple[str, str, int]:
    return str(row["region"]), str(row["against"]), int(str(row["n"]))


def _difference(
    key: tuple[str, ...],
    against: str,
    mine: Sequence[dict[str, str]],
    theirs: Sequence[dict[str, str]],
    seed: int,
) -> Row:
    by_subset = against != "zero_shot"

    def place(row: dict[str, str]) -> tuple[str, str]:
        return (row["subset"] if by_subset else "", row["case"])

    other = {place(row): _number(row["dsc"]) for row in theirs}
    pairs = [(row, other[place(row)]) for row in mine if place(row) in other]
    result = paired_difference(
        [_number(row["dsc"]) for row, _ in pairs],
        [value for _, value in pairs],
        [row["subject"] for row, _ in pairs],
        seed=seed,
    )
    return {
        **dict(zip(_ARM, key, strict=True)),
        "against": against,
        "difference_dsc": result.difference,
        "low": result.low,
        "high": result.high,
        "p_wilcoxon": result.p_wilcoxon,
        "n_cases": len({row["case"] for row, _ in pairs}),
        "n_pairs": len(pairs),
    }


def _reliability(cells: Sequence[Cell], out: Path) -> list[Row]:
    """Pool the bins of all cells of an arm, weighting by voxels."""
    sums: dict[tuple[str, str, str, int], np.ndarray] = {}
    for cell in cells:
        for row in read_table(out / "cells" / cell.identifier / "reliability.tsv"):
            count = float(row["count"])
            if count:
                key = (cell.method, cell.source, row["region"], int(row["bin"]))
                part = np.array([_number(row["confidence"]), _number(row["accuracy"]), 1.0])
                sums[key] = sums.get(key, np.zeros(3)) + count * part
    return [
        {
            "method": method,
            "source": source,
            "region": region,
            "bin": number,
            "confidence": total[0] / total[2],
            "accuracy": total[1] / total[2],
            "count": int(total[2]),
        }
        for (method, source, region, number), total in sorted(sums.items())
    ]
