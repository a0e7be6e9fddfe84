"""Smooth random fields, and reading volumes between voxels, on grids along the world's axes."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor

from medseg.geometry import Grid
from medseg.shapes import FloatVolume

# Root mean square of a cubic B-spline sum over one axis with unit-variance coefficients:
# the integral of the squared cubic B-spline is 151/315.
_BSPLINE_RMS = math.sqrt(151.0 / 315.0)


def axis_grid(low_mm: np.ndarray, high_mm: np.ndarray, spacing_mm: tuple[float, ...]) -> Grid:
    """Return the RAS grid along the world's axes whose voxels cover the box from low to high."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    count = np.maximum(np.ceil((high_mm - low_mm) / spacing - 1e-3), 1).astype(int)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = low_mm + spacing / 2
    return Grid((int(count[0]), int(count[1]), int(count[2])), affine)


def axis_positions_mm(grid: Grid, axis: int) -> Tensor:
    """Return the world positions of the voxel centres along one axis, shape (n,), float64."""
    start, step = float(grid.affine[axis, 3]), float(grid.affine[axis, axis])
    return start + step * torch.arange(grid.shape[axis], dtype=torch.float64)


def voxel_points(grid: Grid) -> Float[Tensor, "x y z 3"]:
    """Return the world position in mm of every voxel centre."""
    axes = [axis_positions_mm(grid, axis).float() for axis in range(3)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _bspline_weights(positions_mm: Tensor, knot_mm: float) -> Float[Tensor, "n m"]:
    extent = float(positions_mm[-1] - positions_mm[0])
    knots = math.ceil(extent / knot_mm) + 4
    offset = (positions_mm - positions_mm[0])[:, None] / knot_mm - (torch.arange(knots) - 1.0)
    distance = offset.abs()
    near = 2.0 / 3.0 - distance**2 + distance**3 / 2.0
    far = (2.0 - distance).clamp(min=0.0) ** 3 / 6.0
    return torch.where(distance < 1.0, near, far).float()


def smooth_noise(grid: Grid, *, correlation_mm: float, rng: np.random.Generator) -> FloatVolume:
    """Return a twice differentiable random field of mean 0 and root mean square about 1.

    A cubic B-spline whose coefficients, one every ``correlation_mm``, are independent and Gaussian.

    Parameters
    ----------
    grid : Grid
        Along the world's axes.
    correlation_mm : float
        Distance of the spline's knots: structures are about this large.
    rng : numpy.random.Generator
        The only source of chance.

    Returns
    -------
    Tensor, shape (x, y, z), float32
    """
    weights = [_bspline_weights(axis_positions_mm(grid, a), correlation_mm) for a in range(3)]
    shape = [weight.shape[1] for weight in weights]
    field = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    for axis in range(3):
        field = apply_along(field, weights[axis], axis)
    return field / _BSPLINE_RMS**3


def apply_along(volume: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Return ``volume`` with a matrix, shape (new, old), applied along one axis."""
    return torch.movedim(torch.tensordot(weights, volume.movedim(axis, 0), dims=1), 0, axis)


def area_average(volume: Tensor, source: Grid, target: Grid, *, width_mm: float) -> Tensor:
    """Return the averages of ``volume``, shape (..., x, y, z), over the voxels of another grid.

    Each new voxel is the mean over a box of ``width_mm`` or of its own size, whichever is larger,
    so that nothing is lost between the voxels of a coarse grid. Outside the source counts as 0.
    Both grids lie along the world's axes.
    """
    for axis in range(3):
        step = float(source.affine[axis, axis])
        width = max(width_mm, target.spacing_mm[axis])
        new = axis_positions_mm(target, axis)[:, None]
        old = axis_positions_mm(source, axis)[None, :]
        overlap = torch.minimum(new + width / 2, old + step / 2) - torch.maximum(
            new - width / 2, old - step / 2
        )
        weights = (overlap.clamp(min=0.0) / width).float()
        volume = apply_along(volume, weights, volume.ndim - 3 + axis)
    return volume


def sample(volume: Tensor, grid: Grid, points_mm: Tensor) -> Tensor:
    """Return linearly interpolated values of ``volume`` at world positions.

    Parameters
    ----------
    volume : Tensor, shape (c, x, y, z)
    grid : Grid
        Of the volume; along the world's axes. Beyond its border the nearest value is taken.
    points_mm : Tensor, shape (u, v, w, 3), mm

    Returns
    -------
    Tensor, shape (c, u, v, w)
    """
    start = torch.tensor(grid.affine[:3, 3], dtype=torch.float32)
    step = torch.tensor(np.diag(grid.affine)[:3].copy(), dtype=torch.float32)
    last = torch.tensor([max(length - 1, 1) for length in grid.shape], dtype=torch.float32)
    # grid_sample counts from -1 to 1 between the first and last centre, last axis first.
    unit = (points_mm - start) / (step * last) * 2.0 - 1.0
    return nnf.grid_sample(
        volume[None],
        unit.flip(-1)[None],
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )[0]


def edge(distance_mm: Tensor, *, width_mm: float) -> Tensor:
    """Return 1 well inside (negative distance), 0 well outside, 0.5 on the border."""
    return torch.sigmoid(-distance_mm / width_mm)


def partial_volume_mm(grid: Grid) -> float:
    """Return the width of :func:`edge` that imitates the averaging over one voxel."""
    return 0.25 * float(np.mean(grid.spacing_mm))
