"""The answer in plain words, written from the numbers and no further than they go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medseg.report.arms import NO_LEARNING, NO_TARGET, Arm, arm_phrase, look_of
from medseg.report.columns import number
from medseg.report.run_folder import Difference, Run, Summary
from medseg.report.statistics import contenders, difference_of, largest_n, summaries

RIVALS = ("ri", "pr", "threshold")
CLEAR, UNCLEAR, UNKNOWN = "clear", "unclear", "unknown"


@dataclass(frozen=True)
class Comparison:
    """The best arm of a region against one baseline."""

    rival: str
    difference: Difference
    verdict: str

    @property
    def text(self) -> str:
        """Difference and interval as a reader sees them."""
        gap = self.difference
        low, high = number(gap.low, 3, signed=True), number(gap.high, 3, signed=True)
        return f"{number(gap.mean, 3, signed=True)} [{low}, {high}]"


@dataclass(frozen=True)
class RegionAnswer:
    """Which arm is best on one region at the largest n, and by how much."""

    region: str
    n: int
    best: Summary
    n_arms: int
    comparisons: Sequence[Comparison]
    sentences: Sequence[str]

    @property
    def name(self) -> str:
        """Name of the best arm."""
        return arm_phrase(self.best.arm)


def includes_zero(difference: Difference) -> bool:
    """Return whether the interval leaves open which of the two is better.

    Examples
    --------
    >>> from medseg.report.arms import Arm
    >>> includes_zero(Difference(Arm("dwp", "ms"), 3, "core", "ri", .1, -.02, .2, .3, 4))
    True
    """
    return difference.low <= 0 <= difference.high


def _verdict(difference: Difference) -> str:
    if not (math.isfinite(difference.low) and math.isfinite(difference.high)):
        return UNKNOWN
    return UNCLEAR if includes_zero(difference) else CLEAR


def _rival(rows: Sequence[Summary], method: str, best: Summary) -> Summary | None:
    """Return the row of ``method`` to hold ``best`` against: same source first, else its best."""
    found = [row for row in rows if row.arm.method == method and math.isfinite(row.mean)]
    same = [row for row in found if row.arm.source == best.arm.source]
    return max(same or found, key=lambda row: row.mean, default=None)


def _comparisons(run: Run, rows: Sequence[Summary], best: Summary) -> list[Comparison]:
    found = []
    for method in RIVALS:
        rival = _rival(rows, method, best)
        if rival is None or rival.arm == best.arm:
            continue
        difference = difference_of(run, best, rival)
        found.append(Comparison(arm_phrase(rival.arm), difference, _verdict(difference)))
    return found


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _lead_sentence(best: Summary, n: int) -> str:
    interval = f"[{number(best.low, 3)}, {number(best.high, 3)}]"
    counts = f"{_plural(best.n_cases, 'case')}, {_plural(best.n_cells, 'training run')}"
    if best.arm.method in NO_TARGET:
        lead = f"On {best.region}, no network trained on {n} target subjects does better than"
        return (
            f"{lead} {arm_phrase(best.arm)}: mean DSC {number(best.mean, 3)} {interval} ({counts})."
        )
    lead = f"On {best.region}, with {_plural(n, 'target training subject')}, {arm_phrase(best.arm)}"
    return f"{lead} has the highest mean DSC: {number(best.mean, 3)} {interval} ({counts})."


def _comparison_sentences(comparisons: Sequence[Comparison]) -> list[str]:
    sentences = []
    for verdict, words in (
        (CLEAR, "The interval of its difference excludes zero against"),
        (UNCLEAR, "The interval includes zero, so these data do not show a difference, against"),
        (UNKNOWN, "There are too few shared cases for an interval against"),
    ):
        some = [c for c in comparisons if c.verdict == verdict]
        if some:
            sentences.append(f"{words} {_listed([f'{c.rival} ({c.text})' for c in some])}.")
    return sentences


def _listed(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _shared_means(run: Run, rows: Sequence[Summary], *, n: int, region: str) -> dict[Arm, float]:
    """Return mean DSC over what all arms were scored on; empty where no trained arm lacks a run.

    A run that failed, perhaps on a hard subset, must not make an arm the best.
    """
    runs = {row.n_cells for row in rows if row.arm.method not in (NO_LEARNING, *NO_TARGET)}
    found = {r.arm: r.mean_dsc for r in run.ranks if (r.n, r.region) == (n, region)}
    return found if len(runs) > 1 and all(row.arm in found for row in rows) else {}


def answer_for(run: Run, region: str) -> RegionAnswer | None:
    """Return the answer on ``region``, or None where no arm has a mean."""
    rows = summaries(run)
    n = largest_n(rows)
    rivals = [row for row in contenders(rows, n=n, region=region) if math.isfinite(row.mean)]
    if not rivals:
        return None
    shared = _shared_means(run, rivals, n=n, region=region)
    best = max(rivals, key=lambda row: shared.get(row.arm, row.mean))
    comparisons = _comparisons(run, rivals, best)
    sentences = [_lead_sentence(best, n), *_comparison_sentences(comparisons)]
    if shared:
        sentences.append(
            "Some arms lack training runs (see failures.tsv): the best one is that with the "
            "highest mean over the runs that all arms have."
        )
    return RegionAnswer(region, n, best, len(rivals), comparisons, sentences)


def caution(answers: Sequence[RegionAnswer]) -> str:
    """Return the sentence on what the comparison cannot say, from its size."""
    n_cases = min(answer.best.n_cases for answer in answers)
    n_arms = max(answer.n_arms for answer in answers)
    parts = []
    if n_arms > 2:
        parts.append(
            f"The best of {n_arms} arms was picked on the very cases it is scored on, which "
            "flatters it; the intervals are not corrected for that."
        )
    if n_cases < 20:
        parts.append(
            f"With {_plural(n_cases, 'test case')}, read signs and sizes, not third decimals."
        )
    return " ".join(parts)


def baseline_words(method: str) -> str:
    """Return the mark of a baseline for tables, "" for other methods."""
    if method == NO_LEARNING:
        return "no learning"
    return "baseline" if look_of(method).baseline else ""
