"""Values of one grid on another, through both affines: oblique, flipped and sheared grids alike.

Where a target step is longer than 1.5 source voxels, the source is first blurred by a Gaussian
whose width makes up the difference, so that fine detail is averaged instead of aliased.

References
----------
M. J. Cardoso et al., "Scale factor point spread function matching: beyond aliasing in image
resampling", MICCAI 2015, eq. 6: variance = (f^2 - 1) / (2 sqrt(2 ln 2))^2 for a down-sampling
factor f.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medseg.errors import ShapeError
from medseg.geometry import Grid
from medseg.preprocess.lattice import (
    ParallelAxes,
    blur_matrix,
    bounding_box,
    interpolation_matrix,
    move_voxels,
    parallel_axes,
    voxel_map,
)
from medseg.preprocess.step import Member, Undo, moved
from medseg.scan import LabelMap

Mode = Literal["linear", "nearest"]
_BLUR_ABOVE = 1.5
_FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
# Just under one half, so that rounding does not decide ties.
_MARKED_SHARE = 0.5 - 1e-5
_SLAB_VOXELS = 2_000_000


def resample(
    data: Tensor,
    source: Grid,
    target: Grid,
    *,
    mode: Mode = "linear",
    fill: float = 0.0,
    blur: bool = True,
) -> Tensor:
    """Return volumes of ``source`` on ``target``.

    When every target voxel is a source voxel (a crop, pad, flip or swap of axes), values are moved
    and not interpolated, in either mode.

    Parameters
    ----------
    data : Tensor, shape (n, x, y, z), any type
        Values on ``source``.
    source, target : Grid
        Where the values lie, and where they are wanted.
    mode : "linear" or "nearest"
        Linear computes in float32 wherever it interpolates; nearest keeps the type.
    fill : float
        Value more than half a voxel outside ``source``.
    blur : bool
        Whether linear interpolation blurs first where it must (module text).

    Returns
    -------
    Tensor, shape (n, x', y', z')
        float32 for linear interpolation, else the type of ``data``.

    Raises
    ------
    ShapeError
        ``data`` does not have the shape of ``source``.

    Notes
    -----
    Parallel axes cost three small matrix products; others one ``grid_sample`` in slabs of two
    million voxels, which bounds the memory.
    """
    if data.ndim != 4 or tuple(data.shape[1:]) != source.shape:
        raise ShapeError(
            f"Volumes on a grid of shape {source.shape} have shape (n, *{source.shape}), but these "
            f"have {tuple(data.shape)}.",
            hint="Add the leading axis, or give the grid that belongs to the data.",
        )
    relation = parallel_axes(source, target)
    if relation is not None and relation.is_exact:
        return move_voxels(data, relation, target.shape, fill=fill)
    if mode == "nearest":
        if relation is not None:
            return _nearest_by_axis(data, relation, target.shape, fill=fill)
        return (_sampled(data.double() - fill, source, target, mode=mode) + fill).to(data.dtype)
    sigmas = [_sigma(f) if blur else 0.0 for f in _factors(source, target).tolist()]
    data = data.float() - fill
    if relation is not None:
        return _linear_by_axis(data, relation, target.shape, sigmas) + fill
    return _sampled(_blurred(data, sigmas), source, target, mode=mode) + fill


def resample_labels(data: Tensor, source: Grid, target: Grid) -> Tensor:
    """Return a mask on another grid, 0 outside.

    A voxel is marked when at least half of it is, by unblurred linear interpolation, and takes the
    label with the largest share. Finer masks come out smoother than by nearest neighbour, coarser
    ones keep the volume of lesions about one voxel wide, which a majority vote over the whole
    coarse voxel would lose; and nothing is shifted by half a voxel, as nearest neighbour does at
    even factors.

    Parameters
    ----------
    data : Tensor, shape (x, y, z), an integer type or bool
        Labels on ``source``.
    source, target : Grid
        Where the labels lie, and where they are wanted.

    Returns
    -------
    Tensor, shape (x', y', z'), same type
    """
    relation = parallel_axes(source, target)
    if relation is not None and relation.is_exact:
        return move_voxels(data[None], relation, target.shape)[0]
    best = torch.zeros(target.shape, dtype=data.dtype, device=data.device)
    if not bool(data.any()):
        return best
    # Lesions are small: what lies beyond one voxel of background around them is not looked at.
    low, high = bounding_box(data != 0)
    start = [max(a - 1, 0) for a in low]
    stop = [min(b + 1, n) for b, n in zip(high, source.shape, strict=True)]
    a, b, c = (slice(*ends) for ends in zip(start, stop, strict=True))
    data, source = data[a, b, c], source.crop(start, stop)
    labels = [label for label in torch.unique(data).tolist() if label != 0]
    largest = torch.zeros(target.shape, device=data.device)
    marked = torch.zeros(target.shape, device=data.device)
    # Label by label, so that memory does not grow with their number.
    for label in labels:
        share = resample((data == label).float()[None], source, target, blur=False)[0]
        marked += share
        best[share > largest] = label
        largest = torch.maximum(largest, share)
    return best * (marked >= _MARKED_SHARE)


def resample_member(member: Member, target: Grid) -> Member:
    """Return a scan (linear) or mask (largest share) on ``target``, 0 outside."""
    if isinstance(member, LabelMap):
        return moved(member, resample_labels(member.data, member.grid, target), target)
    return moved(member, resample(member.data[None], member.grid, target)[0], target)


@dataclass(frozen=True)
class BackTo:
    """The undo of every step that changes the grid: back to ``grid``, exactly where it can be."""

    grid: Grid

    def __call__(self, member: Member, /) -> Member:
        """Return the scan or mask on ``grid``."""
        return resample_member(member, self.grid)


@dataclass(frozen=True)
class Resample:
    """The step to another voxel spacing, with right angles and the same field of view.

    Parameters
    ----------
    spacing_mm : tuple of 3 float
        Wanted voxel sizes along the axes, in mm.
    """

    spacing_mm: tuple[float, float, float]

    def apply(self, member: Member) -> tuple[Member, Undo]:
        """Return the member at the wanted spacing, and the way back to its grid."""
        changed = resample_member(member, member.grid.with_spacing(self.spacing_mm))
        return changed, BackTo(member.grid)


def _sigma(factor: float) -> float:
    """Return the blur in source voxels for target steps of ``factor`` source voxels (eq. 6)."""
    return float(np.sqrt(factor**2 - 1) / _FWHM_PER_SIGMA) if factor > _BLUR_ABOVE else 0.0


def _factors(source: Grid, target: Grid) -> NDArray[np.float64]:
    """Return the length of a target step along each source axis, in source voxels, shape (3,)."""
    return np.linalg.norm(voxel_map(source, target)[:3, :3], axis=1)


def _positions(relation: ParallelAxes, j: int, length: int) -> Tensor:
    return relation.step[j] * torch.arange(length, dtype=torch.float64) + relation.start[j]


def _linear_by_axis(
    data: Tensor, relation: ParallelAxes, shape: Sequence[int], sigmas: Sequence[float]
) -> Tensor:
    data = data.permute(0, *(axis + 1 for axis in relation.axes))
    matrices = [
        interpolation_matrix(
            _positions(relation, j, shape[j]),
            data.shape[j + 1],
            sigma=sigmas[relation.axes[j]],
        )
        for j in range(3)
    ]
    # A crop needs only a part of the source: nothing is computed from voxels without weight.
    for j, weights in enumerate(matrices):
        used = torch.nonzero(weights.any(dim=0)).flatten()
        low, n = (int(used[0]), int(used[-1] - used[0]) + 1) if len(used) else (0, 1)
        data, matrices[j] = data.narrow(j + 1, low, n), weights.narrow(1, low, n)
    for weights in matrices:
        # Contracts the first spatial axis and appends the new one: after three times all are in
        # order.
        data = torch.einsum("nabc,pa->nbcp", data, weights.to(data.device))
    return data.contiguous()


def _nearest_by_axis(
    data: Tensor, relation: ParallelAxes, shape: tuple[int, ...], *, fill: float
) -> Tensor:
    data = data.permute(0, *(axis + 1 for axis in relation.axes))
    outside = torch.zeros(shape, dtype=torch.bool)
    for j in range(3):
        index = torch.floor(_positions(relation, j, shape[j]) + 0.5).long()
        length = data.shape[j + 1]
        data = data.index_select(j + 1, index.clamp(0, length - 1).to(data.device))
        beyond = (index < 0) | (index >= length)
        outside |= beyond.reshape([-1 if axis == j else 1 for axis in range(3)])
    return data.masked_fill(outside.to(data.device), fill)


def _blurred(data: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Return data blurred along each axis by its sigma in voxels."""
    for length, sigma in zip(data.shape[1:], sigmas, strict=True):
        weights = blur_matrix(length, sigma=sigma) if sigma > 0 else torch.eye(length)
        data = torch.einsum("nabc,pa->nbcp", data, weights.to(data))
    return data


def _sampled(data: Tensor, source: Grid, target: Grid, *, mode: Mode) -> Tensor:
    """Return data at the target's voxel centres, 0 outside, by ``grid_sample``."""
    matrix = torch.from_numpy(voxel_map(source, target)[:3]).to(data)
    axes = [torch.arange(length).to(data) for length in target.shape]
    plane = target.shape[1] * target.shape[2]
    slabs = torch.split(axes[0], max(1, _SLAB_VOXELS // plane))
    # grid_sample counts in faces of the volume from -1 to 1, last axis first.
    lengths = data.new_tensor(source.shape)
    sampled = []
    for first in slabs:
        steps = [
            first[:, None, None, None] * matrix[:, 0],
            axes[1][:, None, None] * matrix[:, 1],
            axes[2][:, None] * matrix[:, 2],
        ]
        faces = (2 * (steps[0] + steps[1] + steps[2] + matrix[:, 3]) + 1) / lengths - 1
        values = functional.grid_sample(
            data[None],
            faces.flip(-1)[None],
            mode="bilinear" if mode == "linear" else "nearest",
            padding_mode="border",
            align_corners=False,
        )[0]
        sampled.append(values * (faces.abs() <= 1).all(dim=-1))
    return torch.cat(sampled, dim=1)
