"""How far to go back to the source and how sure to be, chosen on the training subjects alone."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medseg.calibration.temperature import LEAST, MOST, Stratum, fit_temperature, nll_nats
from medseg.data.training_set import TrainingCase
from medseg.inference.focused import to_logits
from medseg.inference.posterior import Head, laid_back, sample_probabilities, seen_box
from medseg.inference.settings import PredictSettings
from medseg.inference.temperatures import HOT
from medseg.seeding import numpy_generator, torch_generator
from medseg.training.checkpoint import Checkpoints
from medseg.training.learn import learn
from medseg.training.method import MethodSettings, Source, TrainingPlan
from medseg.training.objectives import MoreScans, ObjectiveSettings
from medseg.training.transfer import after_training

log = logging.getLogger(__name__)

Row = dict[str, float]
#: Shares of the way back that are tried: from none to the source itself.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Where nothing can be left out, or no case has a lesion.
USUAL_SHARE = 0.5
#: Samples of each case, and voxels of its lesions and of the rest of its brain, at most.
_SAMPLES, _MOST_VOXELS = 5, 25_000


@dataclass(frozen=True)
class Choice:
    """What ``auto`` comes to on some cases; any other method is its own choice.

    Parameters
    ----------
    method : MethodSettings
    temperature : float
        The logits of each posterior sample are divided by it.
    rows : sequence of dict
        Of each share: the likeliest temperature, and the negative log-likelihood of the cases left
        out at it, in nats per voxel and region.
    """

    method: MethodSettings
    temperature: float = 1.0
    rows: Sequence[Row] = ()


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
) -> Choice:
    """Return what ``auto`` comes to on these cases; other methods are returned as they are.

    For each part of the subjects a network is trained on the others, and its weights are moved
    several shares of the way back to the source (Wortsman et al. 2022). Share and temperature
    (Guo et al. 2017, section 4.2) are those under which the cases left out are the likeliest, all
    regions together. Only training cases are looked at. A single subject cannot be left out: then
    it is half of the way, as in ``wise``, at temperature 1.

    What is chosen suits one network, trained on fewer cases. An ensemble of several is less sure
    of itself to begin with, so that the same temperature makes it a little shy.

    Parameters
    ----------
    cases, plan, method, objective, source, more, channels, checkpoints
        As in :func:`medseg.training.learn.learn`.
    """
    if method.method != "auto":
        return Choice(method)
    subjects = sorted({case.subject for case in cases})
    usual = Choice(method.resolved(USUAL_SHARE))
    if len(subjects) < 2 or not any(bool(_truth(case).any()) for case in cases):
        log.info("nothing to choose by: share of the way back %s", USUAL_SHARE)
        return usual
    order = numpy_generator(plan.seed, "folds of auto").permutation(len(subjects))
    folds = min(method.folds, len(subjects))
    trained: list[tuple[nn.Module, list[TrainingCase]]] = []
    for fold in range(folds):
        out = {subjects[index] for index in order[fold::folds]}
        network, _ = learn(
            [case for case in cases if case.subject not in out],
            plan,
            method.resolved(0.0),
            objective,
            source=source,
            more=more,
            channels=channels,
            checkpoints=None if checkpoints is None else _of_fold(checkpoints, fold),
        )
        trained.append((network, [case for case in cases if case.subject in out]))
    rows: list[Row] = []
    for share in SHARES:
        tried = method.resolved(share)
        parts = [
            part
            for network, left_out in trained
            for part in _strata(
                after_training(network, plan, tried, source=source), left_out, plan=plan
            )
        ]
        temperature = fit_temperature(parts, mode=plan.regions.mode)
        nats = nll_nats(parts, temperature, mode=plan.regions.mode)
        rows.append({"share": share, "temperature": temperature, "nll_nats": nats})
    best = min(rows, key=lambda row: row["nll_nats"])
    if checkpoints is not None:
        for fold in range(folds):
            _of_fold(checkpoints, fold).clear()
    log.info("share of the way back: %(share)s, temperature %(temperature).2f", best)
    if not 1.01 * LEAST < best["temperature"] < 0.99 * MOST:
        log.warning("temperature %(temperature).3g lies at an end of what is searched", best)
    return Choice(method.resolved(best["share"]), best["temperature"], rows)


def _truth(case: TrainingCase) -> Tensor:
    """Return what is lesion inside the brain, (r, *s); what is not known is not."""
    known = case.known[int(case.has_background) :].view(-1, 1, 1, 1)
    return (case.regions > 0.5) & known & case.brain


def _strata(
    network: nn.Module, cases: Sequence[TrainingCase], *, plan: TrainingPlan
) -> list[Stratum]:
    """Return logits and truth of voxels in the brain, the same ones for any network."""
    mode, device = plan.regions.mode, str(next(network.parameters()).device)
    hot = Head(plan.regions, plan.architecture.dims, HOT, window=plan.patch.size)
    settings = PredictSettings(samples=_SAMPLES, device=device)
    strata: list[Stratum] = []
    for case in cases:
        known = torch.nonzero(case.known[int(case.has_background) :]).flatten().tolist()
        box, shape = seen_box(case.image), case.brain.shape
        seen = case.image[(slice(None), *box)].contiguous()
        drawn = sample_probabilities(network, seen, head=hot, settings=settings)
        chances = torch.stack([laid_back(one, box, shape=shape, mode=mode) for one in drawn])
        truth, inside = _truth(case), case.brain.flatten()
        lesion = truth.any(dim=0).flatten()
        generator = torch_generator(plan.seed, "voxels of auto", case.identifier)
        for places in ((inside & lesion).nonzero()[:, 0], (inside & ~lesion).nonzero()[:, 0]):
            if len(places):
                some = places[torch.randperm(len(places), generator=generator)[:_MOST_VOXELS]]
                logits = to_logits(chances.flatten(2)[:, :, some], mode).mul_(HOT).cpu().numpy()
                part = Stratum(logits, truth.flatten(1)[:, some].numpy(), len(places))
                strata += [part.of_region(i) for i in known] if mode == "regions" else [part]
    return strata


def _of_fold(checkpoints: Checkpoints, fold: int) -> Checkpoints:
    folder = checkpoints.folder.with_name(f"{checkpoints.folder.name}_fold{fold}")
    return replace(checkpoints, folder=folder, key=f"{checkpoints.key}-fold{fold}")
