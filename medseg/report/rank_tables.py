"""Tables of what a comparison of all arms says, and of what it could have said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from medseg.report.arms import Arm, arm_name, arm_order, look_of
from medseg.report.columns import number
from medseg.report.run_folder import Difference, as_number
from medseg.report.tables import FEW_SAMPLES, Cell, Row, Table, difference_cell, p_cell


def rival_table(differences: Sequence[Difference], best: Arm, *, region: str, n: int) -> Table:
    """Return the best arm minus every other one, with the difference that could have been found."""
    found = [d for d in differences if (d.arm, d.region, d.n) == (best, region, n)]
    rivals = {Arm(d.against, d.against_source or d.arm.source): d for d in found}
    rows = []
    for arm in sorted(rivals, key=arm_order):
        d, look = rivals[arm], look_of(arm.method)
        cells = [
            difference_cell(d),
            p_cell(d.p),
            p_cell(d.p_holm),
            Cell(number(d.detectable, 3), d.detectable),
            Cell(str(d.n_cases), float(d.n_cases)),
        ]
        rows.append(Row(arm_name(arm), cells, look.colour, "", look.words))
    headings = [
        ("minus", "the arm it is held against"),
        ("Difference in DSC", "mean of the paired differences, with 95 % interval"),
        ("p", "Wilcoxon signed-rank test over subjects, two-sided"),
        ("p (Holm)", "corrected for all pairs of arms of this region and n"),
        ("Detectable", "true difference found with 80 % power at two-sided 5 %"),
        ("Cases", "test cases in the pairs"),
    ]
    caption = (
        f"{arm_name(best)}, the highest mean DSC on {region} at n = {n}, minus every other arm on "
        "the same cases. Bold: the interval excludes zero. The arm was picked on these cases."
    )
    return Table(caption, headings, [("", rows)])


def power_words(power: Sequence[Mapping[str, str]]) -> str:
    """Return how large a difference each comparison could have shown, "" where unknown."""
    parts = [
        f"{row.get('region')} at n = {row.get('n')}: {_three(row, 'median')} "
        f"(pairs from {_three(row, 'min')} to {_three(row, 'max')}; {row.get('n_subjects')} "
        "subjects)"
        for row in power
    ]
    return (
        "Power: the true difference in DSC that would be found with 80 % power at two-sided 5 %, "
        f"by the normal approximation and the spread seen, median over pairs of arms. "
        f"{'; '.join(parts)}."
        if parts
        else ""
    )


def _three(row: Mapping[str, str], which: str) -> str:
    return number(as_number(row.get(f"{which}_detectable_dsc")), 3)


def decision_table(decisions: Sequence[Mapping[str, str]], *, region: str) -> Table | None:
    """Return what the uncertainty of each arm is good for at the largest n, on one region."""
    top = max((int(row["n"]) for row in decisions), default=0)
    some = [row for row in decisions if row["region"] == region and int(row["n"]) in (0, top)]
    if not some:
        return None
    rows = []
    for row in sorted(some, key=lambda row: arm_order(Arm(row["method"], row["source"]))):
        arm = Arm(row["method"], row["source"])
        cells = [
            _with_interval(row, "coverage", 2),
            _with_interval(row, "conformal_coverage", 2),
            _plain(row, "conformal_mean_width_ml", 1),
            _with_interval(row, "gain_std", 3, signed=True),
            _with_interval(row, "gain_expected_dsc", 3, signed=True),
            _plain(row, "gain_most", 3),
            _plain(row, "n_predictions", 0),
            _plain(row, "n_subjects", 0),
        ]
        look = look_of(arm.method)
        rows.append(Row(arm_name(arm), cells, look.colour, "", look.words))
    headings = [
        ("Method", ""),
        ("Coverage", "of the sampled 90 % volume interval"),
        ("Calibrated", "coverage of the interval calibrated on the other test subjects"),
        ("Width ml", "mean width of the calibrated interval"),
        ("Gain, spread", "mean DSC without the 20 % of cases with the widest posterior"),
        ("Gain, expected", "the same, by the DSC that the probabilities promise"),
        ("At most", "the same without the cases that are truly the worst"),
        ("Predictions", "test cases times runs"),
        ("Subjects", ""),
    ]
    caption = (
        f"Decisions on {region} at n = {top}, with 95 % intervals over subjects: coverage of "
        "volume intervals (nominal 0.90), as sampled and conformally calibrated (then near 0.90 by "
        "construction: the width tells arms apart), and what mean DSC "
        f"gains when the 20 % most uncertain cases of each run are referred. {FEW_SAMPLES} n/a: "
        "too few subjects to calibrate on, one sample, or an arm that is equally sure of all cases."
    )
    return Table(caption, headings, [("", rows)])


def _plain(row: Mapping[str, str], key: str, decimals: int) -> Cell:
    value = as_number(row.get(key))
    return Cell(number(value, decimals), value)


def _with_interval(
    row: Mapping[str, str], key: str, decimals: int, *, signed: bool = False
) -> Cell:
    value, *ends = (as_number(row.get(name)) for name in (key, f"low_{key}", f"high_{key}"))
    low, high = (number(end, decimals, signed=signed) for end in ends)
    small = f"[{low}, {high}]" if math.isfinite(value) else ""
    return Cell(number(value, decimals, signed=signed), value, small=small)
