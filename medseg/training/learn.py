"""A training by any objective: pretraining without masks, and methods of transfer with more."""

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

import torch
from torch import nn

from medseg.data.training_set import TrainingCase
from medseg.errors import TrainingError
from medseg.networks.unet import UNet
from medseg.training.checkpoint import Checkpoints
from medseg.training.distillation import (
    DistillationObjective,
    DistillationSettings,
    posterior_teacher,
)
from medseg.training.loop import TrainingResult, train
from medseg.training.objective import SegmentationObjective
from medseg.training.objectives import (
    WITH_TEACHER,
    MoreScans,
    ObjectiveSettings,
    lesson,
    pretext,
    without_masks,
)
from medseg.training.pretext import PretextSettings, RelativePositionSettings
from medseg.training.privileged import PrivilegedSettings
from medseg.training.rehearsal import RehearsalSettings, Rehearsed, rehearsed_cases
from medseg.training.transfer import (
    VARIATIONAL,
    MethodSettings,
    Source,
    TrainingPlan,
    after_training,
    deterministic_objective,
    finetune,
    new_network,
    patch_sampler,
    started,
)
from medseg.variational.convert import to_deterministic


def pretrain(
    cases: Sequence[TrainingCase],
    plan: TrainingPlan,
    settings: PretextSettings,
    *,
    checkpoints: Checkpoints | None = None,
) -> tuple[UNet, TrainingResult]:
    """Return a new network that learned from scans without looking at a mask.

    For relative positions the patches are as large as three cubes and are not flipped. The head
    means nothing; after relative positions the way up is as it was drawn, too.
    """
    network = new_network(plan.architecture, seed=plan.seed)
    module, objective = pretext(settings, network, seed=plan.seed)
    if isinstance(settings, RelativePositionSettings):
        size = (settings.patch_side,) * plan.architecture.dims
        plan = replace(
            plan,
            augment=replace(plan.augment, flip=0.0),
            patch=replace(plan.patch, size=size),
        )
    result = train(
        module,
        objective,
        patch_sampler([without_masks(case) for case in cases], plan),
        settings=plan.training,
        checkpoints=checkpoints,
    )
    return network, result


def learn(
    cases: Sequence[TrainingCase],
    plan: TrainingPlan,
    method: MethodSettings,
    objective: ObjectiveSettings | None = None,
    *,
    source: Source | None = None,
    more: MoreScans | None = None,
    channels: Sequence[str] = (),
    checkpoints: Checkpoints | None = None,
) -> tuple[nn.Module, TrainingResult]:
    """Return a network for the target, trained by one method and, where given, one more objective.

    All see patches of the same number, size and order of chance for the same number of steps; what
    has a teacher trains that before, for as many.

    Parameters
    ----------
    cases, plan, method, source, checkpoints
        As in :func:`medseg.training.transfer.finetune`.
    objective : ObjectiveSettings, optional
    more : MoreScans, optional
        What else is learned from, for objectives that do.
    channels : sequence of str
        Names of the image's channels, for privileged ones.

    Raises
    ------
    TrainingError
        What the method or the objective needs is not there, or they do not go together.
    """
    if objective is None:
        return finetune(cases, plan, method, source=source, checkpoints=checkpoints)
    if isinstance(objective, RehearsalSettings):
        given = MoreScans((), plan.regions) if more is None else more
        old = rehearsed_cases(given.cases, given=given.regions, wanted=plan.regions)
        batches = Rehearsed(
            patch_sampler(cases, plan),
            patch_sampler(old, plan, in_looks_of=cases if objective.looks == "target" else ()),
            share=objective.share,
        )
        return finetune(
            cases, plan, method, source=source, checkpoints=checkpoints, batches=batches
        )
    _check_pair(method, objective)
    teacher, inner = None, _for_teacher(checkpoints)
    if isinstance(objective, WITH_TEACHER) and _follows(objective):
        teacher, _ = finetune(cases, plan, method, source=source, checkpoints=inner)
    if isinstance(objective, DistillationSettings):
        made = distil(cases, plan, objective, teacher=teacher, checkpoints=checkpoints)
    else:
        made = _with_lesson(
            cases, plan, method, objective, source, more, channels, teacher, checkpoints
        )
    if inner is not None:
        inner.clear()
    return made


def _check_pair(method: MethodSettings, objective: ObjectiveSettings) -> None:
    distils = isinstance(objective, DistillationSettings)
    if distils != (method.method in VARIATIONAL):
        raise TrainingError(
            f"Distillation takes the samples of a variational method ({', '.join(VARIATIONAL)}) "
            "and the other objectives take the others, but they are "
            f"{method.method!r} and {objective.kind!r}.",
            hint="Change the arm's method or its objective.",
        )


def _follows(objective: PrivilegedSettings | DistillationSettings) -> bool:
    if isinstance(objective, DistillationSettings):
        return True
    if isinstance(objective, PrivilegedSettings):
        return objective.teacher == "trained" and objective.weight > 0
    assert_never(objective)


def _for_teacher(checkpoints: Checkpoints | None) -> Checkpoints | None:
    if checkpoints is None:
        return None
    folder = checkpoints.folder / "teacher"
    return replace(checkpoints, folder=folder, key=f"{checkpoints.key}-teacher")


def _with_lesson(
    cases: Sequence[TrainingCase],
    plan: TrainingPlan,
    method: MethodSettings,
    objective: ObjectiveSettings,
    source: Source | None,
    more: MoreScans | None,
    channels: Sequence[str],
    teacher: nn.Module | None,
    checkpoints: Checkpoints | None,
) -> tuple[nn.Module, TrainingResult]:
    network, fresh = started(plan, method, source)
    if isinstance(objective, DistillationSettings | RehearsalSettings):
        raise TrainingError(f"Objective {objective.kind!r} has no lesson of its own.")
    taught = lesson(
        objective,
        network,
        deterministic_objective(network, plan, method, fresh),
        cases,
        more=more,
        regions=plan.regions,
        channels=channels,
        teacher=teacher,
        seed=plan.seed,
    )
    result = train(
        taught.module,
        taught.objective,
        patch_sampler(taught.cases, plan),
        settings=plan.training,
        fresh=tuple(f"{taught.inside}{name}" for name in fresh),
        checkpoints=checkpoints,
    )
    return after_training(taught.finished(), plan, method, source=source), result


def distil(
    cases: Sequence[TrainingCase],
    plan: TrainingPlan,
    settings: DistillationSettings,
    *,
    teacher: nn.Module | None,
    checkpoints: Checkpoints | None,
) -> tuple[nn.Module, TrainingResult]:
    """Return one network with the mean and the uncertainty of a variational one.

    Raises
    ------
    TrainingError
        There is no teacher, or its head is a softmax.
    """
    if teacher is None or plan.regions.mode != "regions":
        raise TrainingError(
            "A student reads each output of its teacher as a region of its own, but the head is a "
            f"{plan.regions.mode!r} one.",
            hint="Set protocol.regions.mode to regions.",
        )
    student = student_of(teacher, plan)
    labels = SegmentationObjective(mode="regions", settings=plan.loss, network=student)
    result = train(
        student,
        DistillationObjective(
            settings,
            teacher=posterior_teacher(teacher, samples=settings.samples, seed=plan.seed),
            base=labels,
        ),
        patch_sampler(cases, plan),
        settings=plan.training,
        checkpoints=checkpoints,
    )
    return student, result


def student_of(teacher: nn.Module, plan: TrainingPlan) -> UNet:
    """Return a network with twice the outputs that starts from a variational one's mean weights."""
    outputs = plan.architecture.out_channels
    student = new_network(replace(plan.architecture, out_channels=2 * outputs), seed=plan.seed)
    state, known = student.state_dict(), to_deterministic(teacher).state_dict()
    with torch.no_grad():
        for name, value in known.items():
            if name.startswith("head."):
                state[name][:outputs] = value
            else:
                state[name].copy_(value)
    student.load_state_dict(state)
    return student
