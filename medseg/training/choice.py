"""How far to go back to the source, chosen on the training subjects alone."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev

from medseg.data.training_set import TrainingCase
from medseg.inference.posterior import Head
from medseg.seeding import numpy_generator
from medseg.training.checkpoint import Checkpoints
from medseg.training.learn import learn
from medseg.training.method import MethodSettings, Source, TrainingPlan
from medseg.training.objectives import MoreScans, ObjectiveSettings
from medseg.training.transfer import after_training
from medseg.training.validation import mean_dice_of

log = logging.getLogger(__name__)

Row = dict[str, object]
#: Shares of the way back that are tried: from none to the source itself.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_SAMPLES = 5


def chosen_method(
    cases: Sequence[TrainingCase],
    plan: TrainingPlan,
    method: MethodSettings,
    objective: ObjectiveSettings | None = None,
    *,
    source: Source | None,
    more: MoreScans | None = None,
    channels: Sequence[str] = (),
    checkpoints: Checkpoints | None = None,
) -> tuple[MethodSettings, list[Row]]:
    """Return what ``auto`` comes to on these cases; other methods are returned as they are.

    For each part of the subjects a network is trained on the others, and its weights are moved
    several shares of the way back to the source. The share with the best mean DSC on the cases left
    out is taken, where it gains more than one standard error over no way back: few cases leave the
    choice to chance (Breiman et al. 1984, section 3.4.3). Only training cases are looked at. A
    single subject cannot be left out: then it is half of the way, as in ``wise``.

    Parameters
    ----------
    cases, plan, method, objective, source, more, channels, checkpoints
        As in :func:`medseg.training.learn.learn`.

    Returns
    -------
    MethodSettings
    list of dict
        Mean DSC of each share over the regions of each case left out: fold, case, share, dsc.
    """
    if method.method != "auto":
        return method, []
    base = method.resolved(0.0)
    subjects = sorted({case.subject for case in cases})
    if len(subjects) < 2:
        return method.resolved(0.5), []
    order = numpy_generator(plan.seed, "folds of auto").permutation(len(subjects))
    folds = min(method.folds, len(subjects))
    head = Head(plan.regions, plan.architecture.dims, window=plan.patch.size)
    rows: list[Row] = []
    for fold in range(folds):
        out = {subjects[index] for index in order[fold::folds]}
        kept = [case for case in cases if case.subject not in out]
        trained, _ = learn(
            kept,
            plan,
            base,
            objective,
            source=source,
            more=more,
            channels=channels,
            checkpoints=None if checkpoints is None else _of_fold(checkpoints, fold),
        )
        for share in SHARES:
            moved = after_training(trained, plan, method.resolved(share), source=source)
            for case in (case for case in cases if case.subject in out):
                dsc = mean_dice_of([case], head=head, samples=_SAMPLES)(moved)
                rows.append({"fold": fold, "case": case.identifier, "share": share, "dsc": dsc})
    if checkpoints is not None:
        for fold in range(folds):
            _of_fold(checkpoints, fold).clear()
    best = best_share(rows)
    log.info("share of the way back to the source: %s", best)
    return method.resolved(best), rows


def best_share(rows: Sequence[Row]) -> float:
    """Return the share that a table of DSC by ``case`` and ``share`` speaks for.

    Every share is there for the same cases, two at least.
    """
    found: dict[float, dict[str, float]] = {}
    for row in rows:
        found.setdefault(float(str(row["share"])), {})[str(row["case"])] = float(str(row["dsc"]))
    none = found[0.0]
    gains = {share: [dsc[case] - none[case] for case in none] for share, dsc in found.items()}
    best = max(gains, key=lambda share: fmean(gains[share]))
    error = stdev(gains[best]) / len(none) ** 0.5
    return best if fmean(gains[best]) > error else 0.0


def _of_fold(checkpoints: Checkpoints, fold: int) -> Checkpoints:
    folder = checkpoints.folder.with_name(f"{checkpoints.folder.name}_fold{fold}")
    return replace(checkpoints, folder=folder, key=f"{checkpoints.key}-fold{fold}")
