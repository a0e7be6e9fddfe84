"""A calibration from the training cases alone, each predicted by a network trained without it."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from medseg.calibration.record import NAME, Calibration
from medseg.calibration.settings import CalibrationSettings
from medseg.data.source import SubsetSource
from medseg.data.sources.layout import subject_of
from medseg.data.splits import subject_folds
from medseg.errors import ConfigError, DataError
from medseg.experiment.plan import Cohort, ExperimentPlan
from medseg.experiment.single import finetune_target, seen_beside
from medseg.inference.calibrate import HeldOut, calibrate, warn_of_few
from medseg.inference.case_store import CaseStore
from medseg.inference.conditions import ASKED
from medseg.inference.intensity_prior import RefinementSettings
from medseg.inference.model import (
    SPEC_NAME,
    WEIGHTS_NAME,
    Model,
    load_model,
    save_calibration,
    seen_subjects,
)
from medseg.inference.people import seen_among
from medseg.inference.provenance import settings_to_json
from medseg.inference.settings import PredictSettings
from medseg.io.atomic import file_sha256, write_text
from medseg.training.objectives import ObjectiveSettings
from medseg.training.transfer import MethodSettings, Source

log = logging.getLogger(__name__)

#: Networks of folds, what each of them is a network of, and the weights that were trained with
#: them.
FOLDS, BEGUN, TRAINED = "folds", "begun.txt", "trained.txt"
#: What single cases said, while a calibration is not finished.
STATE = "calibration_state"
#: Settings of a calibration that say what is promised.
_PROMISED = ("coverage", "review_share", "volume_floor")


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
    refine: RefinementSettings | None = None,
    other_people: bool = False,
    predict: PredictSettings | None = None,
    settings: CalibrationSettings | None = None,
) -> Model:
    """Fine-tune on every case of the target, and calibrate the model by cross-fitting.

    The model comes first: it stands in ``out``, without a calibration, whatever becomes of the
    rest. Then for each fold of subjects a network is trained like it on the others, and predicts
    them. These networks lie in ``out/folds`` until all is done, so that an interrupted run goes on
    where it stopped; where scans or masks changed meanwhile all is trained anew. What is finished
    is not done again.

    Parameters
    ----------
    plan, method, source, out, key, objective, scans, refine
        As for :func:`medseg.experiment.single.finetune_target`.
    folds : int
        From 2 to the number of subjects.
    other_people : bool
        Subjects of the source, or of more scans, with the names of target subjects are others.
    predict : PredictSettings, optional
        Of the predictions that the calibration is for.
    settings : CalibrationSettings, optional

    Raises
    ------
    ConfigError
        There is a model of another training in ``out``, or another calibration; or somebody's
        folder where the network of a fold would lie.
    DataError
        Before any training: not so many folds, or the source or more scans have people of the
        target, whom no fold then leaves out.

    Notes
    -----
    The networks of the folds are trained on fewer cases than the model and err more, so that
    intervals and masks are wider than the model's own errors ask for. There is no proof that they
    cover, as there is for cases that the model never saw (:func:`calibrate_on`).
    """
    learned, asked = plan.target.source, settings or CalibrationSettings()
    predict = predict or PredictSettings()
    # What cannot be is refused before the first training.
    parts = subject_folds(learned, folds, seed=plan.protocol.seed)
    _refuse_seen(seen_beside(plan, scans, source), learned.subjects, other_people)
    _refuse_strangers([_folder_of(out, number, folds) for number in range(folds)])
    warn_of_few(len(set(learned.subjects)), asked)
    train = partial(
        finetune_target,
        method=method,
        source=source,
        objective=objective,
        scans=scans,
        refine=refine,
    )
    model = _whole_model(plan, out, train=partial(train, key=key))
    if (out / NAME).is_file():
        model = _calibrated_before(out, folds, predict, asked)
        _remove_folds(out / FOLDS)  # where the last run was ended before it could
        return model
    identity = "-".join(model.spec.training[name] for name in ("identity", "data_sha256"))
    held_out: list[HeldOut] = []
    for number, left_out in enumerate(parts):
        kept = [case for case in learned.identifiers if case not in set(left_out)]
        log.info("fold %d of %d: %d cases left out", number + 1, folds, len(left_out))
        fold = _fold_model(
            replace(plan, target=replace(plan.target, source=SubsetSource(learned, kept))),
            _folder_of(out, number, folds),
            hashlib.sha256(f"{identity}-{kept}".encode()).hexdigest(),
            train=train,
        )
        tested = replace(plan.target, source=SubsetSource(learned, left_out))
        held_out += held_out_cases(fold, tested, other_people=other_people)
    fitted = calibrate(
        held_out,
        method="cross-fitted",
        predict=predict,
        settings=asked,
        model=model,
        state=out / FOLDS / STATE,
    )
    fitted = replace(fitted, conditions=fitted.conditions | {"folds": folds})
    kept_as = save_calibration(model, out, fitted)
    _remove_folds(out / FOLDS)
    return replace(model, calibration=kept_as)


def _whole_model(plan: ExperimentPlan, out: Path, *, train: partial[Model]) -> Model:
    """Return the model of all cases; one of this run, unfinished so far, may be trained anew."""
    trained, weights = out / FOLDS / TRAINED, out / WEIGHTS_NAME
    is_ours = weights.is_file() and trained.is_file()
    is_ours = is_ours and trained.read_text() == file_sha256(weights)
    was_there = (out / SPEC_NAME).is_file()
    model = train(plan, out=out, replaces=is_ours)
    if is_ours or not was_there:
        write_text(trained, file_sha256(weights))
    return model


def _calibrated_before(
    out: Path, folds: int, predict: PredictSettings, settings: CalibrationSettings
) -> Model:
    """Return the model with the calibration beside it, which must be the one asked for."""
    model = load_model(out)
    known, wanted = model.calibration, settings_to_json(predict)
    if (
        known is None
        or known.method != "cross-fitted"
        or known.conditions.get("folds") != folds
        or any(known.conditions.get(name) != wanted[name] for name in ASKED)
        or any(getattr(known, name) != getattr(settings, name) for name in _PROMISED)
    ):
        raise ConfigError(
            f"A finished calibration is not written over, but that in {out} is another than one by "
            f"{folds} folds for a coverage of {settings.coverage:g}.",
            hint=f"Give another folder, or delete {NAME} if nobody needs it.",
        )
    log.info("done already: %s is calibrated so", out)
    return model


def _fold_model(
    plan: ExperimentPlan, folder: Path, identity: str, *, train: partial[Model]
) -> Model:
    """Return the network of a fold, trained unless it was before."""
    begun = folder / BEGUN
    if begun.is_file() and begun.read_text() != identity:
        # Of another training: its checkpoints would be refused.
        log.warning("%s is of other settings, scans or masks: it starts anew", folder.name)
        _remove_fold(folder)
    if (folder / SPEC_NAME).is_file():
        log.info("%s was trained before", folder.name)
        return load_model(folder, ignore_calibration=True)
    write_text(begun, identity)
    return train(plan, out=folder, key=identity)


def _folder_of(out: Path, number: int, folds: int) -> Path:
    return out / FOLDS / f"fold_{number + 1}_of_{folds}"


def _refuse_strangers(folders: Sequence[Path]) -> None:
    for folder in folders:
        # Nothing, or what was not written to its end, is nobody's.
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        if BEGUN not in names and any(not name.startswith(".") for name in names):
            raise ConfigError(
                f"The network of a fold lies in a folder of its own, but {folder} was made by "
                "somebody else.",
                hint="Move it away, or give another output folder.",
            )


def _remove_folds(folder: Path) -> None:
    """Remove what cross-fitting made, of any number of folds; whatever else lies there stays."""
    for begun in folder.glob(f"fold_*_of_*/{BEGUN}"):
        _remove_fold(begun.parent)
    (folder / TRAINED).unlink(missing_ok=True)
    CaseStore(folder / STATE).clear()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _remove_fold(folder: Path) -> None:
    """Remove the folder of a fold, its mark last: one half removed is still known as made here."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != BEGUN:
            path.unlink()
    shutil.rmtree(folder)


def held_out_cases(model: Model, cohort: Cohort, *, other_people: bool = False) -> list[HeldOut]:
    """Return the cases of a cohort for a model whose training has not seen their subjects.

    Parameters
    ----------
    model : Model
    cohort : Cohort
    other_people : bool
        Subjects with the names of those seen are others.

    Raises
    ------
    DataError
        It has seen one of them: trained on it, stopped early by it, or through its source, scans
        it learned from beside the target's, or rehearsal.
    """
    _refuse_seen(seen_subjects(model.spec), cohort.source.subjects, other_people)
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


def _refuse_seen(seen: Collection[str], subjects: Sequence[str], other_people: bool) -> None:
    # Models made when fewer words were known of visits have some of these in their subjects' names.
    known = seen_among({*seen, *map(subject_of, seen)}, subjects)
    if known and not other_people:
        raise DataError(
            "A model is calibrated on people that its training has not seen, but it, its source or "
            f"scans beside the target's have {known[:5]} ({len(known)} in all).",
            hint="Give other cases, or fine-tune with --calibrate from a source without them; if "
            "only the names are the same, say --other-people.",
        )


def calibrate_on(
    model: Model,
    cohort: Cohort,
    *,
    folder: Path,
    other_people: bool = False,
    predict: PredictSettings | None = None,
    settings: CalibrationSettings | None = None,
) -> Calibration:
    """Calibrate a model on labelled cases that it never saw, and keep it in the model's folder.

    What single cases say lies in ``folder/calibration_state`` until all is done, so that an
    interrupted calibration goes on where it stopped.
    """
    cases = held_out_cases(model, cohort, other_people=other_people)
    state = folder / STATE
    fitted = calibrate(cases, predict=predict, settings=settings, state=state)
    kept_as = save_calibration(model, folder, fitted)
    CaseStore(state).clear()
    return kept_as
