"""Every objective beside plain segmentation that a configuration may name, and its parts.

To add one: a file with its settings (a literal ``kind``) and its class, one line in
:data:`ObjectiveSettings`, and its parts in :func:`pretext` or :func:`lesson`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.data.regions import RegionSettings
from medseg.data.training_set import TrainingCase
from medseg.errors import TrainingError
from medseg.networks.unet import UNet
from medseg.seeding import seeded_torch
from medseg.training.co_learning import (
    CoLearningNetwork,
    CoLearningObjective,
    CoLearningSettings,
)
from medseg.training.distillation import DistillationSettings
from medseg.training.objective import Objective
from medseg.training.pretext import (
    EncoderView,
    MaskedAutoencoderObjective,
    MaskedAutoencoderSettings,
    PretextSettings,
    RelativePositionObjective,
    RelativePositionSettings,
)
from medseg.training.privileged import PrivilegedObjective, PrivilegedSettings
from medseg.training.rehearsal import RehearsalSettings
from medseg.training.sharing import (
    HardSharingSettings,
    SharingNetwork,
    SharingObjective,
    SoftSharingSettings,
)

#: What a source may be trained by instead of its masks.
PretrainingSettings = Annotated[
    MaskedAutoencoderSettings | RelativePositionSettings, Field(discriminator="kind")
]
#: What may be added to a method of transfer.
ObjectiveSettings = Annotated[
    CoLearningSettings
    | HardSharingSettings
    | SoftSharingSettings
    | PrivilegedSettings
    | DistillationSettings
    | RehearsalSettings,
    Field(discriminator="kind"),
]
#: These learn from more scans than those of the target.
WITH_SCANS = (CoLearningSettings, HardSharingSettings, SoftSharingSettings, RehearsalSettings)
#: These follow a network that the same method trained before.
WITH_TEACHER = (PrivilegedSettings, DistillationSettings)


@dataclass(frozen=True, eq=False)
class MoreScans:
    """Scans that are learned from along with the target's.

    Parameters
    ----------
    cases : sequence of TrainingCase
        Their targets in the order of ``regions``; unknown where there are no masks.
    regions : RegionSettings
        The target's regions, then those of the other disease.
    """

    cases: Sequence[TrainingCase]
    regions: RegionSettings


@dataclass(frozen=True, eq=False)
class Lesson:
    """What the training loop is given, and what is left of it.

    Parameters
    ----------
    module : Module
        Trained; the network itself or something around it.
    objective : Objective
    cases : sequence of TrainingCase
        That the patches are taken from.
    inside : str
        Begin of the names of the network's parameters in the module.
    finished : callable
        Returns the network for the target after the training.
    """

    module: nn.Module
    objective: Objective
    cases: Sequence[TrainingCase]
    inside: str
    finished: Callable[[], nn.Module]


def pretext(settings: PretextSettings, network: UNet, *, seed: int) -> tuple[nn.Module, Objective]:
    """Return what is trained without masks, sharing the weights of ``network``, and by what."""
    if isinstance(settings, MaskedAutoencoderSettings):
        return network, MaskedAutoencoderObjective(settings, seed=seed)
    view = EncoderView(network)
    return view, RelativePositionObjective(settings, view=view, seed=seed)


def pretext_regions(settings: PretextSettings, channels: Sequence[str]) -> RegionSettings:
    """Return names for a head that means no region, so that no fine-tuning takes it for its own."""
    if isinstance(settings, MaskedAutoencoderSettings):
        return RegionSettings(names=tuple(f"restored_{channel}" for channel in channels))
    return RegionSettings(names=(settings.kind,))


def lesson(
    settings: CoLearningSettings | HardSharingSettings | SoftSharingSettings | PrivilegedSettings,
    network: UNet,
    base: Objective,
    cases: Sequence[TrainingCase],
    *,
    more: MoreScans | None,
    regions: RegionSettings,
    channels: Sequence[str],
    teacher: nn.Module | None,
    seed: int,
) -> Lesson:
    """Return the parts of a training by one of the objectives that keep a network's kind.

    Parameters
    ----------
    settings : CoLearningSettings, HardSharingSettings, SoftSharingSettings, PrivilegedSettings
    network : UNet
        Ready to be trained on the target; its weights are shared.
    base : Objective
        That the plain method minimises.
    cases : sequence of TrainingCase
        Of the target.
    more : MoreScans, optional
    regions : RegionSettings
        Of the target.
    channels : sequence of str
        Names of the image's channels.
    teacher : Module, optional
        Trained by the plain method.
    seed : int

    Raises
    ------
    TrainingError
        Scans or channels that the objective needs are not there, or softmax classes.
    """
    if isinstance(settings, PrivilegedSettings):
        return _privileged(settings, network, base, cases, channels, teacher, regions, seed)
    if more is None or not more.cases:
        raise TrainingError(
            f"Objective {settings.kind!r} learns from more scans than the target's, but there are "
            "none.",
            hint="Name a cohort under the arm's scans.",
        )
    every = in_turns([widened(case, regions, more.regions) for case in cases], more.cases)
    if isinstance(settings, CoLearningSettings):
        pair = CoLearningNetwork(network, seed=seed)
        objective = CoLearningObjective(base, settings)
        return Lesson(pair, objective, every, "segmenter.", lambda: network)
    if regions.mode != "regions":
        raise _needs_regions(settings.kind)
    wide = with_more_outputs(network, more.regions.channels, seed=seed)
    strength = settings.strength if isinstance(settings, SoftSharingSettings) else math.inf
    both = SharingNetwork(wide, divided=not math.isinf(strength))
    tied = SharingObjective(base, network=both, regions=len(regions.names), strength=strength)
    finished = lambda: with_fewer_outputs(both.first(), regions.channels)  # noqa: E731
    return Lesson(both, tied, every, "shared.", finished)


def _privileged(
    settings: PrivilegedSettings,
    network: UNet,
    base: Objective,
    cases: Sequence[TrainingCase],
    channels: Sequence[str],
    teacher: nn.Module | None,
    regions: RegionSettings,
    seed: int,
) -> Lesson:
    if regions.mode != "regions":
        raise _needs_regions(settings.kind)
    places = privileged_places(settings, channels)
    objective = PrivilegedObjective(
        base,
        settings,
        channels=places,
        teacher=None if teacher is None else _frozen(teacher),
        seed=seed,
    )
    return Lesson(network, objective, cases, "", lambda: network)


def privileged_places(settings: PrivilegedSettings, channels: Sequence[str]) -> list[int]:
    """Return the places of the privileged channels among those of the image.

    Raises
    ------
    TrainingError
        A name is unknown, or no channel would be left.
    """
    unknown = [name for name in settings.channels if name not in channels]
    if unknown or set(channels) <= set(settings.channels):
        raise TrainingError(
            f"Privileged channels are some of {list(channels)} and not all, but they are "
            f"{list(settings.channels)}.",
            hint="Name those that will be missing when the network is used.",
        )
    return [list(channels).index(name) for name in settings.channels]


def _needs_regions(kind: str) -> TrainingError:
    return TrainingError(
        f"Objective {kind!r} reads each output as a region of its own, but the head is a softmax.",
        hint="Set protocol.regions.mode to regions.",
    )


def _frozen(teacher: nn.Module) -> Callable[[Tensor], Tensor]:
    def logits(image: Tensor) -> Tensor:
        return teacher.to(image.device).eval()(image)

    return logits


def widened(case: TrainingCase, own: RegionSettings, wanted: RegionSettings) -> TrainingCase:
    """Return a case with the regions ``wanted``, of which those that are not its own are unknown.

    The first of ``wanted`` are ``own``.
    """
    missing = wanted.channels - own.channels
    if not missing:
        return case
    target = torch.cat([case.target, case.target.new_zeros((missing, *case.brain.shape))])
    known = torch.cat([case.known, torch.zeros(missing, dtype=torch.bool)])
    return replace(case, target=target, known=known)


def without_masks(case: TrainingCase) -> TrainingCase:
    """Return a case of which no region is known."""
    return replace(case, target=torch.zeros_like(case.target), known=torch.zeros_like(case.known))


def in_turns(first: Sequence[TrainingCase], second: Sequence[TrainingCase]) -> list[TrainingCase]:
    """Return both lists, each repeated until they are equally long, so that patches are half each.

    Examples
    --------
    >>> in_turns(["a"], ["b", "c"])
    ['a', 'a', 'b', 'c']
    """
    length = math.lcm(len(first), len(second))
    return [*first] * (length // len(first)) + [*second] * (length // len(second))


def with_more_outputs(network: UNet, outputs: int, *, seed: int) -> UNet:
    """Return a network that shares the weights of ``network`` but its head, which has more rows.

    The first rows are those of ``network``, the others are drawn.
    """
    with seeded_torch(seed, "more outputs"):
        wide = UNet(replace(network.settings, out_channels=outputs))
    head = wide.head.state_dict()
    for name, value in network.head.state_dict().items():
        head[name][: len(value)] = value
    wide.head.load_state_dict(head)
    for name, part in network.named_children():
        if name != "head":
            setattr(wide, name, part)
    return wide


def with_fewer_outputs(network: UNet, outputs: int) -> UNet:
    """Return a copy of a network whose head has the first ``outputs`` rows only."""
    with seeded_torch(0, "weights to be replaced"):
        narrow = UNet(replace(network.settings, out_channels=outputs))
    state = network.state_dict()
    cut = {n: v[:outputs] if n.startswith("head.") else v for n, v in state.items()}
    narrow.load_state_dict(cut)
    return narrow
