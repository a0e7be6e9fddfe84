"""Fit a calibration to what a model says of labelled cases that it was not trained on."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.calibration import conformal
from medseg.calibration.record import Calibration, LesionCheck, RegionCalibration
from medseg.calibration.review import can_flag
from medseg.calibration.settings import CalibrationSettings
from medseg.calibration.temperature import Stratum
from medseg.calibration.typical import Typical, distances_left_out
from medseg.data.regions import encode
from medseg.errors import ConfigError, DataError, MedsegError
from medseg.inference.case_store import CaseStore
from medseg.inference.conditions import conditions, joined
from medseg.inference.evidence import count_of, doubts, shape_features
from medseg.inference.model import Model
from medseg.inference.predict import Prediction, predict_prepared_case
from medseg.inference.provenance import case_sha256, label_sha256, settings_sha256, versions
from medseg.inference.settings import PredictSettings
from medseg.inference.temperatures import (
    HeldOut,
    RegionError,
    errors_of,
    fit_temperatures,
    kept_strata,
    pooled,
    prepared_for,
    temperatures_left_out,
    truth_in_brain,
)
from medseg.metrics.calibration import brier_score, calibration_error, reliability_bins
from medseg.metrics.lesions import covered_shares, is_found, label_lesions

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _RegionEvidence:
    """What one case says of one region."""

    error: RegionError
    missed: NDArray[np.float64]
    false: NDArray[np.float64]
    residual: float
    doubts: dict[str, float]
    shape: NDArray[np.float64]
    usual_shape: NDArray[np.float64] | None
    lesions: list[tuple[float, bool]]


@dataclass(frozen=True, eq=False)
class _CaseEvidence:
    """What one case says."""

    intensities: NDArray[np.float64]
    conditions: dict[str, Any]
    regions: list[_RegionEvidence]

    @classmethod
    def of(cls, values: dict[str, Any]) -> _CaseEvidence:
        """Return what was kept as plain values."""
        regions = []
        for region in values["regions"]:
            usual = region["usual_shape"]
            region |= {name: np.array(region[name]) for name in ("missed", "false", "shape")}
            region["error"] = RegionError(**region["error"])
            region["usual_shape"] = None if usual is None else np.array(usual)
            region["lesions"] = [(share, hit) for share, hit in region["lesions"]]
            regions.append(_RegionEvidence(**region))
        return cls(np.array(values["intensities"]), values["conditions"], regions)


def calibrate(
    held_out: Sequence[HeldOut],
    *,
    method: Literal["held-out", "cross-fitted"] = "held-out",
    predict: PredictSettings | None = None,
    settings: CalibrationSettings | None = None,
    model: Model | None = None,
    state: Path | None = None,
) -> Calibration:
    """Return what labelled cases say of a model's probabilities, masks and volumes.

    Every case is read first: what cannot be used is refused before the first prediction. Then each
    is predicted twice: for the temperatures, and with those of the other subjects for all the rest,
    as :func:`medseg.inference.predict.predict_case` does it. Each subject counts once, by the mean
    of its cases' losses and the largest of their scores.

    Parameters
    ----------
    held_out : sequence of HeldOut
        Of one set of regions, from at least two subjects.
    method : "held-out" or "cross-fitted"
        Whether all have the model itself, or each a network trained without it.
    predict : PredictSettings, optional
    settings : CalibrationSettings, optional
    model : Model, optional
        What the calibration is for, where that is not the model of the cases.
    state : Path, optional
        Folder in which what each case says is kept, so that the same call goes on where it was
        interrupted; whoever keeps the calibration clears it (:class:`CaseStore`).

    Raises
    ------
    DataError
        Fewer than two subjects, or a region that no reference has.
    MedsegError
        A case that cannot be read or prepared, or has no reference; it is named.
    ConfigError
        The labels of a region are not known.

    Notes
    -----
    Conformal promises are proved where the next case is treated exactly as those of the
    calibration. Here it nearly is: its temperatures are fitted to all subjects, theirs to all but
    one, and the same holds for what is usual of shapes and intensities. For cross-fitted cases the
    networks differ, too, see :func:`medseg.experiment.crossfit.finetune_calibrated`.
    """
    chosen, asked = settings or CalibrationSettings(), predict or PredictSettings()
    subjects = [one.subject for one in held_out]
    n = _check(held_out, subjects, chosen)
    if method == "held-out":  # else it was said before any training
        warn_of_few(n, chosen)
    model, store = model or held_out[0].model, CaseStore(state)
    keys = _read_all(held_out, asked, chosen)
    strata: dict[str, list[Stratum]] = {}
    before: list[list[RegionError]] = []
    for number, (one, key) in enumerate(zip(held_out, keys, strict=True)):
        parts, errors = kept_strata(one, key, store, asked, chosen, number)
        strata.setdefault(one.subject, []).extend(parts)
        before.append(errors)
        # By number: the log of a fine-tuning lies in the model's folder, which travels.
        log.info("calibration: case %d of %d: temperatures", number + 1, len(held_out))
    fits = fit_temperatures([part for own in strata.values() for part in own], model)
    others = temperatures_left_out(strata, model)
    del strata
    looks: list[_CaseEvidence] = []
    for number, (one, key) in enumerate(zip(held_out, keys, strict=True), start=1):
        looks.append(_look(one, key, store, others[one.subject], asked, chosen))
        log.info("calibration: case %d of %d: masks and volumes", number, len(held_out))
    intensities = [look.intensities for look in looks]
    distances = distances_left_out(intensities, intensities, subjects)
    return Calibration(
        method=method,
        n=n,
        cases=len(held_out),
        coverage=chosen.coverage,
        review_share=chosen.review_share,
        volume_floor=chosen.volume_floor,
        conditions=joined([look.conditions for look in looks]),
        regions={
            name: _region(
                [look.regions[index] for look in looks],
                subjects,
                fits[index],
                [case[index] for case in before],
                chosen,
            )
            for index, name in enumerate(model.spec.regions.names)
        },
        intensity=Typical.of(np.stack(intensities)),
        intensity_distances=_worst_of(subjects, distances),
        versions=versions(),
    )


def _check(
    held_out: Sequence[HeldOut], subjects: Sequence[str], settings: CalibrationSettings
) -> int:
    """Return the number of subjects."""
    n = len(set(subjects))
    if n < 2:
        raise DataError(
            f"A calibration needs labelled cases of at least two subjects, but there are {n}.",
            hint=f"Give {conformal.cases_needed(settings.coverage)} or more for a coverage of "
            f"{settings.coverage:g}.",
        )
    for one in held_out:
        unknown = [r for r in one.model.spec.regions.names if r not in one.definition]
        if unknown:
            raise ConfigError(
                f"A calibration needs the labels of every region of the model, but those of "
                f"{unknown} are not known for {one.identifier!r}.",
                hint="Name their labels under regions in a YAML, or take cases that mark them.",
            )
    return n


def warn_of_few(n: int, settings: CalibrationSettings) -> None:
    """Say what n subjects are too few for."""
    if n < conformal.cases_needed(settings.coverage):
        log.warning(
            "%d people are too few for a coverage of %g, which takes %d: there will be no inner "
            "and outer mask and no volume range; they are enough for --coverage %s",
            n,
            settings.coverage,
            conformal.cases_needed(settings.coverage),
            conformal.coverage_to_ask(n),
        )
    if not can_flag(n, settings.review_share):
        log.warning(
            "%d people are too few to say which %g %% of cases a human should look at: that takes "
            "%d",
            n,
            100 * settings.review_share,
            conformal.cases_needed(1.0 - settings.review_share),
        )


def _read_all(
    held_out: Sequence[HeldOut], predict: PredictSettings, settings: CalibrationSettings
) -> list[str]:
    """Read and prepare all cases, one at a time, and return the hash of what each one's word is of.

    What cannot be used is refused here: later it would cost the predictions of all others.
    """
    models = {id(one.model): one.model for one in held_out}
    hashes = {number: model.fingerprint() for number, model in models.items()}
    how = f"{settings_sha256(predict)} {settings} {versions()}"
    keys, found = list[str](), list[Tensor]()
    for number, one in enumerate(held_out):
        try:
            case = one.load()
            found.append(truth_in_brain(one, prepared_for(one, case)).any(dim=1))
        except MedsegError as error:
            if repr(one.identifier) in error.message:
                raise
            raise type(error)(
                f"Case {one.identifier!r} cannot be used: {error.message}", hint=error.hint
            ) from error
        parts = (hashes[id(one.model)], case_sha256(case), label_sha256(case), one.definition)
        keys.append(hashlib.sha256(f"{parts} {number} {how}".encode()).hexdigest())
    for index, name in enumerate(held_out[0].model.spec.regions.names):
        if not any(bool(there[index]) for there in found):
            raise DataError(
                f"A calibration needs a case with region {name!r}, but no reference has a voxel of "
                "it.",
                hint="Add cases with lesions.",
            )
    log.info("calibration: all %d cases are read and can be used", len(held_out))
    return keys


def _look(
    one: HeldOut,
    key: str,
    store: CaseStore,
    factors: tuple[float, ...],
    predict: PredictSettings,
    settings: CalibrationSettings,
) -> _CaseEvidence:
    """Return what the reference of a case says of its prediction, on the case's own grid."""
    key = hashlib.sha256(f"{key} {factors}".encode()).hexdigest()
    kept = store.load(key)
    if kept is not None:
        return _CaseEvidence.of(kept[1])
    own = one.model.spec.temperature
    case = one.load()
    model = replace(one.model, temperatures=tuple(own * factor for factor in factors))
    prepared = prepared_for(one, case)
    prediction = predict_prepared_case(model, prepared, settings=predict)
    values = prediction.probability.values[:, prepared.brain]
    errors = errors_of(values, truth_in_brain(one, prepared))
    label = case.label.data if case.label is not None else torch.zeros(case.grid.shape).int()
    truth, _ = encode(label, names=prediction.regions, definition=one.definition)
    look = _CaseEvidence(
        intensities=prediction.intensities,
        conditions=conditions(prediction),
        regions=[
            _compared(prediction, index, truth[index] > 0.5, error, predict, settings)
            for index, error in enumerate(errors)
        ],
    )
    store.save(key, {}, asdict(look))
    return look


def _compared(
    prediction: Prediction,
    index: int,
    truth: Tensor,
    error: RegionError,
    predict: PredictSettings,
    settings: CalibrationSettings,
) -> _RegionEvidence:
    name, grid = prediction.regions[index], prediction.grid
    probability = prediction.probability[index]
    chance, mask, true = probability.numpy(), prediction.mask[index].numpy(), truth.numpy()
    spread = conformal.log_volume_spread(
        prediction.volumes_ml[:, index], floor=settings.volume_floor
    )
    true_ml = float(np.count_nonzero(true)) * grid.voxel_volume_mm3 / 1000.0
    rule = predict.lesions
    _, n_true = label_lesions(true, spacing_mm=grid.spacing_mm, settings=rule)
    labels, count = label_lesions(mask, spacing_mm=grid.spacing_mm, settings=rule)
    real = is_found(covered_shares(labels, count, true), rule)
    chances = [lesion.probability for lesion in prediction.lesions if lesion.region == name]
    return _RegionEvidence(
        error=error,
        missed=conformal.missed_shares(chance, mask, true),
        false=conformal.false_shares(chance, mask, true),
        residual=conformal.log_volume_score(prediction.volume_ml(name), true_ml, spread=spread),
        doubts=doubts(prediction, index, probability, prediction.mutual_information_nats[index]),
        shape=shape_features(mask, grid, count_of(prediction.lesions, name)),
        usual_shape=shape_features(true, grid, n_true) if true.any() else None,
        lesions=[(share, bool(hit)) for share, hit in zip(chances, real, strict=True)],
    )


def _region(
    seen: Sequence[_RegionEvidence],
    subjects: Sequence[str],
    temperature: float,
    before: Sequence[RegionError],
    settings: CalibrationSettings,
) -> RegionCalibration:
    residuals = _worst_of(subjects, [one.residual for one in seen])
    factor = conformal.conformal_quantile(np.array(residuals), settings.coverage)
    shapes = [one.shape for one in seen]
    usual = [one.usual_shape for one in seen]
    signs = {
        name: _worst_of(subjects, [one.doubts[name] for one in seen]) for name in seen[0].doubts
    }
    signs["shape"] = _worst_of(subjects, distances_left_out(shapes, usual, subjects))
    missed = _mean_of(subjects, [one.missed for one in seen])
    false = _mean_of(subjects, [one.false for one in seen])
    (nll_before, ece_before), (nll_after, ece_after) = (
        pooled(errors) for errors in (before, [one.error for one in seen])
    )
    outer = inner = None
    if len(residuals) >= conformal.cases_needed(settings.coverage):
        allowed = 1.0 - settings.coverage
        outer = conformal.controlled_cut(missed, allowed, safe=0)
        inner = conformal.controlled_cut(false, allowed, safe=-1)
    return RegionCalibration(
        temperature=temperature,
        nll_before_nats=nll_before,
        nll_after_nats=nll_after,
        ece_before=ece_before,
        ece_after=ece_after,
        outer_cut=None if outer is None else float(conformal.CUTS[outer]),
        inner_cut=None if inner is None else float(conformal.CUTS[inner]),
        missed_share=None if outer is None else float(missed[:, outer].mean()),
        false_share=None if inner is None else float(false[:, inner].mean()),
        volume_factor=None if math.isinf(factor) else factor,
        volume_residuals=tuple(sorted(residuals)),
        signs=signs,
        shape=Typical.of(np.stack([shape for shape in usual if shape is not None])),
        lesions=_lesion_check([lesion for one in seen for lesion in one.lesions]),
    )


def _lesion_check(lesions: Sequence[tuple[float, bool]]) -> LesionCheck:
    if not lesions:
        return LesionCheck(lesions=0)
    chance, true = np.array([share for share, _ in lesions]), np.array([hit for _, hit in lesions])
    return LesionCheck(
        lesions=len(lesions),
        mean_probability=float(chance.mean()),
        true_share=float(true.mean()),
        brier=brier_score(chance, true),
        ece=calibration_error(reliability_bins(chance, true)),
    )


def _worst_of(subjects: Sequence[str], scores: Sequence[float]) -> tuple[float, ...]:
    """Return the largest score of each subject, in the order of their first cases."""
    worst: dict[str, float] = {}
    for subject, score in zip(subjects, scores, strict=True):
        worst[subject] = max(score, worst.get(subject, -math.inf))
    return tuple(worst.values())


def _mean_of(subjects: Sequence[str], losses: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean loss of each subject at each cut, shape (n, cuts)."""
    per_subject: dict[str, list[NDArray[np.float64]]] = {}
    for subject, loss in zip(subjects, losses, strict=True):
        per_subject.setdefault(subject, []).append(loss)
    return np.stack([np.mean(rows, axis=0) for rows in per_subject.values()])
