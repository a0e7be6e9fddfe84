"""A translator at work on one case."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor, nn

from medseg.errors import GeometryError, ScanError
from medseg.geometry import Grid
from medseg.preprocess.brain import brain_mask
from medseg.preprocess.normalise import scaling
from medseg.preprocess.prepare import prepare
from medseg.scan import Case, Scan
from medseg.translation.generator import CyclePair
from medseg.translation.model import Translator
from medseg.translation.resolution import match_slices, thicken
from medseg.translation.slices import stack_neighbours

log = logging.getLogger(__name__)
_SLICES_AT_ONCE = 16
# Longest voxel edge over the shortest, above which slices count as thick.
_THICK = 1.5


def translate(translator: Translator, case: Case) -> dict[str, Scan]:
    """Return the scans that a translator makes of a case, by modality.

    A made modality lies on the case's own grid, is 0 outside the brain and has the grey values of
    the training cases. Super-resolution returns each of the translator's modalities that the case
    has, on a grid of the same extent with thinner slices, in its own grey values.

    Raises
    ------
    ScanError
        The case lacks a modality, or has no contrast in the brain.
    ShapeError
        The case has too few slices.
    GeometryError
        Super-resolution is asked of a case without thick slices.
    """
    settings = translator.settings
    if settings.method == "super_resolution":
        names = [name for name in settings.channels if name in case.scans]
        if not names:
            raise ScanError(
                f"Case {case.identifier!r} must have one of {list(settings.channels)}, but has "
                f"{sorted(case.scans)}."
            )
        return {name: thin_slices(translator, case, name) for name in names}
    prepared = prepare(case, channels=settings.channels, settings=settings.preprocess)
    stacks = stack_neighbours(prepared.image, reach=settings.neighbours)
    made = by_slices(translator.network, stacks)[0]
    made = (made * translator.grey.scale + translator.grey.offset).clamp(min=0.0) * prepared.brain
    data = prepared.to_source(made[None], mode="linear")[0]
    return {str(settings.target): Scan(data.float().contiguous(), case.grid)}


def thin_slices(translator: Translator, case: Case, name: str) -> Scan:
    """Return a scan with ``factor`` thin slices for each thick one, which average to it.

    Raises
    ------
    ShapeError
        There is only one slice.
    GeometryError
        All voxel edges are about equally long.
    """
    settings, scan = translator.settings, case.scans[name]
    axis = thick_axis(scan.grid)
    scale = scaling(scan.data, brain_mask(case).data > 0, kind="zscore")
    planes = ((scan.data - scale.offset) / scale.scale).movedim(axis, 0)[None]
    stacks = stack_neighbours(planes, reach=settings.neighbours)
    thin = by_slices(translator.network, stacks)[0] * scale.scale + scale.offset
    # Once more in the scan's own units, where rounding would show.
    thick = scan.data.movedim(axis, 0).double()[None, None].flatten(3)
    exact = match_slices(thin.double()[None, None].flatten(3), thick, settings.factor)
    data = exact.reshape(thin.shape).float().movedim(0, axis)
    return Scan(data.contiguous(), thinner(scan.grid, axis=axis, factor=settings.factor))


@torch.no_grad()
def by_slices(network: nn.Module, stacks: Tensor) -> Tensor:
    """Return what a network makes of stacks (c, x, y, z), slice by slice, (n, x', y', z)."""
    device = next(network.parameters()).device
    run = network.translate if isinstance(network, CyclePair) else network
    network.eval()
    slices = stacks.movedim(-1, 0)
    made = [run(part.to(device)).cpu() for part in slices.split(_SLICES_AT_ONCE)]
    return torch.cat(made).movedim(0, -1)


def thick_axis(grid: Grid) -> int:
    """Return the axis of the longest voxel edge.

    Raises
    ------
    GeometryError
        It is less than 1.5 times as long as the shortest one.
    """
    spacing = grid.spacing_mm
    if max(spacing) < _THICK * min(spacing):
        raise GeometryError(
            f"Super-resolution is for slices thicker than {_THICK} times the other voxel edges, "
            f"but the voxels are {tuple(round(s, 3) for s in spacing)} mm.",
            hint="This scan needs none.",
        )
    return int(np.argmax(spacing))


def thinner(grid: Grid, *, axis: int, factor: int) -> Grid:
    """Return the grid that divides each slice of ``grid`` along ``axis`` into ``factor``."""
    shape = list(grid.shape)
    shape[axis] *= factor
    divide = np.eye(4)
    divide[axis, axis] = 1 / factor
    divide[axis, 3] = (1 - factor) / (2 * factor)
    return Grid((shape[0], shape[1], shape[2]), grid.affine @ divide)


def average_slices(data: Tensor, *, axis: int, factor: int) -> Tensor:
    """Return the averages of ``factor`` slices in a row of a volume (x, y, z)."""
    planes = data.movedim(axis, 0)[None, None].flatten(3)
    rest = data.movedim(axis, 0).shape[1:]
    return thicken(planes, factor)[0, 0].unflatten(1, rest).movedim(0, axis)
