"""What a preprocessing step promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, TypeVar

from torch import Tensor

from medseg.geometry import Grid
from medseg.scan import LabelMap, Scan

Member = TypeVar("Member", Scan, LabelMap)


class Undo(Protocol):
    """Brings anything on a step's output grid back to the step's input grid."""

    def __call__(self, member: Member, /) -> Member:
        """Return ``member`` on the grid that the step was given."""
        ...


class Step(Protocol):
    """A change of a scan or mask that knows its way back.

    The law: ``undo`` of what ``apply`` returned lies exactly on the input's grid, and holds the
    same labels wherever the step did not remove information (a coarser spacing or a crop does).
    """

    def apply(self, member: Member) -> tuple[Member, Undo]:
        """Return the changed scan or mask, and how to undo the change."""
        ...


def moved(member: Member, data: Tensor, grid: Grid) -> Member:
    """Return ``member`` with other data on another grid."""
    return replace(member, data=data, grid=grid)
