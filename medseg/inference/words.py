"""What the files of a case say of its calibration, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite

from medseg.calibration.conformal import cases_needed
from medseg.calibration.record import Calibration
from medseg.calibration.review import can_flag
from medseg.inference.decide import Decision


def describe_decision(decision: Decision | None) -> dict[str, object]:
    """Return what the JSON file of a case says of its calibration as a whole."""
    if decision is None:
        return {
            "calibrated": False,
            "meaning": ["The model was not checked on labelled scans: nothing is promised."],
        }
    calibration = decision.calibration
    return {
        "calibrated": True,
        "meaning": _meaning(decision),
        "calibration": {
            "method": calibration.method,
            "subjects": calibration.n,
            "coverage": decision.coverage,
            "settings_that_differ": list(decision.differing),
        },
        "review": {
            "needed": decision.needs_review,
            "reasons": [sign.words for sign in decision.reasons],
            "doubt": decision.doubt,
            "doubt_percentile": decision.doubt_percentile,
            "usual_share_at_most": None
            if decision.needs_review is None
            else calibration.review_share,
            "signs": [asdict(sign) for sign in decision.signs],
        },
    }


def describe_region(
    decision: Decision | None, index: int, *, voxel_volume_mm3: float
) -> Mapping[str, object]:
    """Return what the JSON file of a case says of a region's calibration, beside the rest."""
    if decision is None:
        return {}
    one, calibration = decision.regions[index], decision.calibration
    fitted = list(calibration.regions.values())[index]
    is_finite = one.high_ml is not None and isfinite(one.high_ml)
    masks = {
        name: None if mask is None else int(mask.sum()) * voxel_volume_mm3 / 1000.0
        for name, mask in (("inner_volume_ml", one.inner), ("outer_volume_ml", one.outer))
    }
    promised = one.inner is not None
    return {
        "volume_conformal_ml": {
            "low": one.low_ml,
            "high": one.high_ml if is_finite else None,
            "is_finite": is_finite,
            "coverage": decision.coverage,
            "subjects": calibration.n,
        },
        "conformal_masks": {
            **masks,
            "expected_missed_or_false_share_at_most": 1.0 - calibration.coverage
            if promised
            else None,
            "outer_cut": fitted.outer_cut if promised else None,
            "inner_cut": fitted.inner_cut if promised else None,
        },
        "temperature": fitted.temperature,
        "lesion_probability_check": asdict(fitted.lesions),
    }


def withdrawn(decision: Decision) -> str:
    """Return why nothing is promised of a prediction that was made in another way."""
    return (
        "The model was checked with other settings than this prediction was made with "
        f"({', '.join(decision.differing)} differ): no inner and outer mask, no volume range and "
        "no word on whether a human should look. Predict with the settings of the calibration, or "
        "calibrate with these."
    )


def _meaning(decision: Decision) -> list[str]:
    """Return the promises in plain sentences."""
    calibration = decision.calibration
    if decision.differing:
        return [withdrawn(decision)]
    told = [_checked_on(calibration)]
    needed = cases_needed(calibration.coverage)
    percent = f"{100 * calibration.coverage:g}"
    if calibration.n < needed:
        told.append(
            f"A coverage of {percent} % takes {needed} people, but there were {calibration.n}: no "
            "inner and outer mask and no volume range."
        )
    else:
        rest = f"{100 * (1 - calibration.coverage):g}"
        told.append(
            f"The range volume_conformal_ml is meant to hold the true volume in {percent} of 100 "
            f"such cases; on average the outer mask misses at most {rest} % of the true lesion, "
            f"and at most {rest} % of the inner mask is wrong."
        )
    share = calibration.review_share
    if can_flag(calibration.n, share):
        told.append(
            f"review.needed marks about the {100 * share:g} of 100 such cases that are the most "
            "unusual. A case that is not marked can be wrong, too."
        )
    else:
        told.append(
            f"Whether a human should look cannot be told: that takes {cases_needed(1 - share)} "
            f"people, but there were {calibration.n}."
        )
    told.append("This holds on average over cases like those it was checked on, not for each one.")
    return told


def _checked_on(calibration: Calibration) -> str:
    if calibration.method == "held-out":
        return f"The model was checked on {calibration.n} people whom it had not seen in training."
    return (
        f"The model was trained on these {calibration.n} people; what is said here comes from "
        "networks like it, each checked on people whom it had not seen. It is an estimate, and not "
        "proved."
    )
