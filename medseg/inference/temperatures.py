"""Temperatures of a model from labelled cases that it was not trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from medseg.calibration import temperature
from medseg.calibration.settings import CalibrationSettings
from medseg.calibration.temperature import Stratum
from medseg.data.regions import Definition, encode
from medseg.errors import ScanError
from medseg.inference.case_store import CaseStore
from medseg.inference.focused import to_logits
from medseg.inference.model import Model
from medseg.inference.plan import predict_image
from medseg.inference.predict import prepare_for
from medseg.inference.predictor import to_probabilities
from medseg.inference.refinement import held_against
from medseg.inference.settings import PredictSettings
from medseg.metrics.calibration import (
    ReliabilityBin,
    calibration_error,
    negative_log_likelihood_nats,
    pool_reliability,
    reliability_bins,
)
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


def prepared_for(one: HeldOut, case: Case) -> PreparedCase:
    """Return a labelled case as its model wants it."""
    if case.label is None:
        raise ScanError(
            f"A calibration compares with references, but case {one.identifier!r} has none.",
            hint="Add its mask, or leave the case out.",
        )
    return prepare_for(one.model, case)


@dataclass(frozen=True, eq=False)
class RegionError:
    """How far the probabilities of one region were off in the voxels of a brain.

    Parameters
    ----------
    nll_nats : float
        Mean over voxels.
    bins : sequence of ReliabilityBin
        Of as many voxels.
    """

    nll_nats: float
    bins: Sequence[ReliabilityBin]


def errors_of(probability: Tensor, truth: Tensor) -> list[RegionError]:
    """Return how far probabilities (r, m) of regions are off, by their truth (r, m)."""
    return [
        RegionError(negative_log_likelihood_nats(chance, true), reliability_bins(chance, true))
        for chance, true in zip(probability.cpu().numpy(), truth.cpu().numpy(), strict=True)
    ]


def pooled(errors: Sequence[RegionError]) -> tuple[float, float]:
    """Return NLL in nats per voxel and expected calibration error of the voxels of all cases."""
    voxels = [sum(one["count"] for one in error.bins) for error in errors]
    nats = sum(n * error.nll_nats for n, error in zip(voxels, errors, strict=True)) / sum(voxels)
    return nats, calibration_error(pool_reliability([error.bins for error in errors]))


def truth_in_brain(one: HeldOut, prepared: PreparedCase) -> Tensor:
    """Return which voxels of the brain are in each region, (r, m), on the network's grid."""
    label = prepared.label if prepared.label is not None else prepared.brain.int()
    target, _ = encode(label, names=one.model.spec.regions.names, definition=one.definition)
    return target[:, prepared.brain] > 0.5


def strata_of(
    one: HeldOut, predict: PredictSettings, settings: CalibrationSettings, number: int
) -> tuple[list[Stratum], list[RegionError]]:
    """Return logits of voxels where something is at stake and of the others, and what is off.

    Logits are the network's, which a refinement takes for its prior, inside the brain. They are
    divided by the temperature of the model itself, so that those of networks of several folds are
    of one kind. What is off, of each region, are the probabilities that a prediction at this
    temperature gives, refined where it is.
    """
    spec = one.model.spec
    hot = replace(one.model, temperatures=(HOT,) * len(spec.regions.names))
    prepared = prepared_for(one, one.load())
    truth = truth_in_brain(one, prepared)
    kept = []
    for sample in predict_image(
        hot, prepared.image, settings=predict, source_shape=prepared.source_grid.shape
    ):
        chances = sample.chunk(2)[0] if spec.has_share else sample
        kept.append(chances[:, prepared.brain])
    logits = to_logits(torch.stack(kept), spec.regions.mode).mul_(HOT / spec.temperature)
    samples = to_probabilities(logits, mode=spec.regions.mode)
    mean = samples.mean(dim=0)[-len(truth) :]
    refines = predict.refine and spec.intensities is not None
    written = _refined(samples, prepared, one.model) if refines else mean
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
    return strata, errors_of(written, truth)


def kept_strata(
    one: HeldOut,
    key: str,
    store: CaseStore,
    predict: PredictSettings,
    settings: CalibrationSettings,
    number: int,
) -> tuple[list[Stratum], list[RegionError]]:
    """Return what :func:`strata_of` does, from the store where it lies there under ``key``."""
    kept = store.load(key)
    if kept is not None:
        arrays, values = kept
        parts = [
            Stratum(arrays[f"logits{i}"], arrays[f"truth{i}"], voxels)
            for i, voxels in enumerate(values["voxels"])
        ]
        return parts, [RegionError(**error) for error in values["errors"]]
    parts, errors = strata_of(one, predict, settings, number)
    arrays = {f"logits{i}": part.logits for i, part in enumerate(parts)}
    arrays |= {f"truth{i}": part.truth for i, part in enumerate(parts)}
    values = {"voxels": [part.voxels for part in parts], "errors": [asdict(e) for e in errors]}
    store.save(key, arrays, values)
    return parts, errors


def _refined(samples: Tensor, prepared: PreparedCase, model: Model) -> Tensor:
    """Return the mean probability (r, m) of samples (K, c, m) in the brain, as predict refines."""
    names, brain = model.spec.regions.names, prepared.brain

    def laid(sample: Tensor) -> Tensor:
        whole = sample.new_zeros((len(sample), *brain.shape))
        whole[:, brain] = sample
        return whole

    held = held_against(map(laid, samples), prepared.image, brain, names, model.spec.intensities)
    total = torch.zeros_like(samples[0])
    for sample in held:
        total += sample[:, brain]
    return (total / len(samples))[-len(names) :]


def fit_temperatures(strata: Sequence[Stratum], model: Model) -> list[float]:
    """Return the temperature of each region for a model; classes share one."""
    names, mode = model.spec.regions.names, model.spec.regions.mode
    fits = []
    for part in _parts(strata, model):
        fitted = temperature.fit_temperature(part, mode=mode)
        if not 1.01 * temperature.LEAST < fitted < 0.99 * temperature.MOST:
            log.warning("temperature %.3g lies at an end of what is searched", fitted)
        fits.append(fitted * model.spec.temperature)
    return fits if mode == "regions" else fits * len(names)


def temperatures_left_out(
    strata: Mapping[str, Sequence[Stratum]], model: Model
) -> dict[str, tuple[float, ...]]:
    """Return the temperatures of each region that a subject's case is judged with.

    They are fitted to all other subjects: a subject's own masks must not mend the probabilities
    that these masks are then compared with, as those of the next case cannot. In units of the
    model's own; 1 where no other subject has the region.

    Parameters
    ----------
    strata : mapping of subject to Stratum
    model : Model
    """
    names, mode = model.spec.regions.names, model.spec.regions.mode
    found: dict[str, tuple[float, ...]] = {}
    for subject in strata:
        others = [one for whose, own in strata.items() if whose != subject for one in own]
        fitted = tuple(
            temperature.fit_temperature(part, mode=mode)
            if any(one.truth.any() for one in part)
            else 1.0
            for part in _parts(others, model)
        )
        found[subject] = fitted if mode == "regions" else fitted * len(names)
    return found


def _parts(strata: Sequence[Stratum], model: Model) -> list[list[Stratum]]:
    """Return what each temperature is fitted to: a region's own channel, or all classes."""
    if model.spec.regions.mode == "classes":
        return [list(strata)]
    return [[one.of_region(i) for one in strata] for i in range(len(model.spec.regions.names))]
