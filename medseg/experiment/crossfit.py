"""A calibration from the training cases alone, each predicted by a network trained without it."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from medseg.calibration.record import Calibration
from medseg.calibration.settings import CalibrationSettings
from medseg.data.source import SubsetSource
from medseg.data.splits import subject_folds
from medseg.errors import DataError
from medseg.experiment.plan import Cohort, ExperimentPlan
from medseg.experiment.single import finetune_target, fingerprint
from medseg.inference.calibrate import HeldOut, calibrate
from medseg.inference.model import SPEC_NAME, Model, load_model, save_calibration
from medseg.inference.settings import PredictSettings
from medseg.io.atomic import write_text
from medseg.training.objectives import ObjectiveSettings
from medseg.training.transfer import MethodSettings, Source

log = logging.getLogger(__name__)

#: Networks of folds, and what each of them is a network of.
FOLDS, BEGUN = "folds", "begun.txt"
#: Where a model's record names people whose masks it was made with.
SUBJECTS = ("subjects", "validation_subjects", "scans_subjects")


def finetune_calibrated(
    plan: ExperimentPlan,
    method: MethodSettings,
    *,
    folds: int,
    source: Source | None,
    out: Path,
    key: str,
    objective: ObjectiveSettings | None = None,
    scans: str = "",
    predict: PredictSettings | None = None,
    settings: CalibrationSettings | None = None,
) -> Model:
    """Fine-tune on every case of the target, and calibrate the model by cross-fitting.

    For each fold of subjects a network is trained like the model on the others, and predicts them.
    What is learned so is kept in ``out`` with the model that is trained on all. Networks of folds
    lie in ``out/folds`` until then, so that an interrupted run goes on where it stopped.

    Parameters
    ----------
    plan, method, source, out, key, objective, scans
        As for :func:`medseg.experiment.single.finetune_target`.
    folds : int
        From 2 to the number of subjects.
    predict : PredictSettings, optional
        Of the predictions that the calibration is for.
    settings : CalibrationSettings, optional

    Notes
    -----
    The networks of the folds are trained on fewer cases than the model and err more, so that
    intervals and masks are wider than the model's own errors ask for. There is no proof that they
    cover, as there is for cases that the model never saw (:func:`calibrate_on`).
    """
    learned = plan.target.source
    identity = f"{key}-{method}-{objective}-{scans}-{fingerprint(source)}"
    held_out: list[HeldOut] = []
    # All of them before the first is trained, so that a wrong number costs no training.
    parts = subject_folds(learned, folds, seed=plan.protocol.seed)
    for number, left_out in enumerate(parts):
        kept = [case for case in learned.identifiers if case not in set(left_out)]
        log.info("fold %d of %d: %d cases left out", number + 1, folds, len(left_out))
        model = _fold_model(
            replace(plan, target=replace(plan.target, source=SubsetSource(learned, kept))),
            out / FOLDS / f"fold_{number + 1}_of_{folds}",
            hashlib.sha256(f"{identity}-{kept}".encode()).hexdigest(),
            train=partial(
                finetune_target, method=method, source=source, objective=objective, scans=scans
            ),
        )
        held_out += held_out_cases(
            model, replace(plan.target, source=SubsetSource(learned, left_out))
        )
    fitted = calibrate(held_out, method="cross-fitted", predict=predict, settings=settings)
    model = finetune_target(
        plan, method, source=source, out=out, key=key, objective=objective, scans=scans
    )
    save_calibration(out, fitted)
    shutil.rmtree(out / FOLDS)
    return replace(model, calibration=fitted)


def _fold_model(
    plan: ExperimentPlan, folder: Path, identity: str, *, train: partial[Model]
) -> Model:
    """Return the network of a fold, trained unless it was before."""
    begun = folder / BEGUN
    if folder.exists() and not (begun.is_file() and begun.read_text() == identity):
        # Of another training: its checkpoints would be refused.
        shutil.rmtree(folder)
    if (folder / SPEC_NAME).is_file():
        log.info("%s was trained before", folder.name)
        return load_model(folder)
    write_text(begun, identity)
    return train(plan, out=folder, key=identity)


def held_out_cases(model: Model, cohort: Cohort, *, other_people: bool = False) -> list[HeldOut]:
    """Return the cases of a cohort for a model that was not trained on their subjects.

    Parameters
    ----------
    model : Model
    cohort : Cohort
    other_people : bool
        Subjects with the names of training subjects are others.

    Raises
    ------
    DataError
        It was trained on one of them.
    """
    learned = (model.spec.training.get(key, ()) for key in SUBJECTS)
    known = set[str]().union(*learned) & set(cohort.source.subjects)
    if known and not other_people:
        raise DataError(
            "A model is calibrated on subjects that it was not trained on, but it was on "
            f"{sorted(known)[:5]} ({len(known)} in all).",
            hint="Give other cases, or fine-tune with --calibrate; if only the names are the same, "
            "say --other-people.",
        )
    return [
        HeldOut(
            identifier=case,
            subject=cohort.source.subjects[index],
            model=model,
            load=partial(cohort.source.__getitem__, index),
            definition=cohort.definition,
        )
        for index, case in enumerate(cohort.source.identifiers)
    ]


def calibrate_on(
    model: Model,
    cohort: Cohort,
    *,
    folder: Path,
    other_people: bool = False,
    predict: PredictSettings | None = None,
    settings: CalibrationSettings | None = None,
) -> Calibration:
    """Calibrate a model on labelled cases that it never saw, and keep it in the model's folder."""
    cases = held_out_cases(model, cohort, other_people=other_people)
    fitted = calibrate(cases, predict=predict, settings=settings)
    save_calibration(folder, fitted)
    return fitted
