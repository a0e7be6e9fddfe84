"""Figures of the page that need axes; pictures and maps are the template's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

from medseg.explore.clusters import WEAK_SILHOUETTE
from medseg.explore.findings import Findings
from medseg.explore.names import name_of
from medseg.explore.retrieval import METHODS
from medseg.generative.dimension import Dimension
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
from medseg.seeding import numpy_generator

#: Colours that differ for every kind of colour vision (Okabe and Ito 2008).
PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#7f7f7f",
)  # fmt: skip
#: Report colours -> variables of the style sheet, which differ between light and dark.
_ADAPTED = {INK: "ink", SOFT: "soft", FAINT: "faint", "#9ca3af": "soft"}


def adaptive(figure: Figure, *, alt: str) -> Markup:
    """Return a figure as SVG whose ink is that of the page, light or dark."""
    svg = str(to_svg(figure, alt=alt))
    for colour, variable in _ADAPTED.items():
        svg = svg.replace(f": {colour}", f": var(--{variable})")
    return Markup(svg)


def colours(values: NDArray[np.floating], scale: str) -> list[str]:
    """Return the colour of each value on a scale from the least to the largest."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    shares = (np.asarray(values, dtype=float).ravel() - low) / max(high - low, 1e-12)
    table = mpl.colormaps[scale]
    return [to_hex(table(share)) for share in shares]


def usual_picture(found: Findings, labels: Sequence[str]) -> Picture:
    """Return how usual each scan is, the flagged ones named."""
    unusual = found.unusual
    rng = numpy_generator(0, "explore", "jitter")
    heights = rng.uniform(-0.3, 0.3, len(unusual.nats))
    flagged = list(unusual.flagged)
    with house_style():
        figure = Figure(figsize=(9.0, 1.9), layout="constrained")
        axes = figure.subplots()
        shown = np.maximum(unusual.score, -4)
        rest = np.setdiff1d(np.arange(len(shown)), flagged)
        axes.axvspan(
            3.5, max(float(shown.max()) * 1.1, 5.0), color="#d55e00", alpha=0.1, linewidth=0
        )
        axes.plot(shown[rest], heights[rest], "o", color="#2e95d3", alpha=0.75, markersize=5.5,
                  markeredgewidth=0)  # fmt: skip
        axes.plot(shown[flagged], heights[flagged], "D", color="#d55e00", markersize=6.5)
        for i in flagged[:6]:
            axes.annotate(
                safe_text(labels[i]), (shown[i], heights[i]), xytext=(0, 8), ha="center",
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
        axes.set_xscale("symlog", linthresh=5)
        ticks = [-3, 0, 3.5, 10, 30, 100, 300, 1000, 3000, 10000]
        axes.set_xticks([t for t in ticks if t <= max(5.0, float(shown.max()))])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.minorticks_off()
        axes.set_ylim(-0.6, 0.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("robust deviations from the median distance (larger is odder)")
        quiet_grid(axes, axis="x")
        svg = adaptive(figure, alt="How unusual each scan is.")
    caption = (
        f"One mark per scan (n = {len(shown)}): distance under a probabilistic PCA of the other "
        f"scans ({unusual.latent} components; {unusual.leave_out}). Flagged (orange): more than "
        "3.5 robust deviations above the median, or one feature more than 6 off the others."
    )
    return Picture(svg, caption)


def heat_picture(found: Findings) -> Picture:
    """Return all scores at once: scans in the order of the map, features by likeness."""
    table, order = found.table, list(found.map.order)
    rows = np.lexsort((found.components.codes[:, 0], found.map.node, found.clusters.label))
    height = min(max(0.16 * len(rows), 1.6), 6.0)
    with house_style():
        figure = Figure(figsize=(9.4, height + 1.9), layout="constrained", dpi=120)
        axes = figure.subplots()
        known = np.where(np.isfinite(table.values), table.scores, np.nan)
        axes.set_facecolor("#8a9099")
        drawn = axes.imshow(
            known[rows][:, order], cmap="PuOr_r", vmin=-4, vmax=4, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        titles = [safe_text(name_of(table.features[i]).title) for i in order]
        axes.set_xticks(range(len(order)), titles, rotation=90, fontsize=6.5)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        label = found.clusters.label[rows]
        for edge in np.flatnonzero(np.diff(label)) + 0.5:
            axes.axhline(edge, color="#3b4048", linewidth=1.4)
        axes.set_ylabel("scans")
        bar = figure.colorbar(drawn, ax=axes, shrink=0.7, aspect=22, pad=0.01)
        bar.set_label("robust deviations", fontsize=8)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        svg = adaptive(figure, alt="Every feature of every scan as a colour.")
    caption = (
        f"{len(rows)} scans by {len(order)} features in robust deviations from the median. "
        "Grey is missing. Lines part the clusters; features that behave alike stand side by side."
    )
    return Picture(svg, caption, wide_px=760)


def recall_picture(found: Findings) -> Picture | None:
    """Return recall over the length of the code, a panel per k."""
    ks = sorted({one.k for one in found.recalls})
    if not ks:
        return None
    with house_style():
        figure = Figure(figsize=(9.0, 2.7), layout="constrained")
        panels = figure.subplots(1, len(ks), sharey=True, squeeze=False)[0]
        for axes, k in zip(panels, ks, strict=True):
            for method, colour in zip(METHODS, PALETTE, strict=False):
                some = [one for one in found.recalls if one.k == k and one.method == method]
                bits = [one.bits for one in some]
                axes.plot(bits, [one.recall for one in some], "o-", color=colour, label=method)
                axes.plot(bits, [one.reranked for one in some], "o:", color=colour, markersize=3)
            chance = next(one.chance for one in found.recalls if one.k == k)
            axes.axhline(chance, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted({one.bits for one in found.recalls}))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.minorticks_off()
            axes.set_title(f"recall@{k}")
            axes.set_ylim(0, 1.03)
            axes.set_xlabel("bits")
            quiet_grid(axes, axis="y")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(METHODS))
        svg = adaptive(figure, alt="Recall of binary codes against exact search.")
    caption = (
        f"Share of the k exact nearest scans ({len(found.table.features)} features, Euclidean) "
        "that binary codes find. Solid: the k nearest codes; dotted: exact search among "
        "the 4 k nearest; dashed grey: by chance."
    )
    return Picture(svg, caption)


def cluster_picture(found: Findings, group: str | None, names: Sequence[str]) -> Picture:
    """Return silhouettes by number of clusters, and what each cluster is made of."""
    clusters = found.clusters
    with house_style():
        figure = Figure(figsize=(9.0, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.6])
        counts = sorted(clusters.silhouettes)
        heights = [clusters.silhouettes[count] for count in counts]
        shades = [PALETTE[0] if count == clusters.count else "#9ca3af" for count in counts]
        left.bar(counts, heights, color=shades, width=0.65)
        left.axhline(WEAK_SILHOUETTE, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
        left.set_title("silhouette by number of clusters")
        left.set_xticks(counts)
        quiet_grid(left, axis="y")
        _composition(right, found, group, names)
        svg = adaptive(figure, alt="Silhouettes and what clusters are made of.")
    of = f" and their {group}" if group else ""
    caption = (
        f"k-means on the principal components; the number with the best mean silhouette was taken. "
        f"Below the dashed line ({WEAK_SILHOUETTE}) there is no substantial structure. Right: the "
        f"clusters{of}."
    )
    return Picture(svg, caption)


def _composition(axes: Axes, found: Findings, group: str | None, names: Sequence[str]) -> None:
    label = found.clusters.label
    column = found.table.groups[group] if group else ("",) * len(label)
    start = np.zeros(found.clusters.count)
    for value, colour in zip([*names, ""], [*_colours_of(names), "#c3c8cf"], strict=True):
        some = np.array([one == value for one in column])
        widths = np.bincount(label[some], minlength=len(start))
        if widths.any():
            axes.barh(range(len(start)), widths, left=start, color=colour, height=0.65,
                      label=safe_text(value or ("not known" if group else "scans")))  # fmt: skip
            start += widths
    axes.set_yticks(range(len(start)), [f"cluster {i + 1}" for i in range(len(start))])
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("scans")
    axes.tick_params(axis="y", length=0)
    if group:
        axes.legend(loc="best", fontsize=7.5)
    quiet_grid(axes, axis="x")


def _colours_of(names: Sequence[str]) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(len(names))]


def lesion_picture(
    lesions: Sequence[Mapping[str, float]], shade: Sequence[str], names: Mapping[str, str]
) -> Picture:
    """Return where lesions lie, and their size against their shape, coloured by scan's group."""
    volume = np.array([row["volume_ml"] for row in lesions])
    colour = [shade[int(row["scan"])] for row in lesions]
    size = np.clip(14 * volume ** (2 / 3), 3, 160)
    with house_style():
        figure = Figure(figsize=(9.2, 3.3), layout="constrained", dpi=120)
        panels = figure.subplots(1, 3, width_ratios=[1, 1, 1.25])
        for axes, (x, y), words in zip(
            panels, (("x_mm", "y_mm"), ("y_mm", "z_mm")), ("from above", "from the right"),
            strict=False,
        ):  # fmt: skip
            across = np.array([row[x] for row in lesions])
            up = np.array([row[y] for row in lesions])
            axes.scatter(across, up, s=size, c=colour, alpha=0.65, linewidths=0)
            axes.set_title(words)
            axes.set_aspect("equal")
            axes.axhline(0, color=FAINT, zorder=0)
            axes.axvline(0, color=FAINT, zorder=0)
            axes.set_xlabel({"x_mm": "left – right (mm)", "y_mm": "back – front (mm)"}[x])
            axes.set_ylabel({"y_mm": "back – front (mm)", "z_mm": "down – up (mm)"}[y])
        shape = np.array([row["sphericity"] for row in lesions])
        panels[2].scatter(volume, np.clip(shape, 0, 1.2), s=9, c=colour, alpha=0.7, linewidths=0)
        panels[2].set_xscale("log")
        panels[2].set_xlabel("lesion volume (ml)")
        panels[2].set_ylabel("sphericity")
        panels[2].set_title("size and shape")
        quiet_grid(panels[2], axis="both")
        svg = adaptive(figure, alt=f"{len(lesions)} lesions by place, size and shape.")
    shades = "; ".join(f"{name}" for name in names)
    caption = (
        f"{len(lesions)} lesions, centroids relative to the brain's; area grows with volume"
        f"{f' ; colours: {shades}' if shades else ''}. Sphericity of a lesion of a few voxels is "
        "rough, and can exceed 1."
    ).replace(" ;", ";")
    return Picture(svg, caption, wide_px=760)


def dimension_picture(dimensions: Mapping[str, Dimension]) -> Picture:
    """Return the estimate over the number of items that it was made of."""
    with house_style():
        figure = Figure(figsize=(7.6, 2.9), layout="constrained")
        axes = figure.subplots()
        for (name, found), colour in zip(dimensions.items(), 3 * PALETTE, strict=False):
            counts = sorted(found.by_items)
            axes.plot(counts, [found.by_items[c] for c in counts], "o-", color=colour,
                      label=safe_text(name))  # fmt: skip
            axes.errorbar(
                [found.n], [found.two_nn],
                yerr=[[max(found.two_nn - found.low, 0)], [max(found.high - found.two_nn, 0)]],
                color=colour, capsize=3, linewidth=1.2,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("items looked at (fewer: coarser scale)")
        axes.set_ylabel("dimension (TwoNN)")
        axes.set_ylim(bottom=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        quiet_grid(axes, axis="y")
        svg = adaptive(figure, alt="Intrinsic dimension over the number of items.")
    caption = (
        "TwoNN over the number of items (mean over disjoint parts; bar: bootstrap 95 % interval). "
        "Noise fills every direction at the finest scale only: a curve that rises with the items "
        "sees noise, a plateau is the dimension."
    )
    return Picture(svg, caption, wide_px=560)
