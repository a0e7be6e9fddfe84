"""Figures of scores: per case, over n, calibration and volumes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medseg.report.arms import NO_TARGET, Arm, arm_name, arm_order, look_of, source_name
from medseg.report.figure import (
    FAINT,
    INK,
    SOFT,
    Picture,
    house_style,
    quiet_grid,
    safe_text,
    to_svg,
)
from medseg.report.run_folder import Run, Score, Summary
from medseg.report.statistics import (
    Calibration,
    case_means,
    contenders,
    holds,
    largest_n,
    scores_of,
)
from medseg.seeding import numpy_generator

EDGE = {"markeredgecolor": "white", "markeredgewidth": 0.6}


def per_case_plot(run: Run, rows: Sequence[Summary]) -> Picture | None:
    """Return one dot per case and arm at the largest n, with mean and 95 % interval."""
    n = largest_n(rows)
    regions = [r for r in run.regions if contenders(rows, n=n, region=r)]
    if not regions:
        return None
    arms = sorted(
        {row.arm for r in regions for row in contenders(rows, n=n, region=r)}, key=arm_order
    )
    with house_style():
        figure = Figure(figsize=(9.0, 0.9 + 0.36 * len(arms)), layout="constrained")
        panels = figure.subplots(1, len(regions), sharey=True, squeeze=False)[0]
        for axes, region in zip(panels, regions, strict=True):
            _dots(axes, run, contenders(rows, n=n, region=region), arms)
            axes.set_title(safe_text(region))
        panels[0].set_yticks(range(len(arms)), [safe_text(arm_name(arm)) for arm in arms])
        panels[0].set_ylim(len(arms) - 0.4, -0.6)
        cases = {s.case for s in run.scores}
        alt = f"DSC of each case under {len(arms)} arms on {', '.join(regions)}, n = {n}."
        svg = to_svg(figure, alt=alt)
    caption = (
        f"One dot per test case ({len(cases)} in all; a case tested in several runs gives its mean "
        f"over them) at n = {n} target training subjects. Large mark and bar: mean with 95 % "
        "interval. The grey band is the interval of the no-learning threshold, where there is one."
    )
    return Picture(svg, caption)


def _dots(axes: Axes, run: Run, rows: Sequence[Summary], arms: Sequence[Arm]) -> None:
    generator = numpy_generator(0, "report", "jitter")
    for row in rows:
        look, y = look_of(row.arm.method), arms.index(row.arm)
        values = list(case_means(scores_of(run, row.arm, n=row.n, region=row.region)).values())
        jitter = generator.uniform(-0.22, 0.22, len(values))
        axes.plot(
            values, y + jitter, "o", color=look.colour, markersize=4.2, alpha=0.45,
            markeredgewidth=0, zorder=2,
        )  # fmt: skip
        if row.arm.method == "threshold" and math.isfinite(row.low):
            axes.axvspan(row.low, row.high, color=FAINT, alpha=0.7, zorder=0, linewidth=0)
        axes.plot([row.low, row.high], [y, y], color=INK, linewidth=1.6, zorder=3)
        axes.plot(
            [row.mean], [y], look.marker, color=look.colour, markersize=8.5, zorder=4,
            markeredgecolor=INK, markeredgewidth=0.8,
        )  # fmt: skip
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("DSC")
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    quiet_grid(axes, axis="x")
    for y in range(len(arms)):
        axes.axhline(y, color=FAINT, linewidth=0.6, zorder=0)


def learning_curve(run: Run, rows: Sequence[Summary]) -> Picture | None:
    """Return mean DSC over n, a panel per region and source; None with fewer than two n."""
    sizes = sorted({row.n for row in rows if row.arm.method not in NO_TARGET})
    if len(sizes) < 2:
        return None
    sources = _sources(row.arm for row in rows)
    regions = list(run.regions)
    with house_style():
        figure = Figure(figsize=(9.0, 2.75 * len(regions) + 0.7), layout="constrained")
        panels = figure.subplots(
            len(regions), len(sources), sharex=True, sharey="row", squeeze=False
        )
        drawn: dict[Arm, Line2D] = {}
        for line, region in zip(panels, regions, strict=True):
            for axes, source in zip(line, sources, strict=True):
                some = [r for r in rows if r.region == region and r.arm.source in (source, "none")]
                drawn |= _curves(axes, some, sizes)
                axes.set_title(safe_text(_panel_title(region, source)))
            line[0].set_ylabel("mean DSC")
        for axes in panels[-1]:
            axes.set_xlabel("n, target training subjects")
        _legend(figure, drawn)
        alt = f"Mean DSC over n = {', '.join(map(str, sizes))} on {', '.join(regions)}."
        svg = to_svg(figure, alt=alt)
    counts = sorted({row.n_cases for row in rows if row.n in sizes})
    caption = (
        f"Mean DSC with 95 % interval over n ({counts[0]} to {counts[-1]} test cases a point, "
        "n moved a little sideways so that marks do not hide each other). Horizontal lines: arms "
        "that see no target case. Arms without a source stand in every panel."
    )
    return Picture(svg, caption)


def _sources(arms: Iterable[Arm]) -> list[str]:
    """Return the sources to draw panels for: "none" only where there is no other."""
    keys = sorted({Arm("", arm.source) for arm in arms}, key=arm_order)
    return [key.source for key in keys if key.source != "none"] or ["none"]


def _curves(axes: Axes, rows: Sequence[Summary], sizes: Sequence[int]) -> dict[Arm, Line2D]:
    drawn: dict[Arm, Line2D] = {}
    arms = sorted({row.arm for row in rows}, key=arm_order)
    trained = [arm for arm in arms if any(row.n in sizes for row in rows if row.arm == arm)]
    for arm in arms:
        look = look_of(arm.method)
        some = sorted((row for row in rows if row.arm == arm), key=lambda row: row.n)
        some = [row for row in some if row.n in sizes] or some
        style = (0, look.dashes) if look.dashes else "-"
        key = Arm(arm.method, "")
        if all(row.n == 0 for row in some):
            drawn[key] = axes.axhline(
                some[0].mean, color=look.colour, linestyle=style, linewidth=1.3
            )
            continue
        shift = 0.035 * (trained.index(arm) - (len(trained) - 1) / 2)
        x = [sizes.index(row.n) + shift for row in some]
        axes.vlines(
            x,
            [r.low for r in some],
            [r.high for r in some],
            color=look.colour,
            alpha=0.45,
            linewidth=1.2,
        )
        (drawn[key],) = axes.plot(
            x, [r.mean for r in some], color=look.colour, linestyle=style, marker=look.marker,
            markersize=6, markeredgecolor="white", markeredgewidth=0.6,
        )  # fmt: skip
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_xlim(-0.35, len(sizes) - 0.65)
    quiet_grid(axes, axis="y")
    return drawn


def _legend(figure: Figure, drawn: dict[Arm, Line2D]) -> None:
    keys = sorted(drawn, key=arm_order)
    names = [safe_text(look_of(key.method).short) for key in keys]
    # About 130 characters stand side by side, some 9 of them for a line and gaps.
    columns = max(1, min(6, len(keys), 130 // (9 + max(map(len, names)))))
    figure.legend(
        [drawn[key] for key in keys], names, loc="outside lower center", ncols=columns,
        handlelength=2.6,
    )  # fmt: skip


def reliability_plot(found: Sequence[Calibration]) -> Picture | None:
    """Return accuracy over confidence, a panel per region and source."""
    if not found:
        return None
    regions = list(dict.fromkeys(curve.region for curve in found))
    sources = _sources([curve.arm for curve in found])
    size = min(3.6, 9.0 / len(sources))
    with house_style():
        figure = Figure(
            figsize=(size * len(sources), (size + 0.2) * len(regions) + 0.5), layout="constrained"
        )
        shape = (len(regions), len(sources))
        panels = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
        drawn: dict[Arm, Line2D] = {}
        for line, region in zip(panels, regions, strict=True):
            for axes, source in zip(line, sources, strict=True):
                drawn |= _reliability(
                    axes,
                    [c for c in found if c.region == region and c.arm.source in (source, "none")],
                )
                axes.set_title(safe_text(_panel_title(region, source)))
            line[0].set_ylabel("share that is truly lesion")
        for axes in panels[-1]:
            axes.set_xlabel("predicted probability")
        _legend(figure, drawn)
        svg = to_svg(figure, alt=f"Reliability of {len(found)} predictions by bin of probability.")
    voxels = max(curve.count.sum() for curve in found)
    caption = (
        f"Reliability: observed share over predicted probability, up to {voxels:,.0f} voxels a "
        "curve. On the diagonal a probability means what it says; below it the network says "
        "lesion too often. Larger marks hold more voxels. Arms without a source stand in every "
        "panel of their region."
    )
    return Picture(svg, caption)


def _panel_title(region: str, source: str) -> str:
    return region if source == "none" else f"{region} · source {source_name(source)}"


def _reliability(axes: Axes, found: Sequence[Calibration]) -> dict[Arm, Line2D]:
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=(0, (2, 2)))
    drawn: dict[Arm, Line2D] = {}
    for curve in found:
        look = look_of(curve.arm.method)
        style = (0, look.dashes) if look.dashes else "-"
        axes.plot(
            curve.confidence, curve.accuracy, color=look.colour, linestyle=style, linewidth=1.3
        )
        sizes = 8 + 40 * np.sqrt(curve.count / curve.count.max())
        axes.scatter(
            curve.confidence, curve.accuracy, s=sizes, c=look.colour, marker=look.marker,
            edgecolors="white", linewidths=0.5, zorder=3,
        )  # fmt: skip
        drawn[Arm(curve.arm.method, "")] = Line2D(
            [], [], color=look.colour, linestyle=style, marker=look.marker, markersize=6, **EDGE
        )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_aspect("equal")
    quiet_grid(axes, axis="both")
    return drawn


def volume_plot(run: Run, best: Sequence[Summary]) -> Picture | None:
    """Return predicted volume with interval over the reference, for the best arm of each region."""
    shown = [(row, _with_interval(run, row)) for row in best]
    shown = [(row, scores) for row, scores in shown if scores]
    if not shown:
        return None
    with house_style():
        figure = Figure(figsize=(min(9.0, 4.5 * len(shown)), 3.9), layout="constrained")
        for axes, (row, scores) in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
        ):
            _volumes(axes, scores, look_of(row.arm.method).colour)
            axes.set_title(safe_text(f"{row.region} · {arm_name(row.arm)}"))
        svg = to_svg(
            figure, alt="Predicted volume with interval over reference volume, in millilitres."
        )
    counts = " and ".join(f"{len(scores)} on {row.region}" for row, scores in shown)
    caption = (
        f"Volume with 5-95 % interval against the reference, one mark per prediction ({counts}). "
        "Filled: the interval holds the reference; open: it does not. Line: perfect agreement."
    )
    return Picture(svg, caption)


def _with_interval(run: Run, row: Summary) -> list[Score]:
    keys = ("volume_low_ml", "volume_high_ml", "reference_volume_ml", "volume_ml")
    some = scores_of(run, row.arm, n=row.n, region=row.region)
    return [s for s in some if all(math.isfinite(s.values.get(key, math.nan)) for key in keys)]


def _volumes(axes: Axes, scores: Sequence[Score], colour: str) -> None:
    top = 1.05 * max(
        max(s.values["volume_high_ml"], s.values["reference_volume_ml"]) for s in scores
    )
    axes.plot([0, top], [0, top], color=SOFT, linewidth=0.8, linestyle=(0, (2, 2)))
    for score in scores:
        x, y = score.values["reference_volume_ml"], score.values["volume_ml"]
        low, high = score.values["volume_low_ml"], score.values["volume_high_ml"]
        axes.plot([x, x], [low, high], color=colour, linewidth=1.4, alpha=0.6)
        face = colour if holds(score.values) else "white"
        axes.plot([x], [y], "o", markersize=5.5, markerfacecolor=face, markeredgecolor=colour)
    axes.set_xlabel("reference (ml)")
    axes.set_ylabel("predicted (ml)")
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_aspect("equal")
    quiet_grid(axes, axis="both")
