"""What a calibration makes of a prediction: inner and outer masks, intervals, and a review flag."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from medseg.calibration import conformal
from medseg.calibration.record import Calibration
from medseg.calibration.review import can_flag, joint_doubt
from medseg.inference.conditions import differing
from medseg.inference.evidence import WORDS, count_of, doubts, shape_features
from medseg.inference.predict import Prediction


@dataclass(frozen=True)
class Sign:
    """One sign of doubt about a case, beside the same of the calibration's subjects.

    Parameters
    ----------
    sign : str
        A name of ``evidence.WORDS``.
    region : str or None
        None for the whole case.
    value : float
    score : float
        The value on the scale that all signs share, see :mod:`medseg.calibration.review`.
    percentile : float
        Share in % of the calibration's subjects below the value.
    is_reason : bool
        Whether this sign alone is enough for a human to look.
    """

    sign: str
    region: str | None
    value: float
    score: float
    percentile: float
    is_reason: bool

    @property
    def words(self) -> str:
        """What it says when it is a reason."""
        what = WORDS[self.sign]
        return what if self.region is None else f"{self.region}: {what}"


@dataclass(frozen=True, eq=False)
class RegionDecision:
    """What is promised of one region; all None where the promise is withdrawn.

    Parameters
    ----------
    inner, outer : Tensor, shape (x, y, z), bool, or None
        On the case's own grid; None where there were too few cases.
    low_ml, high_ml : float or None
        Conformal interval of the volume, ``high_ml`` infinite where there were too few cases.
    """

    inner: Tensor | None = None
    outer: Tensor | None = None
    low_ml: float | None = None
    high_ml: float | None = None


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
    doubt : float
        The largest score of a sign: puts cases in order, the most doubtful last.
    doubt_percentile : float
        Share in % of the calibration's subjects that are less doubtful.
    differing : tuple of str
        What was not done as in the calibration. Where there is any, nothing is promised.
    """

    calibration: Calibration
    regions: tuple[RegionDecision, ...]
    signs: tuple[Sign, ...]
    doubt: float
    doubt_percentile: float
    differing: tuple[str, ...] = ()

    @property
    def coverage(self) -> float | None:
        """What is promised; None where the prediction was made in another way."""
        return None if self.differing else self.calibration.coverage

    @property
    def reasons(self) -> tuple[Sign, ...]:
        """Why a human should look at this case, the strongest first."""
        found = [sign for sign in self.signs if sign.is_reason]
        return tuple(sorted(found, key=lambda sign: -sign.score))

    @property
    def needs_review(self) -> bool | None:
        """Whether a human should look at this case; None where that cannot be told."""
        known = can_flag(self.calibration.n, self.calibration.review_share)
        return None if self.differing or not known else bool(self.reasons)


def decide(prediction: Prediction, calibration: Calibration) -> Decision:
    """Return what a calibration makes of a prediction by the same model.

    Parameters
    ----------
    prediction : Prediction
        Made with the temperatures of the calibration.
    calibration : Calibration
    """
    names: list[tuple[str, str | None]] = []
    usual, values = [], []
    for index, name in enumerate(prediction.regions):
        fitted = calibration.regions[name]
        found = doubts(
            prediction,
            index,
            prediction.probability[index],
            prediction.mutual_information_nats[index],
        )
        count = count_of(prediction.lesions, name)
        features = shape_features(prediction.mask[index].numpy(), prediction.grid, count)
        found["shape"] = fitted.shape.distance(features)
        for sign, value in found.items():
            names.append((sign, name))
            usual.append(fitted.signs[sign])
            values.append(value)
    names.append(("intensity", None))
    usual.append(calibration.intensity_distances)
    values.append(calibration.intensity.distance(prediction.intensities))
    beside = joint_doubt(np.array(usual).T, np.array(values))
    flagged = beside.flagged(calibration.review_share)
    other = differing(prediction, calibration.conditions)
    return Decision(
        calibration=calibration,
        regions=tuple(
            RegionDecision() if other else _region(prediction, index, calibration)
            for index in range(len(prediction.regions))
        ),
        signs=tuple(
            Sign(
                sign=sign,
                region=region,
                value=values[place],
                score=float(beside.scores[place]),
                percentile=conformal.percentile_among(np.array(usual[place]), values[place]),
                is_reason=bool(flagged[place]) and not other,
            )
            for place, (sign, region) in enumerate(names)
        ),
        doubt=beside.joint,
        doubt_percentile=beside.percentile,
        differing=other,
    )


def _region(prediction: Prediction, index: int, calibration: Calibration) -> RegionDecision:
    name, mask = prediction.regions[index], prediction.mask[index]
    probability, fitted = prediction.probability[index], calibration.regions[name]
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
