"""Intensities on a common scale, measured inside a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from medseg.errors import ScanError, ShapeError
from medseg.preprocess.step import Member, Undo, moved
from medseg.scan import LabelMap

Kind = Literal["zscore", "minmax", "none"]


@dataclass(frozen=True)
class Scaling:
    """``(value - offset) / scale``."""

    offset: float
    scale: float


def scaling(data: Tensor, mask: Tensor, *, kind: Kind) -> Scaling:
    """Return the scaling that a normalisation of ``data`` measures inside ``mask``.

    Parameters
    ----------
    data : Tensor, shape (*s), float
    mask : Tensor, shape (*s), bool
        Where to measure; not empty.
    kind : "zscore", "minmax" or "none"
        To mean 0 and standard deviation 1; to the range 0 to 1; unchanged.

    Raises
    ------
    ScanError
        The values inside the mask are all the same.
    """
    if kind == "none":
        return Scaling(0.0, 1.0)
    inside = data[mask].double()
    offset = inside.mean() if kind == "zscore" else inside.min()
    scale = inside.std(correction=0) if kind == "zscore" else inside.max() - offset
    # Relative: the mean of a million equal float32 values is not exactly their value.
    if not float(scale) > 1e-6 * max(float(inside.abs().max()), 1e-30):
        raise ScanError(
            f"A scan must have contrast in the brain, but it is {float(offset):.6g} everywhere.",
            hint="Check the brain mask and the scan, or leave the modality out.",
        )
    return Scaling(float(offset), float(scale))


def normalise(data: Tensor, mask: Tensor, *, kind: Kind) -> Tensor:
    """Return the normalised values, 0 outside the mask; unchanged everywhere for "none".

    Parameters and errors as :func:`scaling`.
    """
    if kind == "none":
        return data
    measured = scaling(data, mask, kind=kind)
    return ((data - measured.offset) / measured.scale) * mask


@dataclass(frozen=True, eq=False)
class Normalise:
    """The step that normalises scans and leaves masks alone.

    Undoing restores the intensities inside the mask; what was outside is 0.

    Parameters
    ----------
    mask : LabelMap
        Above 0 where to measure, on the grid of the scans.
    kind : "zscore", "minmax" or "none"
        See :func:`scaling`.
    """

    mask: LabelMap
    kind: Kind = "zscore"

    def apply(self, member: Member) -> tuple[Member, Undo]:
        """Return the member with normalised intensities, and the way back."""
        if member.grid.shape != self.mask.grid.shape:
            raise ShapeError(
                f"A scan and its mask must share a grid, but their shapes are {member.grid.shape} "
                f"and {self.mask.grid.shape}.",
                hint="Resample both alike.",
            )
        inside = self.mask.data > 0
        if isinstance(member, LabelMap):
            return member, _Rescale(inside, Scaling(0.0, 1.0), kind="none")
        measured = scaling(member.data, inside, kind=self.kind)
        data = normalise(member.data, inside, kind=self.kind)
        return moved(member, data, member.grid), _Rescale(inside, measured, kind=self.kind)


@dataclass(frozen=True, eq=False)
class _Rescale:
    """Brings normalised scans back to their intensities inside the mask; leaves masks alone."""

    inside: Tensor
    scaling: Scaling
    kind: Kind

    def __call__(self, member: Member, /) -> Member:
        if isinstance(member, LabelMap) or self.kind == "none":
            return member
        data = (member.data * self.scaling.scale + self.scaling.offset) * self.inside
        return moved(member, data, member.grid)
