"""Axes in a wanted anatomical order; values are moved, never changed."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.preprocess.resample import BackTo, resample_member
from medseg.preprocess.step import Member, Undo


@dataclass(frozen=True)
class Reorient:
    """The step that swaps and flips axes so that they point along ``orientation``.

    Parameters
    ----------
    orientation : str
        Three letters, one of each pair RL, AP, SI, for example ``"RAS"``. An oblique scan stays
        oblique: each axis goes to the nearest direction.
    """

    orientation: str = "RAS"

    def apply(self, member: Member) -> tuple[Member, Undo]:
        """Return the member with its axes in the wanted order, and the way back."""
        changed = resample_member(member, member.grid.reoriented(self.orientation))
        return changed, BackTo(member.grid)
