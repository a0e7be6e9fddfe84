"""What a calibration makes of a prediction: inner and outer masks, intervals, and a review flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from medseg.calibration import conformal
from medseg.calibration.record import Calibration, RegionCalibration
from medseg.inference.evidence import (
    INTENSITY_WORDS,
    WORDS,
    count_of,
    doubts,
    shape_features,
)
from medseg.inference.predict import Prediction
from medseg.inference.provenance import decisive_settings
from medseg.inference.settings import PredictSettings


@dataclass(frozen=True)
class Sign:
    """One sign of doubt about a case, beside the same of the calibration cases.

    Parameters
    ----------
    sign : str
        A name of ``evidence.WORDS``, or "intensity".
    region : str or None
        None for the whole case.
    value : float
    limit : float or None
        What the stated share of usual cases does not exceed; None where there were too few cases.
    percentile : float
        Share in % of the calibration cases below it.
    """

    sign: str
    region: str | None
    value: float
    limit: float | None
    percentile: float

    @property
    def is_reason(self) -> bool:
        """Whether a human should look."""
        return self.limit is not None and self.value > self.limit

    @property
    def words(self) -> str:
        """What it says when it is a reason."""
        what = WORDS.get(self.sign, INTENSITY_WORDS)
        return what if self.region is None else f"{self.region}: {what}"


@dataclass(frozen=True, eq=False)
class RegionDecision:
    """What is promised of one region.

    Parameters
    ----------
    inner, outer : Tensor, shape (x, y, z), bool, or None
        On the case's own grid; None where there were too few cases.
    low_ml, high_ml : float
        Conformal interval of the volume, ``high_ml`` infinite where there were too few cases.
    """

    inner: Tensor | None
    outer: Tensor | None
    low_ml: float
    high_ml: float


@dataclass(frozen=True, eq=False)
class Decision:
    """What a calibration makes of one case.

    Parameters
    ----------
    calibration : Calibration
    regions : tuple of RegionDecision
        In the order of the prediction's.
    signs : tuple of Sign
        Of all regions and the case.
    differing : tuple of str
        Settings of the prediction that are not those of the calibration, whose promises then do
        not hold.
    """

    calibration: Calibration
    regions: tuple[RegionDecision, ...]
    signs: tuple[Sign, ...]
    differing: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[Sign, ...]:
        """Why a human should look at this case."""
        return tuple(sign for sign in self.signs if sign.is_reason)

    @property
    def needs_review(self) -> bool:
        """Whether a human should look at this case."""
        return bool(self.reasons)

    @property
    def doubt_percentile(self) -> float:
        """Mean of all signs' percentiles: puts cases in order, the most doubtful last."""
        return float(np.mean([sign.percentile for sign in self.signs]))


def decide(
    prediction: Prediction, calibration: Calibration, *, settings: PredictSettings | None = None
) -> Decision:
    """Return what a calibration makes of a prediction by the same model.

    Parameters
    ----------
    prediction : Prediction
        Made with the temperatures of the calibration.
    calibration : Calibration
    settings : PredictSettings, optional
        Of the prediction; those that the calibration was not fitted with are named.
    """
    regions, signs = [], []
    for index, name in enumerate(prediction.regions):
        fitted = calibration.regions[name]
        probability = prediction.probability[index]
        regions.append(_region(prediction, index, probability, calibration))
        information = prediction.mutual_information_nats[index]
        values = doubts(prediction, index, probability, information)
        if fitted.shape is not None:
            count = count_of(prediction.lesions, name)
            features = shape_features(prediction.mask[index].numpy(), prediction.grid, count)
            values["shape"] = fitted.shape.distance(features)
        signs += [
            _sign(sign, name, value, fitted.indicators[sign], calibration)
            for sign, value in values.items()
        ]
    distance = calibration.intensity.distance(prediction.intensities)
    signs.append(_sign("intensity", None, distance, calibration.intensity_distances, calibration))
    now = {} if settings is None else decisive_settings(settings)
    differing = tuple(name for name in now if now[name] != calibration.predict.get(name))
    return Decision(calibration, tuple(regions), tuple(signs), differing)


def _region(
    prediction: Prediction, index: int, probability: Tensor, calibration: Calibration
) -> RegionDecision:
    name, mask = prediction.regions[index], prediction.mask[index]
    fitted = calibration.regions[name]
    factor = float("inf") if fitted.volume_factor is None else fitted.volume_factor
    spread = conformal.log_volume_spread(
        prediction.volumes_ml[:, index], floor=calibration.volume_floor
    )
    low_ml, high_ml = conformal.volume_interval_ml(
        prediction.volume_ml(name), spread=spread, factor=factor
    )
    outer, inner = fitted.outer_cut, fitted.inner_cut
    return RegionDecision(
        inner=None if inner is None else mask & (probability > inner),
        outer=None if outer is None else mask | (probability >= outer),
        low_ml=low_ml,
        high_ml=high_ml,
    )


def _sign(
    sign: str, region: str | None, value: float, usual: Sequence[float], calibration: Calibration
) -> Sign:
    scores = np.array(usual)
    limit = conformal.conformal_quantile(scores, 1.0 - calibration.review_share)
    return Sign(
        sign=sign,
        region=region,
        value=value,
        limit=limit if np.isfinite(limit) else None,
        percentile=conformal.percentile_among(scores, value),
    )


def describe_decision(decision: Decision | None) -> dict[str, object]:
    """Return what the JSON file of a case says of its calibration as a whole."""
    if decision is None:
        return {"calibrated": False}
    calibration = decision.calibration
    needed = conformal.cases_needed(calibration.coverage)
    too_few = None
    if calibration.n < needed:
        too_few = (
            f"a coverage of {calibration.coverage:g} takes {needed} subjects, but there were "
            f"{calibration.n}: no inner and outer mask, and no finite volume interval"
        )
    return {
        "calibrated": True,
        "calibration": {
            "method": calibration.method,
            "subjects": calibration.n,
            "coverage": calibration.coverage,
            "settings_that_differ": list(decision.differing),
            "too_few": too_few,
        },
        "review": {
            "needed": decision.needs_review,
            "reasons": [sign.words for sign in decision.reasons],
            "doubt_percentile": decision.doubt_percentile,
            "usual_share_per_reason": calibration.review_share,
            "signs": [{**asdict(sign), "is_reason": sign.is_reason} for sign in decision.signs],
        },
    }


def describe_region(
    decision: Decision | None, index: int, *, voxel_volume_mm3: float
) -> Mapping[str, object]:
    """Return what the JSON file of a case says of a region's calibration, beside the rest."""
    if decision is None:
        return {}
    one, calibration = decision.regions[index], decision.calibration
    fitted: RegionCalibration = list(calibration.regions.values())[index]
    is_finite = bool(np.isfinite(one.high_ml))
    masks = {
        name: None if mask is None else int(mask.sum()) * voxel_volume_mm3 / 1000.0
        for name, mask in (("inner_volume_ml", one.inner), ("outer_volume_ml", one.outer))
    }
    return {
        "volume_conformal_ml": {
            "low": one.low_ml,
            "high": one.high_ml if is_finite else None,
            "is_finite": is_finite,
            "coverage": calibration.coverage,
            "subjects": calibration.n,
        },
        "conformal_masks": {
            **masks,
            "expected_missed_or_false_share_at_most": 1.0 - calibration.coverage,
            "outer_cut": fitted.outer_cut,
            "inner_cut": fitted.inner_cut,
        },
        "temperature": fitted.temperature,
        "lesion_probability_check": asdict(fitted.lesions),
    }
