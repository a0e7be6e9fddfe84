"""Source scans among the few of the target, so that what they taught is not forgotten."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from medseg.data.regions import RegionSettings
from medseg.data.training_set import Batch, Batches, TrainingCase
from medseg.errors import TrainingError
from medseg.settings import settings


@settings
class RehearsalSettings:
    """Some of the batches come from scans of the source, generated ones for instance.

    Of a variational method this is a power prior: the source's likelihood, raised to a power, is
    part of the prior of the target (Ibrahim and Chen 2000, "Power prior distributions for
    regression models", equation 1; Robins 1995, "Catastrophic forgetting, rehearsal and
    pseudorehearsal").
    """

    kind: Literal["rehearsal"] = "rehearsal"
    #: Share of the batches that are the source's.
    share: float = Field(default=0.5, gt=0, lt=1)
    #: The source's scans keep their own looks, or each patch takes those of a scan of the target.
    looks: Literal["own", "target"] = "own"

    @property
    def label(self) -> str:
        """Name in tables."""
        return self.kind if self.looks == "own" else f"{self.kind}_looks"


@dataclass(frozen=True, eq=False)
class Rehearsed:
    """The batches of the target with some of the source evenly in between.

    Parameters
    ----------
    target, source : Batches
    share : float
        Share of the source, above 0 and below 1.
    """

    target: Batches
    source: Batches
    share: float

    def batch(self, step: int) -> Batch:
        """Return batch number ``step``: each sampler is asked for its own in order."""
        before = math.floor(step * self.share)
        if math.floor((step + 1) * self.share) > before:
            return self.source.batch(before)
        return self.target.batch(step - before)


def rehearsed_cases(
    cases: Sequence[TrainingCase], *, given: RegionSettings, wanted: RegionSettings
) -> list[TrainingCase]:
    """Return scans with their targets in the order of ``wanted``.

    Parameters
    ----------
    cases : sequence of TrainingCase
        Their targets in the order of ``given``.
    given, wanted : RegionSettings

    Raises
    ------
    TrainingError
        There is no scan, or one knows none of the target's regions.
    """
    if not cases:
        raise TrainingError(
            "Rehearsal sees other scans between those of the target, but there are none.",
            hint="Name scans with masks of the target's regions: an arm's scans in a YAML, --scans "
            "of medseg finetune.",
        )
    if given.mode != wanted.mode or not set(wanted.names) <= set(given.names):
        raise TrainingError(
            f"Rehearsed scans must be encoded as the target is, {wanted.mode} {wanted.names}, but "
            f"they are {given.mode} {given.names}.",
            hint="Name scans whose masks mark every region of protocol.regions.names.",
        )
    first = int(wanted.mode == "classes")
    order = [*range(first), *(given.names.index(name) + first for name in wanted.names)]
    chosen = [replace(case, target=case.target[order], known=case.known[order]) for case in cases]
    blind = [case.identifier for case in chosen if not bool(case.known[first:].any())]
    if blind:
        raise TrainingError(
            f"Each rehearsed scan must know some of the regions {', '.join(wanted.names)}, but "
            f"{', '.join(blind[:3])} ({len(blind)} in all) know none.",
            hint="Name scans of the target's disease, such as generated ones; for those of another "
            "take the objective hard_sharing or soft_sharing.",
        )
    return chosen
