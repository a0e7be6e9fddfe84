"""One figure of the whole run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.benchmark.plan import PHANTOM
from tools.benchmark.report import rows_of, seconds

OTHER = "#333333"
COLOURS = {"medseg": "#1b6ca8", "MONAI": "#d98e04", "nnU-Net": "#7a7a7a", "plain": "#7a7a7a"}


def colour(name: str) -> str:
    return next((c for word, c in COLOURS.items() if word in name), OTHER)


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the figure: seconds, memory, three costs and the training step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [panel for panel in _panels(results) if panel is not None]
    rows = math.ceil(len(panels) / 3)
    figure, axes = plt.subplots(
        rows, 3, figsize=(17, 4.75 * rows), layout="constrained", squeeze=False
    )
    for axis, panel in zip(axes.flat, panels, strict=False):
        panel(axis)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    meta = results["material"]
    box = " x ".join(map(str, results["cases"][0]["box"]))
    figure.suptitle(
        f"Same weights, one volume (brain box {box}), {results['threads']} threads of "
        f"{meta['processor']}, torch {meta['torch']}",
        fontsize=11,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panels(results: dict[str, Any]) -> list[Callable[[Any], None] | None]:
    """Return what draws each panel, None where nothing was measured for it."""
    rows, training = rows_of(results, PHANTOM), rows_of(results, "training")
    times = _ordered({name: seconds(row) for name, row in rows.items()})
    memory = {name: rows[name]["peak_mib"] / 1024 for name in times}
    steps = _ordered({name: row["seconds_per_step"] for name, row in training.items()})
    limit = results["cases"][0]["gigaflop"] / results["chip"]["peak_gflops"]

    def speed(axis: Any) -> None:
        _bars(axis, times, "seconds for one volume", log=True)
        axis.axvline(limit, color="black", linestyle=":", linewidth=1)
        axis.set_title(f"dotted: one pass at the chip's float32 peak, {limit:.1f} s", fontsize=9)

    def points(section: str) -> dict[str, list[dict[str, float]]]:
        return {name: row["points"] for name, row in rows_of(results, section).items()}

    volume, samples, scans = (points(section) for section in ("volume", "samples", "scans"))
    return [
        speed if times else None,
        (lambda a: _bars(a, memory, "peak memory, GiB", log=False)) if memory else None,
        (lambda a: _lines(a, volume, "side", "side of the cube, voxels", log=True))
        if volume
        else None,
        (
            lambda a: _lines(
                a, samples, "samples", "posterior samples K", y=("ratio", "time over one pass")
            )
        )
        if samples
        else None,
        (lambda a: _lines(a, scans, "scans", "scans in a batch, files to files"))
        if scans
        else None,
        (lambda a: _bars(a, steps, "seconds for a training step", log=True)) if steps else None,
    ]


def _ordered(values: dict[str, float]) -> dict[str, float]:
    """Return the values with the largest first: it lies at the bottom."""
    return dict(sorted(values.items(), key=lambda pair: -pair[1]))


def _bars(axis: Any, values: dict[str, float], label: str, *, log: bool) -> None:
    axis.barh(list(values), list(values.values()), color=[colour(n) for n in values], height=0.7)
    for place, value in enumerate(values.values()):
        axis.text(value, place, f" {value:.3g}", va="center", fontsize=8)
    if log and values:
        axis.set_xscale("log")
    axis.margins(x=0.18)
    axis.set_xlabel(label)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _lines(
    axis: Any,
    lines: dict[str, list[dict[str, float]]],
    x: str,
    label: str,
    *,
    y: tuple[str, str] = ("seconds", "seconds"),
    log: bool = False,
) -> None:
    styles = ["-", "--", ":", "-."]
    for number, (name, points) in enumerate(lines.items()):
        axis.plot(
            [p[x] for p in points],
            [p[y[0]] for p in points],
            marker="o",
            color=colour(name) if colour(name) != OTHER else f"C{number}",
            linestyle=styles[number % len(styles)],
            label=name,
        )
    axis.legend(fontsize=8, frameon=False)
    if log:
        axis.set_yscale("log")
    axis.set_xlabel(label)
    axis.set_ylabel(y[1])
    axis.spines[["top", "right"]].set_visible(False)
