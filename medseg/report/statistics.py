"""The few numbers a report computes itself, from the scores, when no table holds them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg.report.arms import NO_TARGET, Arm, arm_order
from medseg.report.run_folder import Difference, Run, Score, Summary, as_number
from medseg.seeding import numpy_generator

RESAMPLES = 2000


@dataclass(frozen=True)
class Coverage:
    """How often the 5-95 % volume interval of an arm holds the reference volume."""

    arm: Arm
    n: int
    region: str
    inside: int
    total: int
    n_cases: int
    width_ml: float
    error_ml: float


@dataclass(frozen=True)
class Calibration:
    """Reliability of one arm on one region: one point per bin of confidence."""

    arm: Arm
    region: str
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: sum of count x |confidence - accuracy| over sum of count."""
        total = self.count.sum()
        gaps = np.abs(self.confidence - self.accuracy)
        return float((self.count * gaps).sum() / total) if total > 0 else math.nan


def mean_finite(values: Iterable[float]) -> float:
    """Return the mean of the finite values, NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def case_means(scores: Sequence[Score], key: str = "dsc") -> dict[str, float]:
    """Return the mean of ``key`` over cells, per case; cases without a number are left out."""
    found: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        found[score.case].append(score.values.get(key, math.nan))
    means = {case: mean_finite(values) for case, values in found.items()}
    return {case: value for case, value in means.items() if math.isfinite(value)}


def bootstrap_interval(values: Sequence[float], *, name: str) -> tuple[float, float]:
    """Return the 2.5 and 97.5 % quantiles of the resampled mean of ``values``."""
    if len(values) < 2:
        return math.nan, math.nan
    generator = numpy_generator(0, "report", name)
    draws = generator.integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.asarray(values)[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def scores_of(run: Run, arm: Arm, *, n: int, region: str) -> list[Score]:
    """Return the scores of one arm at one training size on one region."""
    return [s for s in run.scores if s.arm == arm and s.n == n and s.region == region]


def summaries(run: Run) -> list[Summary]:
    """Return the run's own summary, or one computed from the scores where it has none."""
    found = list(run.summary) or _computed_summaries(run)
    return sorted(found, key=lambda row: (row.n, arm_order(row.arm), row.region))


def _computed_summaries(run: Run) -> list[Summary]:
    groups: dict[tuple[Arm, int, str], list[Score]] = defaultdict(list)
    for score in run.scores:
        groups[score.arm, score.n, score.region].append(score)
    return [_summary_of(arm, n, region, rows) for (arm, n, region), rows in groups.items()]


def _summary_of(arm: Arm, n: int, region: str, rows: Sequence[Score]) -> Summary:
    per_case = case_means(rows)
    low, high = bootstrap_interval(list(per_case.values()), name="summary")
    keys = dict.fromkeys(key for row in rows for key in row.values)
    others = {key: mean_finite(row.values.get(key, math.nan) for row in rows) for key in keys}
    cells = {(row.subset, row.seed) for row in rows}
    mean = mean_finite(per_case.values())
    return Summary(arm, n, region, len(per_case), len(cells), mean, low, high, others)


def largest_n(rows: Sequence[Summary]) -> int:
    """Return the largest number of target training subjects."""
    return max((row.n for row in rows), default=0)


def contenders(rows: Sequence[Summary], *, n: int, region: str) -> list[Summary]:
    """Return the rows to compare at ``n``: those trained on n target subjects, and on none."""
    return [row for row in rows if row.region == region and (row.n == n or _no_target(row))]


def _no_target(row: Summary) -> bool:
    return row.n == 0 and row.arm.method in NO_TARGET


def difference_of(run: Run, first: Summary, second: Summary) -> Difference:
    """Return the paired difference in DSC of two rows.

    Notes
    -----
    From paired.tsv where it holds the pair; else each case's mean over cells, paired by case, with
    a bootstrap over cases.
    """
    n = max(first.n, second.n)
    for row in run.paired:
        same = (row.arm, row.n, row.region) == (first.arm, n, first.region)
        if same and is_against(row, second.arm):
            return row
    one = case_means(scores_of(run, first.arm, n=first.n, region=first.region))
    two = case_means(scores_of(run, second.arm, n=second.n, region=second.region))
    gaps = [one[case] - two[case] for case in sorted(one.keys() & two.keys())]
    low, high = bootstrap_interval(gaps, name="difference")
    mean = mean_finite(gaps)
    against = second.arm.method
    return Difference(
        first.arm, first.n, first.region, against, mean, low, high, math.nan, len(gaps)
    )


def is_against(row: Difference, rival: Arm) -> bool:
    """Return whether a difference is one from ``rival``."""
    # A table may leave the source out where only one can be meant.
    sources = (row.against_source,) if row.against_source else ("none", row.arm.source)
    return row.against == rival.method and rival.source in sources


def coverages(run: Run) -> list[Coverage]:
    """Return the coverage of the volume interval per arm, n and region that has intervals.

    One sample a case gives none.
    """
    groups: dict[tuple[Arm, int, str], list[Score]] = defaultdict(list)
    for score in run.scores:
        keys = ("volume_low_ml", "volume_high_ml", "reference_volume_ml")
        if all(math.isfinite(score.values.get(key, math.nan)) for key in keys):
            groups[score.arm, score.n, score.region].append(score)
    found = [
        _coverage(arm, n, region, rows)
        for (arm, n, region), rows in groups.items()
        if any(row.values["volume_low_ml"] < row.values["volume_high_ml"] for row in rows)
    ]
    return sorted(found, key=lambda row: (row.n, arm_order(row.arm), row.region))


def holds(values: Mapping[str, float]) -> bool:
    """Return whether the volume interval of one score holds its reference volume."""
    return values["volume_low_ml"] <= values["reference_volume_ml"] <= values["volume_high_ml"]


def _coverage(arm: Arm, n: int, region: str, rows: Sequence[Score]) -> Coverage:
    widths = [row.values["volume_high_ml"] - row.values["volume_low_ml"] for row in rows]
    errors = [abs(row.values.get("volume_error_ml", math.nan)) for row in rows]
    finite = [error for error in errors if math.isfinite(error)]
    return Coverage(
        arm,
        n,
        region,
        inside=sum(holds(row.values) for row in rows),
        total=len(rows),
        n_cases=len({row.case for row in rows}),
        width_ml=float(np.median(widths)),
        error_ml=float(np.median(finite)) if finite else math.nan,
    )


def calibrations(run: Run) -> list[Calibration]:
    """Return one reliability curve per arm and region of reliability.tsv, at the largest n.

    Errors of opposite sign at different n would cancel if they were pooled.
    """
    top = max((int(row.get("n", 0)) for row in run.reliability), default=0)
    groups: dict[tuple[Arm, str], list[tuple[float, float, float]]] = defaultdict(list)
    for row in run.reliability:
        point = tuple(as_number(row.get(key)) for key in ("confidence", "accuracy", "count"))
        is_of_top = int(row.get("n", 0)) in (0, top)
        if is_of_top and all(math.isfinite(value) for value in point) and point[2] > 0:
            arm = Arm(row.get("method", "n/a"), row.get("source", "none"))
            groups[arm, row.get("region", "")].append((point[0], point[1], point[2]))
    found = [
        Calibration(arm, region, *np.array(sorted(points)).T)
        for (arm, region), points in groups.items()
    ]
    return sorted(found, key=lambda row: (row.region, arm_order(row.arm)))
