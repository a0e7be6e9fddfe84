"""The summary as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.report.arms import arm_order, look_of, source_name
from medseg.report.columns import best_of, number
from medseg.report.run_folder import Summary, read_run
from medseg.report.statistics import summaries


def summary_table(run_folder: Path) -> str:
    """Return mean DSC with its 95 % interval per method, source, n and region, as aligned text.

    A star marks the highest mean of a region at the largest n and among the arms that see no
    target case.

    Parameters
    ----------
    run_folder : Path
        What an experiment wrote.

    Raises
    ------
    DataError
        When the folder is not that of a run, or has no scores.
    """
    run = read_run(Path(run_folder))
    rows = summaries(run)
    starred = {id(row) for region in run.regions for row in _best(rows, region)}
    keys = sorted({(row.n, arm_order(row.arm), row.arm) for row in rows})
    lines = [
        ["method", "source", "n", "cases", "cells", *[f"{r}: DSC [95 %]" for r in run.regions]]
    ]
    for n, _, arm in keys:
        some = [row for row in rows if row.n == n and row.arm == arm]
        by_region = {row.region: row for row in some}
        lines.append(
            [
                look_of(arm.method).short,
                source_name(arm.source),
                str(n),
                str(max(row.n_cases for row in some)),
                str(max(row.n_cells for row in some)),
                *[_dsc(by_region.get(region), starred) for region in run.regions],
            ]
        )
    return "\n".join(_aligned(lines))


def _best(rows: Sequence[Summary], region: str) -> list[Summary]:
    n = max((row.n for row in rows), default=0)
    some = [row for row in rows if row.region == region and row.n in (0, n)]
    return [some[place] for place in best_of([row.mean for row in some], "higher")]


def _dsc(row: Summary | None, starred: set[int]) -> str:
    if row is None:
        return "n/a"
    star = " *" if id(row) in starred else ""
    return f"{number(row.mean, 3)} [{number(row.low, 3)}, {number(row.high, 3)}]{star}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines with columns padded: words to the left, counts to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = [
        "  ".join(
            cell.rjust(width) if 2 <= place <= 4 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [aligned[0], "-" * max(map(len, aligned)), *aligned[1:]]
