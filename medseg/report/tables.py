"""Tables as plain records: what the template prints, and nothing it has to decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from medseg.metrics.evaluate import METRICS
from medseg.metrics.metric import Metric
from medseg.report.answer import baseline_words, includes_zero
from medseg.report.arms import Arm, arm_name, arm_order, look_of, source_name
from medseg.report.columns import best_of, decimals_of, good_when, number, unit_of
from medseg.report.figure import interval_mark
from medseg.report.run_folder import Difference, Priors, Summary, as_number
from medseg.report.statistics import Calibration, Coverage, contenders, largest_n

#: What the sampled interval can hold: the percentiles of K samples are interpolated between them.
FEW_SAMPLES = (
    "Where the truth is like one more of K samples or networks, 0.90 (K - 1) / (K + 1) of the "
    "sampled intervals hold it: 0.45 of three, 0.79 of fifteen."
)
OTHER_METRICS: tuple[Metric, ...] = tuple(metric for metric in METRICS if metric.name != "dsc")


@dataclass(frozen=True)
class Cell:
    """One cell: what is read, the number behind it, and whether it is the best of its column."""

    text: str
    value: float | None = None
    best: bool = False
    small: str = ""
    mark: Markup = field(default_factory=Markup)


@dataclass(frozen=True)
class Row:
    """One row; ``colour`` and ``badge`` belong to the arm in its first cell."""

    head: str
    cells: Sequence[Cell]
    colour: str = ""
    badge: str = ""
    title: str = ""


@dataclass(frozen=True)
class Table:
    """One table: caption, headings (text, explanation), bodies of rows, each with its own title."""

    caption: str
    columns: Sequence[tuple[str, str]]
    bodies: Sequence[tuple[str, Sequence[Row]]]
    groups: Sequence[tuple[str, int]] = field(default_factory=tuple)

    def numeric(self, place: int) -> bool:
        """Return whether column ``place`` holds numbers, so that its heading goes to the right."""
        rows = [row for _, body in self.bodies for row in body]
        return place > 0 and any(row.cells[place - 1].value is not None for row in rows)


def _arm_row(arm: Arm, cells: Sequence[Cell], *, with_source: bool = False) -> Row:
    look = look_of(arm.method)
    head = arm_name(arm) if with_source else look.short
    return Row(head, cells, look.colour, baseline_words(arm.method), look.words)


def _column(values: Sequence[float], metric: Metric) -> list[Cell]:
    best = best_of(values, metric.direction)
    signed = metric.direction == "zero"
    return [
        Cell(number(value, decimals_of(metric), signed=signed), value, place in best)
        for place, value in enumerate(values)
    ]


def main_table(rows: Sequence[Summary], regions: Sequence[str]) -> Table:
    """Return mean DSC with interval per region at the largest n, n = 0 included."""
    n = largest_n(rows)
    per_region = {
        region: {row.arm: row for row in contenders(rows, n=n, region=region)} for region in regions
    }
    arms = sorted({arm for found in per_region.values() for arm in found}, key=arm_order)
    best = {
        region: best_of([found[a].mean if a in found else math.nan for a in arms], "higher")
        for region, found in per_region.items()
    }
    lines = []
    for place, arm in enumerate(arms):
        present = [found[arm] for found in per_region.values() if arm in found]
        cells = [
            Cell(source_name(arm.source)),
            *_counts(present),
        ]
        for region, found in per_region.items():
            cells += _dsc_cells(found.get(arm), best=place in best[region])
        lines.append(_arm_row(arm, cells))
    columns = [
        ("Method", ""),
        ("Source", "what the network was trained on before"),
        ("n", "target training subjects"),
        ("Cases", "test cases"),
        ("Runs", "cells: training subsets times seeds"),
    ]
    for _ in regions:
        columns += [("DSC ↑", "mean Dice overlap with its 95 % interval"), ("0 to 1", "")]
    caption = (
        f"Mean DSC with bootstrap 95 % interval at n = {n} target training subjects, beside the "
        "arms that see no target case (n = 0). Bold: best of the column."
    )
    groups = [("", 5), *[(region, 2) for region in regions]]
    return Table(caption, columns, [("", lines)], groups)


def _counts(rows: Sequence[Summary]) -> list[Cell]:
    """Cells of n, cases and runs; regions may differ in cases, then the range is shown."""
    cells = []
    for values in ([r.n for r in rows], [r.n_cases for r in rows], [r.n_cells for r in rows]):
        low, high = min(values), max(values)
        cells.append(Cell(str(low) if low == high else f"{low}-{high}", float(high)))
    return cells


def _dsc_cells(row: Summary | None, *, best: bool) -> list[Cell]:
    if row is None:
        return [Cell("n/a"), Cell("")]
    interval = f"[{number(row.low, 3)}, {number(row.high, 3)}]"
    mark = Markup("")
    if all(math.isfinite(value) for value in (row.low, row.mean, row.high)):
        colour = look_of(row.arm.method).colour
        mark = interval_mark(row.low, row.mean, row.high, colour=colour, limits=(0.0, 1.0))
    return [Cell(number(row.mean, 3), row.mean, best, interval), Cell("", mark=mark)]


def full_table(rows: Sequence[Summary], region: str) -> Table:
    """Return every metric of one region, a body for each n; best of each column within its body."""
    some = [row for row in rows if row.region == region]
    known = [m for m in OTHER_METRICS if any(math.isfinite(_other(r, m.name)) for r in some)]
    bodies = []
    for n in sorted({row.n for row in some}):
        body = sorted((row for row in some if row.n == n), key=lambda row: arm_order(row.arm))
        best = best_of([row.mean for row in body], "higher")
        columns = [_column([_other(row, m.name) for row in body], m) for m in known]
        lines = [
            _arm_row(
                row.arm,
                [
                    Cell(source_name(row.arm.source)),
                    Cell(str(row.n_cases), float(row.n_cases)),
                    Cell(str(row.n_cells), float(row.n_cells)),
                    _dsc_cells(row, best=place in best)[0],
                    *[column[place] for column in columns],
                ],
            )
            for place, row in enumerate(body)
        ]
        bodies.append((f"n = {n} target training subject{'' if n == 1 else 's'}", lines))
    headings = [("Method", ""), ("Source", ""), ("Cases", ""), ("Runs", "")]
    headings += [("DSC ↑", "with 95 % interval")]
    headings += [(_heading(metric), metric.empty) for metric in known]
    caption = f"All metrics on {region}: means over test cases. Bold: best of its column at that n."
    return Table(caption, headings, bodies)


def _heading(metric: Metric) -> str:
    return " ".join(filter(None, [metric.title, unit_of(metric), good_when(metric)]))


def _other(row: Summary, name: str) -> float:
    return row.others.get(name, math.nan)


def paired_matrix(differences: Sequence[Difference], *, region: str) -> Table:
    """Return the differences of one region and n: a row per arm, a column per baseline."""
    found = {(d.arm, d.against): d for d in differences if d.region == region}
    arms = sorted({arm for arm, _ in found}, key=arm_order)
    rivals = sorted({against for _, against in found}, key=lambda name: look_of(name).rank)
    rows = []
    for arm in arms:
        known = [found[arm, rival] for rival in rivals if (arm, rival) in found]
        counts = sorted({d.n_cases for d in known})
        cells = [difference_cell(found.get((arm, rival))) for rival in rivals]
        words = "-".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))
        rows.append(_arm_row(arm, [*cells, Cell(words, float(counts[-1]))], with_source=True))
    headings = [("Method", ""), *[(f"− {look_of(r).short}", look_of(r).words) for r in rivals]]
    n = max((d.n for d in found.values()), default=0)
    caption = (
        f"Paired differences in DSC on {region} at n = {n}: row minus column on the same cases, "
        "with 95 % interval. Bold: the interval excludes zero. Not corrected for their number."
    )
    return Table(caption, [*headings, ("Cases", "test cases in the pairs")], [("", rows)])


def difference_cell(d: Difference | None) -> Cell:
    """Return a difference with its interval, bold where the interval excludes zero."""
    if d is None:
        return Cell("")
    low, high = number(d.low, 3, signed=True), number(d.high, 3, signed=True)
    clear = all(math.isfinite(v) for v in (d.mean, d.low, d.high)) and not includes_zero(d)
    return Cell(number(d.mean, 3, signed=True), d.mean, clear, f"[{low}, {high}]")


def paired_table(differences: Sequence[Difference], *, region: str) -> Table:
    """Return the paired differences of one region, with the interval drawn about zero."""
    rows = sorted(
        (d for d in differences if d.region == region),
        key=lambda d: (-d.n, arm_order(d.arm), look_of(d.against).rank),
    )
    ends = [abs(v) for d in rows for v in (d.low, d.high) if math.isfinite(v)]
    reach = max([*ends, 0.05])
    bodies = [
        (
            f"n = {n} target training subject{'' if n == 1 else 's'}",
            [_difference_row(d, reach) for d in rows if d.n == n],
        )
        for n in dict.fromkeys(d.n for d in rows)
    ]
    headings = [
        ("Method", ""),
        ("minus", "the arm it is held against"),
        ("Difference in DSC", "mean of the paired differences, with 95 % interval"),
        (f"−{reach:.2f} to +{reach:.2f}", ""),
        ("p", "Wilcoxon signed-rank test, two-sided, not corrected for their number"),
        (
            "p (Holm)",
            "the same, corrected by Holm's rule for all pairs of arms of that region and n",
        ),
        ("Cases", "pairs"),
    ]
    caption = (
        f"Paired differences in DSC on {region}: the same cases under both arms, with 95 % "
        "interval. Bold: the interval excludes zero."
    )
    return Table(caption, headings, bodies)


def _difference_row(d: Difference, reach: float) -> Row:
    mark = Markup()
    if all(math.isfinite(v) for v in (d.mean, d.low, d.high)):
        colour = look_of(d.arm.method).colour
        mark = interval_mark(d.low, d.mean, d.high, colour=colour, limits=(-reach, reach))
    cells = [
        Cell(look_of(d.against).short),
        difference_cell(d),
        Cell("", mark=mark),
        p_cell(d.p),
        p_cell(d.p_holm),
        Cell(str(d.n_cases), float(d.n_cases)),
    ]
    return _arm_row(d.arm, cells, with_source=True)


def p_cell(p: float) -> Cell:
    """Return a p value; below 0.001 it is not told how far."""
    return Cell("< 0.001" if p < 0.001 else number(p, 3), p)


def coverage_table(found: Sequence[Coverage]) -> Table:
    """Return how often the volume interval holds the reference, per arm and region."""
    top = max((row.n for row in found), default=0)
    some = [row for row in found if row.n == top or row.n == 0]
    bodies = []
    for region in dict.fromkeys(row.region for row in found):
        lines = [
            _arm_row(
                row.arm,
                [
                    Cell(f"{row.inside} of {row.total}", float(row.inside)),
                    Cell(f"{100 * row.inside / row.total:.0f} %", row.inside / row.total),
                    Cell(number(row.width_ml, 1), row.width_ml),
                    Cell(number(row.error_ml, 1), row.error_ml),
                    Cell(str(row.n_cases), float(row.n_cases)),
                ],
                with_source=True,
            )
            for row in some
            if row.region == region
        ]
        bodies.append((region, lines))
    headings = [
        ("Method", ""), ("Inside", "predictions whose interval holds the reference volume"),
        ("Coverage", "nominally 90 %"), ("Width ml", "median width of the interval"),
        ("Error ml", "median absolute volume error"), ("Cases", ""),
    ]  # fmt: skip
    caption = (
        f"Coverage of the 5-95 % volume interval at n = {top} (nominal 90 %). {FEW_SAMPLES} "
        "Predictions are cases times runs; those of one case are not independent."
    )
    return Table(caption, headings, bodies)


def ece_table(found: Sequence[Calibration]) -> Table:
    """Return the expected calibration error per arm and region, best per region bold.

    The curves are all of one n, or of arms that see no target case.
    """
    regions = list(dict.fromkeys(curve.region for curve in found))
    arms = sorted({curve.arm for curve in found}, key=arm_order)
    by_key = {(curve.arm, curve.region): curve for curve in found}
    values = {
        r: [by_key[a, r].ece if (a, r) in by_key else math.nan for a in arms] for r in regions
    }
    best = {region: best_of(values[region], "lower") for region in regions}
    rows = []
    for place, arm in enumerate(arms):
        cells = [
            Cell(number(values[r][place], 4), values[r][place], place in best[r]) for r in regions
        ]
        voxels = max(by_key[arm, r].count.sum() for r in regions if (arm, r) in by_key)
        rows.append(
            _arm_row(arm, [*cells, Cell(f"{voxels:,.0f}", float(voxels))], with_source=True)
        )
    headings = [("Method", ""), *[(f"ECE {r} ↓", "") for r in regions], ("Voxels", "n")]
    caption = "Expected calibration error over pooled voxels. Bold: best of the column."
    return Table(caption, headings, [("", rows)])


def held_out_table(priors: Sequence[Priors]) -> Table:
    """Return held-out nats per kernel of each prior, a column for each source, highest bold."""
    found = [
        {
            (row.get("prior", row.get("kind", "n/a")), row.get("grouping", "n/a")): row
            for row in _whole(prior)
        }
        for prior in priors
    ]
    keys = list(dict.fromkeys(key for rows in found for key in rows))
    values = [
        [as_number(rows.get(key, {}).get("nats_per_kernel")) for key in keys] for rows in found
    ]
    best = [best_of(column, "higher") for column in values]
    lines = []
    for place, (name, grouping) in enumerate(keys):
        cells = [Cell(grouping)]
        for rows, column, top in zip(found, values, best, strict=True):
            row = rows.get((name, grouping), {})
            error = as_number(row.get("sd_nats")) / max(as_number(row.get("n_kernels")), 1) ** 0.5
            small = f"± {number(error, 2)}" if math.isfinite(error) else ""
            text = "unnormalised" if row.get("bound") == "unnormalised" else None
            cells.append(Cell(text or number(column[place], 2), column[place], place in top, small))
        lines.append(Row(name, cells))
    headings = [("Prior", ""), ("Grouping", "one prior for each")]
    headings += [(f"{source_name(prior.source)} ↑", "mean ± standard error") for prior in priors]
    caption = (
        "Held-out kernels: mean log density in nats per kernel, by source, ± standard error "
        f"({_kernel_counts(priors)}). A lower bound for a VAE, exact for the others, in the "
        "kernels' own units; the nats of an unnormalised prior lack its log Z and compare with "
        "none. Higher is better; bold: best of the column."
    )
    return Table(caption, headings, [("", lines)])


def _kernel_counts(priors: Sequence[Priors]) -> str:
    counts = {
        source_name(prior.source): sorted({row.get("n_kernels", "?") for row in _whole(prior)})
        for prior in priors
    }
    return "; ".join(f"{name}: n = {' or '.join(found)} kernels" for name, found in counts.items())


def _whole(prior: Priors) -> list[Mapping[str, str]]:
    """Return the rows over all layers of the priors that were fitted."""
    return [
        row
        for row in prior.held_out
        if row.get("layer", "all") == "all" and row.get("kind") != "real kernels"
    ]
