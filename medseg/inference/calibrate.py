"""Fit a calibration to what a model says of labelled cases that it was not trained on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.calibration import conformal, temperature
from medseg.calibration.record import Calibration, LesionCheck, RegionCalibration
from medseg.calibration.settings import CalibrationSettings
from medseg.calibration.temperature import Stratum
from medseg.calibration.typical import Typical, distances_left_out
from medseg.data.regions import Definition, encode
from medseg.errors import ConfigError, DataError, ScanError
from medseg.inference.evidence import count_of, doubts, shape_features
from medseg.inference.focused import to_logits
from medseg.inference.model import Model
from medseg.inference.plan import predict_image
from medseg.inference.predict import Prediction, predict_prepared_case, prepare_for
from medseg.inference.predictor import to_probabilities
from medseg.inference.provenance import decisive_settings, versions
from medseg.inference.settings import PredictSettings
from medseg.metrics.calibration import brier_score, calibration_error, reliability_bins
from medseg.metrics.lesions import covered_shares, is_found, label_lesions
from medseg.preprocess.prepare import PreparedCase
from medseg.scan import Case
from medseg.seeding import torch_generator

log = logging.getLogger(__name__)

#: Temperature at which logits are read off probabilities. At 1 a float32 sigmoid is exactly 1 from
#: a logit of 17 on, and what a bold network says would be cut there; here it is not below 300. All
#: of an image is uncertain then, so that samples of a focused posterior are full ones here.
HOT = temperature.MOST


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A labelled case, and a model that was not trained on its subject.

    Parameters
    ----------
    identifier, subject : str
    model : Model
    load : callable
        Reads the case.
    definition : mapping of str to sequence of int
        Labels behind each region in this case.
    """

    identifier: str
    subject: str
    model: Model
    load: Callable[[], Case]
    definition: Definition


@dataclass(frozen=True, eq=False)
class _RegionEvidence:
    """What one case says of one region."""

    missed: NDArray[np.float64]
    false: NDArray[np.float64]
    residual: float
    doubts: dict[str, float]
    shape: NDArray[np.float64]
    usual_shape: NDArray[np.float64] | None
    lesions: list[tuple[float, bool]]


def calibrate(
    held_out: Sequence[HeldOut],
    *,
    method: Literal["held-out", "cross-fitted"] = "held-out",
    predict: PredictSettings | None = None,
    settings: CalibrationSettings | None = None,
) -> Calibration:
    """Return what labelled cases say of a model's probabilities, masks and volumes.

    Every case is predicted twice: for the temperatures, and with these for all the rest, as
    :func:`medseg.inference.predict.predict_case` does it. Each subject counts once, by the mean of
    its cases' losses and the largest of their scores.

    Parameters
    ----------
    held_out : sequence of HeldOut
        Of one set of regions, from at least two subjects.
    method : "held-out" or "cross-fitted"
        Whether all have the model itself, or each a network trained without it.
    predict : PredictSettings, optional
    settings : CalibrationSettings, optional

    Raises
    ------
    DataError
        Fewer than two subjects, or a region that no reference has.
    ScanError
        A case without a reference.
    ConfigError
        The labels of a region are not known.
    """
    chosen, asked = settings or CalibrationSettings(), predict or PredictSettings()
    subjects = [one.subject for one in held_out]
    n = _check(held_out, subjects, chosen)
    strata = [_strata(one, asked, chosen, number) for number, one in enumerate(held_out)]
    fits = _temperatures([part for case in strata for part in case], held_out[0].model)
    temperatures = tuple(fit["temperature"] for fit in fits)
    seen: list[list[_RegionEvidence]] = []
    intensities = []
    for one in held_out:
        prediction, evidence = _look(one, temperatures, asked, chosen)
        seen.append(evidence)
        intensities.append(prediction.intensities)
        log.info("calibration: %s is predicted and compared", one.identifier)
    distances = distances_left_out(intensities, intensities, subjects)
    names = held_out[0].model.spec.regions.names
    return Calibration(
        method=method,
        n=n,
        cases=len(held_out),
        coverage=chosen.coverage,
        review_share=chosen.review_share,
        volume_floor=chosen.volume_floor,
        predict=decisive_settings(asked),
        regions={
            name: _region([case[index] for case in seen], subjects, fits[index], chosen)
            for index, name in enumerate(names)
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
    if n < conformal.cases_needed(settings.coverage):
        log.warning(
            "%d subjects promise a coverage of at most %s: for %g there will be no inner and "
            "outer mask and no finite volume interval; that takes %d",
            n,
            conformal.coverage_to_ask(n),
            settings.coverage,
            conformal.cases_needed(settings.coverage),
        )
    return n


def _prepared(one: HeldOut, case: Case) -> PreparedCase:
    if case.label is None:
        raise ScanError(
            f"A calibration compares with references, but case {one.identifier!r} has none.",
            hint="Add its mask, or leave the case out.",
        )
    return prepare_for(one.model, case)


def _strata(
    one: HeldOut, predict: PredictSettings, settings: CalibrationSettings, number: int
) -> list[Stratum]:
    """Return logits inside the brain: of voxels where something is at stake, and of the others."""
    spec = one.model.spec
    hot = replace(one.model, temperatures=(HOT,) * len(spec.regions.names))
    prepared = _prepared(one, one.load())
    label = prepared.label if prepared.label is not None else prepared.brain.int()
    target, _ = encode(label, names=spec.regions.names, definition=one.definition)
    truth = target[:, prepared.brain] > 0.5
    kept = []
    for sample in predict_image(
        hot, prepared.image, settings=predict, source_shape=prepared.source_grid.shape
    ):
        chances = sample.chunk(2)[0] if spec.has_share else sample
        kept.append(chances[:, prepared.brain])
    logits = to_logits(torch.stack(kept), spec.regions.mode).mul_(HOT)
    mean = to_probabilities(logits, mode=spec.regions.mode).mean(dim=0)[-len(truth) :]
    doubtful = ((mean - 0.5).abs() < settings.doubtful) | ((mean > 0.5) != truth)
    at_stake = doubtful.any(dim=0)
    generator = torch_generator(0, "calibration voxels", number)
    strata = []
    for places in (at_stake.nonzero()[:, 0], (~at_stake).nonzero()[:, 0]):
        if len(places):
            order = torch.randperm(len(places), generator=generator)[: settings.voxels]
            drawn = places[order]
            part = logits[:, :, drawn].numpy()
            strata.append(Stratum(part, truth[:, drawn].numpy(), len(places)))
    log.info("calibration: %s is predicted for the temperature", one.identifier)
    return strata


def _temperatures(strata: Sequence[Stratum], model: Model) -> list[dict[str, float]]:
    """Return the temperature of each region and what it mends; classes share one."""
    names, mode = model.spec.regions.names, model.spec.regions.mode
    for index, name in enumerate(names):
        if not any(stratum.truth[index].any() for stratum in strata):
            raise DataError(
                f"A calibration needs a case with region {name!r}, but no reference has a voxel of "
                "it.",
                hint="Add cases with lesions.",
            )
    fits = []
    for index in range(len(names) if mode == "regions" else 1):
        part = [one.of_region(index) for one in strata] if mode == "regions" else strata
        fitted = temperature.fit_temperature(part, mode=mode)
        fits.append(
            {
                "temperature": fitted,
                "nll_before_nats": temperature.nll_nats(part, 1.0, mode=mode),
                "nll_after_nats": temperature.nll_nats(part, fitted, mode=mode),
                "ece_before": temperature.expected_error(part, 1.0, mode=mode),
                "ece_after": temperature.expected_error(part, fitted, mode=mode),
            }
        )
    return fits if mode == "regions" else fits * len(names)


def _look(
    one: HeldOut,
    temperatures: tuple[float, ...],
    predict: PredictSettings,
    settings: CalibrationSettings,
) -> tuple[Prediction, list[_RegionEvidence]]:
    """Return the prediction of a case and what its reference says of it, on the case's grid."""
    case, model = one.load(), replace(one.model, temperatures=temperatures)
    prediction = predict_prepared_case(model, _prepared(one, case), settings=predict)
    label = case.label.data if case.label is not None else torch.zeros(case.grid.shape).int()
    truth, _ = encode(label, names=prediction.regions, definition=one.definition)
    return prediction, [
        _compared(prediction, index, truth[index] > 0.5, predict, settings)
        for index in range(len(prediction.regions))
    ]


def _compared(
    prediction: Prediction,
    index: int,
    truth: Tensor,
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
    fit: Mapping[str, float],
    settings: CalibrationSettings,
) -> RegionCalibration:
    residuals = _worst_of(subjects, [one.residual for one in seen])
    factor = conformal.conformal_quantile(np.array(residuals), settings.coverage)
    shapes = [one.shape for one in seen]
    usual = [one.usual_shape for one in seen]
    indicators = {
        name: _worst_of(subjects, [one.doubts[name] for one in seen]) for name in seen[0].doubts
    }
    indicators["shape"] = _worst_of(subjects, distances_left_out(shapes, usual, subjects))
    shown = [shape for shape in usual if shape is not None]
    missed = _mean_of(subjects, [one.missed for one in seen])
    false = _mean_of(subjects, [one.false for one in seen])
    outer = inner = None
    if len(residuals) >= conformal.cases_needed(settings.coverage):
        allowed = 1.0 - settings.coverage
        outer = conformal.controlled_cut(missed, allowed, safe=0)
        inner = conformal.controlled_cut(false, allowed, safe=-1)
    return RegionCalibration(
        **fit,
        outer_cut=None if outer is None else float(conformal.CUTS[outer]),
        inner_cut=None if inner is None else float(conformal.CUTS[inner]),
        missed_share=None if outer is None else float(missed[:, outer].mean()),
        false_share=None if inner is None else float(false[:, inner].mean()),
        volume_factor=None if math.isinf(factor) else factor,
        volume_residuals=residuals,
        indicators=indicators,
        shape=Typical.of(np.stack(shown)) if shown else None,
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
    """Return the largest score of each subject, sorted."""
    worst: dict[str, float] = {}
    for subject, score in zip(subjects, scores, strict=True):
        worst[subject] = max(score, worst.get(subject, -math.inf))
    return tuple(sorted(worst.values()))


def _mean_of(subjects: Sequence[str], losses: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean loss of each subject at each cut, shape (n, cuts)."""
    per_subject: dict[str, list[NDArray[np.float64]]] = {}
    for subject, loss in zip(subjects, losses, strict=True):
        per_subject.setdefault(subject, []).append(loss)
    return np.stack([np.mean(rows, axis=0) for rows in per_subject.values()])
