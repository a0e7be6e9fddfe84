"""Smooth invertible maps from a subject to the template it is made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseg.data.phantom.anatomy import Anatomy
from medseg.data.phantom.fields import axis_grid, sample, smooth_noise, voxel_points
from medseg.data.phantom.presets import AnatomyNumbers
from medseg.geometry import Grid
from medseg.shapes import FloatVolume

_STEP_MM = 4.0
_SQUARINGS = 6
_TAPER_MM = 18.0


@dataclass(frozen=True, eq=False)
class Push:
    """A mass that drives tissue outwards.

    Parameters
    ----------
    centre_mm : tuple of 3 float
        In the subject's world.
    reach_mm : float
        Standard deviation of the Gaussian within which tissue moves.
    strength : float
        Share of its distance to the centre that tissue close to the centre has moved; below 1.
    """

    centre_mm: tuple[float, float, float]
    reach_mm: float
    strength: float


@dataclass(frozen=True, eq=False)
class Deformation:
    """For each place of the subject, the place of the template that is seen there.

    Parameters
    ----------
    offset_mm : Tensor, shape (3, x, y, z)
        Template place minus subject place.
    grid : Grid
        Coarse grid of ``offset_mm`` in the subject's world, along its axes.
    """

    offset_mm: Float[Tensor, "d x y z"]
    grid: Grid

    def template_points(self, points_mm: Float[Tensor, "x y z d"]) -> Float[Tensor, "x y z d"]:
        """Return the template places, mm, of subject places, mm."""
        return points_mm + sample(self.offset_mm, self.grid, points_mm).movedim(0, -1)

    def pushed(self, pushes: Sequence[Push], depth_mm: FloatVolume) -> Deformation:
        """Return the deformation of the subject after masses have grown in it.

        A mass contracts the way back: ``x - s (x - c) exp(-|x - c|^2 / 2 r^2)`` is monotone along
        every ray for s < 1. The push fades out towards the surface, for bone does not give way.

        Parameters
        ----------
        pushes : sequence of Push
        depth_mm : Tensor, shape (x, y, z)
            Depth below the brain's surface on this deformation's grid.
        """
        points = voxel_points(self.grid)
        fade = (depth_mm / _TAPER_MM).clamp(0.0, 1.0)
        fade = (fade * fade * (3.0 - 2.0 * fade))[..., None]
        before = points.clone()
        for push in pushes:
            away = points - torch.tensor(push.centre_mm)
            distance = away.square().sum(dim=-1, keepdim=True)
            weight = push.strength * torch.exp(-distance / (2.0 * push.reach_mm**2))
            before = before - fade * weight * away
        offset = (self.template_points(before) - points).movedim(-1, 0)
        return Deformation(offset, self.grid)


def draw_deformation(
    anatomy: Anatomy, numbers: AnatomyNumbers, rng: np.random.Generator
) -> Deformation:
    """Return a random affine map after the flow of a random stationary velocity field.

    References
    ----------
    Arsigny et al., MICCAI 2006, section 2.2: scaling and squaring.
    """
    corners = anatomy.grid.to_world([[-0.5] * 3, [n - 0.5 for n in anatomy.grid.shape]])
    grid = axis_grid(corners[0], corners[1], (_STEP_MM,) * 3)
    velocity = torch.zeros((3, *grid.shape))
    for correlation_mm, std_mm in numbers.warps:
        noise = [smooth_noise(grid, correlation_mm=correlation_mm, rng=rng) for _ in range(3)]
        velocity += std_mm * torch.stack(noise)
    velocity += float(rng.uniform(*numbers.ventricle_mm)) * _towards_ventricles(anatomy, grid)
    points = voxel_points(grid)
    moved = points + _flow(velocity, grid).movedim(0, -1)
    centre = torch.tensor(anatomy.box_mm().mean(axis=0), dtype=torch.float32)
    matrix = torch.from_numpy(_draw_matrix(numbers, rng)).float()
    template = (moved - centre) @ matrix.T + centre
    return Deformation((template - points).movedim(-1, 0), grid)


def _towards_ventricles(anatomy: Anatomy, grid: Grid) -> Tensor:
    distance = sample(anatomy.ventricle_mm[None], anatomy.grid, voxel_points(grid))
    # A mean over neighbours: the distance has a crease on the ventricles' middle line.
    smooth = torch.nn.functional.avg_pool3d(distance[None], 3, 1, 1, count_include_pad=False)[0, 0]
    slope = torch.stack(torch.gradient(smooth, spacing=_STEP_MM))
    return -slope * torch.exp(-smooth / 12.0)


def _flow(velocity: Tensor, grid: Grid) -> Tensor:
    points = voxel_points(grid)
    offset = velocity / 2**_SQUARINGS
    for _ in range(_SQUARINGS):
        offset = offset + sample(offset, grid, points + offset.movedim(0, -1))
    return offset


def _draw_matrix(numbers: AnatomyNumbers, rng: np.random.Generator) -> np.ndarray:
    """Return a 3 x 3 matrix from subject to template: the inverse of growth, shear and rotation."""
    growth = np.asarray(numbers.log_scale_mean) + rng.normal(0.0, numbers.log_scale_std, 3)
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = rng.normal(0.0, numbers.shear_std, 3)
    matrix = np.diag(np.exp(growth)) @ shear
    for axis, angle in enumerate(rng.normal(0.0, math.radians(numbers.rotation_std_deg), 3)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return np.linalg.inv(matrix)


def jacobian_determinant(deformation: Deformation) -> FloatVolume:
    """Return the change of volume from subject to template at the inner grid points.

    Positive everywhere means that the map is locally invertible, without folds.
    """
    points = voxel_points(deformation.grid)
    moved = deformation.template_points(points)
    nx, ny, nz = (length - 1 for length in deformation.grid.shape)
    columns = [
        moved.diff(dim=axis)[:nx, :ny, :nz] / deformation.grid.spacing_mm[axis] for axis in range(3)
    ]
    return torch.linalg.det(torch.stack(columns, dim=-1))
