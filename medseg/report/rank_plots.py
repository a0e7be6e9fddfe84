"""Figures of ranks: critical differences at one n, and mean ranks over n."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medseg.report.arms import arm_name, arm_order, look_of
from medseg.report.columns import number
from medseg.report.figure import INK, SOFT, Picture, house_style, quiet_grid, safe_text, to_svg
from medseg.report.run_folder import Rank

_LINE, _BAR = 0.24, 0.13


def critical_difference_diagram(ranks: Sequence[Rank], *, region: str, n: int) -> Picture | None:
    """Return the arms on a line of mean ranks; a bar joins those that cannot be told apart."""
    arms = sorted((r for r in ranks if (r.region, r.n) == (region, n)), key=lambda r: r.mean_rank)
    if len(arms) < 2 or not math.isfinite(arms[0].critical_difference):
        return None
    cd, groups = arms[0].critical_difference, alike(arms)
    half = math.ceil(len(arms) / 2)
    floor = 0.35 + _BAR * len(groups)
    height = 0.75 + floor + _LINE * half
    with house_style():
        figure = Figure(figsize=(9.0, height), layout="constrained")
        axes = figure.subplots()
        _axis(axes, len(arms), cd)
        for place, (first, last) in enumerate(groups):
            y = -0.2 - _BAR * place
            ends = [arms[first].mean_rank - 0.05, arms[last].mean_rank + 0.05]
            axes.plot(ends, [y, y], color=INK, linewidth=2.6, solid_capstyle="round")
        for place, arm in enumerate(arms):
            is_left = place < half
            row = place if is_left else len(arms) - 1 - place
            _label(axes, arm, len(arms), y=-floor - _LINE * row, is_left=is_left)
        axes.set_ylim(-floor - _LINE * half, 0.75)
        alt = f"Critical-difference diagram of {len(arms)} arms on {region}, n = {n}."
        svg = to_svg(figure, alt=alt)
    p = arms[0].p_friedman
    friedman = "" if math.isnan(p) else f" Friedman test that all rank alike: p = {p:.2g}."
    caption = (
        f"Mean rank of DSC over {arms[0].n_subjects} subjects on {region} at n = {n}, 1 is best. "
        f"Arms under one bar are less than the critical difference of {number(cd, 2)} apart "
        f"(Nemenyi, 5 %), so these subjects do not tell them apart.{friedman}"
    )
    return Picture(svg, caption)


def alike(arms: Sequence[Rank]) -> list[tuple[int, int]]:
    """Return the longest runs of sorted arms whose mean ranks lie within the critical difference.

    Returns
    -------
    list of (first, last)
        Of two arms at least; none lies within another.
    """
    found: list[tuple[int, int]] = []
    for first, arm in enumerate(arms):
        reach = arm.mean_rank + arm.critical_difference
        last = max(place for place, other in enumerate(arms) if other.mean_rank <= reach)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def _axis(axes: Axes, count: int, cd: float) -> None:
    axes.set_xlim(1 - 0.5 * count, count + 0.5 * count)
    axes.axis("off")
    axes.plot([1, count], [0, 0], color=INK, linewidth=1.0)
    step = max(1, count // 12)
    for tick in range(1, count + 1, step):
        axes.plot([tick, tick], [0, 0.07], color=INK, linewidth=0.8)
        axes.text(tick, 0.1, str(tick), ha="center", va="bottom", fontsize=8, color=SOFT)
    axes.plot([1, 1 + cd], [0.45, 0.45], color=SOFT, linewidth=1.4, marker="|", markersize=7)
    words = f"critical difference {number(cd, 2)}"
    axes.text(1 + cd / 2, 0.52, words, ha="center", va="bottom", fontsize=8, color=SOFT)


def _label(axes: Axes, arm: Rank, count: int, *, y: float, is_left: bool) -> None:
    look, side = look_of(arm.arm.method), 1 - 0.06 * count if is_left else count + 0.06 * count
    axes.plot(
        [arm.mean_rank, arm.mean_rank, side], [0, y, y], color=look.colour, linewidth=1.0, zorder=1
    )
    axes.plot(
        [arm.mean_rank], [0], look.marker, color=look.colour, markersize=5.5, zorder=3,
        markeredgecolor="white", markeredgewidth=0.5,
    )  # fmt: skip
    name = safe_text(arm_name(arm.arm))
    words = f"{name}  {arm.mean_rank:.1f}" if is_left else f"{arm.mean_rank:.1f}  {name}"
    gap = -0.01 * count if is_left else 0.01 * count
    axes.text(side + gap, y, words, ha="right" if is_left else "left", va="center", fontsize=8)


def rank_plot(ranks: Sequence[Rank], regions: Sequence[str]) -> Picture | None:
    """Return mean ranks over n, a panel per region; None with fewer than two n."""
    sizes = sorted({rank.n for rank in ranks})
    shown = [region for region in regions if any(rank.region == region for rank in ranks)]
    if len(sizes) < 2 or not shown:
        return None
    arms = sorted({rank.arm for rank in ranks}, key=arm_order)
    with house_style():
        # Names stand beside their lines and may be long: one panel above the other.
        height = len(shown) * (0.7 + 0.2 * len(arms)) + 0.3
        figure = Figure(figsize=(9.0, height), layout="constrained")
        panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, region in zip(panels, shown, strict=True):
            _rank_lines(axes, [r for r in ranks if r.region == region], sizes)
            axes.set_title(safe_text(region))
            axes.set_ylabel("mean rank (1 is best)")
        panels[-1].set_xlabel("n, target training subjects")
        svg = to_svg(figure, alt=f"Mean ranks of {len(arms)} arms over n on {', '.join(shown)}.")
    counts = sorted({rank.n_subjects for rank in ranks})
    caption = (
        f"Mean rank of DSC over {' to '.join(map(str, dict.fromkeys([counts[0], counts[-1]])))} "
        f"subjects at each n, among {len(arms)} arms, named at the largest n they were run at."
    )
    return Picture(svg, caption)


def _rank_lines(axes: Axes, ranks: Sequence[Rank], sizes: Sequence[int]) -> None:
    ends = []
    for arm in sorted({rank.arm for rank in ranks}, key=arm_order):
        look = look_of(arm.method)
        some = sorted((rank for rank in ranks if rank.arm == arm), key=lambda rank: rank.n)
        x = [sizes.index(rank.n) for rank in some]
        axes.plot(
            x, [rank.mean_rank for rank in some], color=look.colour, marker=look.marker,
            linestyle=(0, look.dashes) if look.dashes else "-", markersize=5.5,
            markeredgecolor="white", markeredgewidth=0.6,
        )  # fmt: skip
        ends.append((some[-1].mean_rank, arm_name(arm)))
    # Names keep their distance from each other; the order says which line each belongs to.
    count, y = len(ends), -math.inf
    for rank, name in sorted(ends):
        y = max(y + 0.85, rank)
        axes.text(len(sizes) - 0.93, y, safe_text(name), va="center", fontsize=7.5)
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    # In characters, of which about 150 stand side by side.
    room = min(0.6, (4 + max(len(name) for _, name in ends)) / 150)
    axes.set_xlim(-0.2, -0.2 + (len(sizes) - 0.7) / (1 - room))
    axes.set_ylim(max(count + 0.6, y + 0.6), 0.4)
    quiet_grid(axes, axis="y")
