"""What the uncertainty of an arm is good for: honest volume intervals, and cases to refer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.calibration.conformal import conformal_quantile
from medseg.experiment.pairs import ArmScores, number
from medseg.experiment.statistics import bootstrap_mean_interval, referral_gain

Row = dict[str, object]
FloatVector = NDArray[np.float64]
#: Nominal coverage of the volume interval, and share of cases referred.
COVERAGE, REFERRED = 0.9, 0.2
#: Name in the table -> column of the scores, and the sign with which it grows uncertain. The last
#: looks at the truth: nothing that refers as many of the same cases gains more.
_UNCERTAIN = {
    "std": ("mean_std", 1.0),
    "expected_dsc": ("expected_dsc", -1.0),
    "most": ("dsc", -1.0),
}


def decision_row(arm: ArmScores, *, n: int, region: str, seed: int) -> Row | None:
    """Return coverage and width of the volume interval, and what referring cases gains.

    None for an arm that gives no interval. One sample a case is no interval either: its coverage
    is left open, and calibration makes one of it. The columns ``conformal_*`` are those of the
    interval calibrated within each cell on the other test subjects, see
    :func:`leave_one_subject_out`.
    ``gain_std`` refers by the spread of the posterior samples inside the mask,
    ``gain_expected_dsc`` by the DSC that the probabilities promise, ``gain_most`` by the DSC
    itself: more cannot be gained by referring as many of the same cases.
    """
    rows = [row for row in arm.rows if math.isfinite(number(row.get("volume_low_ml", "")))]
    if not rows:
        return None
    cells: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        cells.setdefault((row["subset"], row["seed"]), []).append(row)
    ordered = [row for members in cells.values() for row in members]
    subjects = [row["subject"] for row in ordered]
    low, high, true = _volumes(ordered)
    plain = bootstrap_mean_interval((low <= true) & (true <= high), subjects, seed=seed)
    is_point = bool((low == high).all())
    calibrated = [leave_one_subject_out(members) for members in cells.values()]
    covered, width = (np.concatenate(part) for part in zip(*calibrated, strict=True))
    known = np.isfinite(covered)
    found: Row = {
        "method": arm.method,
        "source": arm.source,
        "n": n,
        "region": region,
        "n_cases": len({row["case"] for row in ordered}),
        "n_subjects": plain.n_subjects,
        "n_predictions": len(ordered),
        "coverage": None if is_point else plain.mean,
        "low_coverage": None if is_point else plain.low,
        "high_coverage": None if is_point else plain.high,
        "mean_width_ml": float((high - low).mean()),
        "n_calibrated": int(known.sum()),
    }
    some = [subject for subject, is_known in zip(subjects, known, strict=True) if is_known]
    honest = bootstrap_mean_interval(covered[known], some, seed=seed) if some else None
    found |= {
        "conformal_coverage": honest and honest.mean,
        "low_conformal_coverage": honest and honest.low,
        "high_conformal_coverage": honest and honest.high,
        "conformal_mean_width_ml": float(width[known].mean()) if some else None,
    }
    for name, (column, sign) in _UNCERTAIN.items():
        found |= _gain(list(cells.values()), name, column, sign, seed=seed)
    return found


def leave_one_subject_out(
    rows: Sequence[dict[str, str]], *, coverage: float = COVERAGE
) -> tuple[FloatVector, FloatVector]:
    """Return whether each case's calibrated volume interval holds, and its width in ml.

    The interval of a case is calibrated on the other test subjects of the same cell, that is on
    other people's predictions of one network that was trained on none of them. So each interval is
    a split-conformal one, which promises its coverage as far as subjects are alike. The score of a
    case is how far its volume lies outside the sampled interval on the scale ``log(1 + ml)``, on
    which the errors of small and large lesions are alike; it is moved by the same amount at both
    ends. No truth of a case enters its own interval.

    Averaged over a cell, coverage comes out near the nominal one by construction, as ranks do: it
    is a check of the arithmetic, and the width is what tells arms apart.

    Parameters
    ----------
    rows : sequence of scores
        Of one region in one cell.
    coverage : float
        Aimed at.

    Returns
    -------
    covered : ndarray, shape (rows,)
        1 or 0; NaN where too few others are there to calibrate on, nine for 90 %.
    width_ml : ndarray, shape (rows,)
        NaN likewise.
    """
    low, high, true = (np.log1p(part) for part in _volumes(rows))
    outside = np.maximum(low - true, true - high)
    subjects = np.array([row["subject"] for row in rows])
    # One score a person, the worst of their scans: scans of one person are not exchangeable.
    worst = {who: float(outside[subjects == who].max()) for who in subjects}
    reach = np.array(
        [_reach([worst[who] for who in worst if who != mine], coverage) for mine in subjects]
    )
    covered, width = (np.full(len(rows), np.nan) for _ in range(2))
    known = np.isfinite(reach)
    covered[known] = outside[known] <= reach[known]
    ends = [np.expm1(np.maximum(end[known], 0.0)) for end in (low - reach, high + reach)]
    width[known] = np.maximum(ends[1] - ends[0], 0.0)
    return covered, width


def _volumes(rows: Sequence[dict[str, str]]) -> list[FloatVector]:
    columns = ("volume_low_ml", "volume_high_ml", "reference_volume_ml")
    return [np.array([number(row[column]) for row in rows]) for column in columns]


def _gain(
    cells: Sequence[Sequence[dict[str, str]]], name: str, column: str, sign: float, *, seed: int
) -> Row:
    """Return the gain in mean DSC when the most uncertain cases of each cell are referred."""
    dsc: list[float] = []
    kept: list[bool] = []
    subjects: list[str] = []
    for rows in cells:
        uncertain = np.array([sign * number(row.get(column, "")) for row in rows])
        known = np.isfinite(uncertain)
        # Arms without samples are equally sure of all cases: they give no order to refer by.
        if len(rows) < 2 or not known.any() or np.ptp(uncertain[known]) == 0:
            continue
        # There is no spread inside an empty mask, and no reason to trust it.
        uncertain[~known] = np.inf
        order = np.argsort(-uncertain, kind="stable")
        referred = set(order[: max(1, round(REFERRED * len(rows)))].tolist())
        dsc += [number(row["dsc"]) for row in rows]
        kept += [place not in referred for place in range(len(rows))]
        subjects += [row["subject"] for row in rows]
    keys = (f"gain_{name}", f"low_gain_{name}", f"high_gain_{name}")
    if not dsc:
        return {key: None for key in keys}
    found = referral_gain(dsc, kept, subjects, seed=seed)
    return dict(zip(keys, (found.mean, found.low, found.high), strict=True))


def _reach(scores: Sequence[float], coverage: float) -> float:
    return conformal_quantile(np.array(scores), coverage) if scores else float("inf")
