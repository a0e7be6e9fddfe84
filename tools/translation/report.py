"""Tables and pictures of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from torch import Tensor

from medseg.experiment.statistics import bootstrap_mean_interval, paired_difference
from tools.translation.images import Row

#: Measured number -> its heading, and whether higher is better.
MEASURES = {
    "psnr_db": ("PSNR dB", True),
    "ssim": ("SSIM", True),
    "dsc": ("DSC", True),
    "rmse": ("rmse in the gap", False),
}


def summary(rows: Sequence[Row], *, against: str) -> list[dict[str, Any]]:
    """Return one line a method: mean, interval and gain over the method ``against``."""
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    measures = [name for name in MEASURES if name in rows[0]]
    lines = []
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        base = [row for row in rows if row["method"] == against]
        subjects = [str(row["case"]) for row in mine]
        line: dict[str, Any] = {"method": method, "n": len(mine), "cases": len(set(subjects))}
        for name in measures:
            values = np.array([row[name] for row in mine], dtype=float)
            found = bootstrap_mean_interval(values, subjects, seed=0)
            line[name] = {"mean": found.mean, "low": found.low, "high": found.high}
            line[name]["sd"] = float(values.std(ddof=1)) if len(values) > 1 else None
            if method != against:
                other = np.array([row[name] for row in base], dtype=float)
                gain = paired_difference(values, other, subjects, seed=0)
                line[name]["gain"] = [gain.difference, gain.low, gain.high]
        lines.append(line)
    return lines


def markdown(tables: Mapping[str, Mapping[str, Any]], *, head: str) -> str:
    """Return all tables as Markdown."""
    parts = [head]
    for title, table in tables.items():
        lines, against = table["lines"], table["against"]
        measures = [name for name in MEASURES if name in lines[0]]
        columns = ["method", "n"]
        for name in measures:
            arrow = "higher" if MEASURES[name][1] else "lower"
            columns += [f"{MEASURES[name][0]} ({arrow} is better)", f"against {against}"]
        text = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        for line in lines:
            cells = [line["method"], str(line["n"])]
            for name in measures:
                value, digits = line[name], 2 if name == "psnr_db" else 3
                cells.append(_interval(value["mean"], value["low"], value["high"], digits))
                gain, low, high = value.get("gain", (0.0, 0.0, 0.0))
                cells.append(_interval(gain, low, high, digits, "+") if "gain" in value else "")
            text.append(f"| {' | '.join(cells)} |")
        note = f"{table['note']} {lines[0]['cases']} people, {table['seconds']:.0f} s."
        parts.append("\n".join([f"### {title}", "", note, "", *text]))
    return "\n\n".join(parts) + "\n"


def picture(path: Path, panels: Mapping[str, Tensor]) -> None:
    """Write rows of grey pictures, one column a name, each panel (rows, x, y)."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(panels)
    rows = len(next(iter(panels.values())))
    figure, axes = plt.subplots(
        rows, len(names), figsize=(2.2 * len(names), 2.4 * rows), squeeze=False
    )
    true = panels["true"]
    limits = [float(true.quantile(q)) for q in (0.01, 0.995)]
    for column, name in enumerate(names):
        for row in range(rows):
            axis = axes[row][column]
            image = panels[name][row].numpy().T
            axis.imshow(image, cmap="gray", origin="lower", vmin=limits[0], vmax=limits[1])
            axis.set_axis_off()
        axes[0][column].set_title(name, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _interval(mean: float, low: float, high: float, digits: int, sign: str = "") -> str:
    shown = [f"{value:{sign}.{digits}f}" for value in (mean, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"
