"""From the scores of all cells to summary, paired differences, ranks, decisions, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg.experiment.cell import Cell
from medseg.experiment.decisions import decision_row
from medseg.experiment.forgetting import write_forgetting
from medseg.experiment.pairs import ArmScores, number, paired_rows, rank_rows
from medseg.experiment.statistics import bootstrap_mean_interval
from medseg.io.atomic import read_table, write_table

Row = dict[str, object]
_MEANS = (
    "iou", "hd95_mm", "nsd", "volume_error_ml", "lesion_f1", "nll_nats", "brier", "ece",
    "expected_dsc",
)  # fmt: skip
_ARM = ("method", "source", "n", "region")


def write_tables(cells: Sequence[Cell], out: Path, *, seed: int, members: int) -> None:
    """Write the tables of a run from the folders of its cells.

    ``scores.tsv``, ``summary.tsv``, ``paired.tsv`` (every arm against every other), ``ranks.tsv``,
    ``power.tsv`` (what differences this many subjects can show), ``decisions.tsv`` (volume
    intervals and referral), ``reliability.tsv`` and, where it was measured, ``forgetting.tsv``.

    Parameters
    ----------
    cells : sequence of Cell
        Those that are done.
    out : Path
        The run's folder.
    seed : int
        Of the bootstraps.
    members : int
        Networks of each source.
    """
    rows = [
        {**row, "seed": str(cell.seed)}
        for cell in cells
        for row in read_table(out / "cells" / cell.identifier / "scores.tsv")
    ]
    write_table(out / "scores.tsv", rows)
    arms = _grouped(rows)
    write_table(out / "summary.tsv", [_summary(key, arms[key], seed) for key in arms])
    paired: list[Row] = []
    ranks: list[Row] = []
    for (region, n), same in _families(arms, members).items():
        paired += paired_rows(same, n=n, region=region, seed=seed)
        ranks += rank_rows(same, n=n, region=region)
    write_table(out / "paired.tsv", paired, columns=None if paired else _ARM)
    write_table(out / "ranks.tsv", ranks, columns=None if ranks else _ARM)
    write_table(out / "power.tsv", _power(paired), columns=_POWER)
    decisions = [
        decision_row(ArmScores(method, source, some), n=int(n), region=region, seed=seed)
        for (method, source, n, region), some in arms.items()
    ]
    known = [row for row in decisions if row is not None]
    write_table(out / "decisions.tsv", known, columns=None if known else _ARM)
    write_table(out / "reliability.tsv", _reliability(cells, out))
    write_forgetting([out / "cells" / cell.identifier for cell in cells], out, seed=seed)


def _grouped(rows: Sequence[dict[str, str]]) -> dict[tuple[str, ...], list[dict[str, str]]]:
    arms: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        arms.setdefault(tuple(row[name] for name in _ARM), []).append(row)
    return arms


def _families(
    arms: dict[tuple[str, ...], list[dict[str, str]]], members: int
) -> dict[tuple[str, int], list[ArmScores]]:
    """Return the arms to compare, by region and n; those that see no target case are in all."""
    found: dict[tuple[str, int], list[ArmScores]] = {}
    for region in dict.fromkeys(key[3] for key in arms):
        for n in sorted({int(key[2]) for key in arms} - {0}):
            found[region, n] = [
                ArmScores(method, source, rows, members)
                for (method, source, size, where), rows in arms.items()
                if where == region and int(size) in (0, n)
            ]
    return found


_POWER = (
    "n", "region", "n_pairs_of_arms", "n_subjects", "median_sd_dsc", "median_detectable_dsc",
    "min_detectable_dsc", "max_detectable_dsc",
)  # fmt: skip


def _power(paired: Sequence[Row]) -> list[Row]:
    """Return, per n and region, the differences in DSC found with 80 % power at two-sided 5 %.

    From the spread over subjects of each pair of arms; see
    :func:`medseg.experiment.statistics.detectable_difference`.
    """
    groups: dict[tuple[object, object], list[Row]] = {}
    for row in paired:
        groups.setdefault((row["n"], row["region"]), []).append(row)
    found: list[Row] = []
    for (n, region), rows in groups.items():
        sizes = np.array([float(str(row["detectable_dsc"])) for row in rows])
        finite = sizes[np.isfinite(sizes)]
        if not len(finite):
            continue
        spread = np.array([float(str(row["sd_dsc"])) for row in rows])
        values = (n, region, len(rows) // 2, max(int(str(row["n_subjects"])) for row in rows))
        ends = (np.nanmedian(spread), np.median(finite), finite.min(), finite.max())
        found.append(dict(zip(_POWER, (*values, *ends), strict=True)))
    return found


def _summary(key: tuple[str, ...], rows: Sequence[dict[str, str]], seed: int) -> Row:
    dsc = [number(row["dsc"]) for row in rows]
    interval = bootstrap_mean_interval(dsc, [row["subject"] for row in rows], seed=seed)
    means: Row = {}
    for name in _MEANS:
        values = np.array([number(row.get(name, "")) for row in rows])
        defined = values[np.isfinite(values)]
        means[f"mean_{name}"] = float(defined.mean()) if len(defined) else None
    return {
        **dict(zip(_ARM, key, strict=True)),
        "n_cases": len({row["case"] for row in rows}),
        "n_cells": len({(row["subset"], row["seed"]) for row in rows}),
        "mean_dsc": interval.mean,
        "low_dsc": interval.low,
        "high_dsc": interval.high,
        **means,
    }


def _reliability(cells: Sequence[Cell], out: Path) -> list[Row]:
    """Pool the bins of all cells of an arm at one n, weighting by voxels."""
    sums: dict[tuple[str, str, int, str, int], np.ndarray] = {}
    for cell in cells:
        for row in read_table(out / "cells" / cell.identifier / "reliability.tsv"):
            count = float(row["count"])
            if count:
                key = (cell.method, cell.source, cell.n, row["region"], int(row["bin"]))
                part = np.array([number(row["confidence"]), number(row["accuracy"]), 1.0])
                sums[key] = sums.get(key, np.zeros(3)) + count * part
    return [
        {
            "method": method,
            "source": source,
            "n": n,
            "region": region,
            "bin": number,
            "confidence": total[0] / total[2],
            "accuracy": total[1] / total[2],
            "count": int(total[2]),
        }
        for (method, source, n, region, number), total in sorted(sums.items())
    ]
