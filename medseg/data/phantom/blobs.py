"""Two families of irregular bodies: balls with a noisy radius, and melted unions of balls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseg.data.phantom.fields import smooth_noise
from medseg.geometry import Grid
from medseg.shapes import FloatVolume

Vector = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Blob:
    """An irregular body of about one radius.

    Parameters
    ----------
    centre_mm : tuple of 3 float
    radius_mm : float
        Of the ball with about the same volume.
    stretch : ndarray, shape (3, 3)
        Maps an offset from the centre to one in which the body is round; determinant 1.
    balls : tuple of (offset, radius) pairs, in units of ``radius_mm``
        Empty for the family with a noisy radius.
    """

    centre_mm: Vector
    radius_mm: float
    stretch: np.ndarray
    balls: tuple[tuple[Vector, float], ...] = ()

    def level_mm(self, points_mm: Float[Tensor, "*s d"], roughness: Tensor) -> Tensor:
        """Return about the distance to the surface, negative inside.

        Parameters
        ----------
        points_mm : Tensor, shape (*s, 3)
        roughness : Tensor, shape (*s)
            Relative change of the radius at each place.
        """
        matrix = torch.from_numpy(self.stretch).float()
        round_mm = (points_mm - torch.tensor(self.centre_mm)) @ matrix.T
        if not self.balls:
            return round_mm.norm(dim=-1) - self.radius_mm * (1.0 + roughness)
        # A soft minimum of the distances to the balls melts them into one body.
        blend_mm = 0.16 * self.radius_mm
        total = torch.zeros(round_mm.shape[:-1])
        for offset, radius in self.balls:
            away = (round_mm - self.radius_mm * torch.tensor(offset)).norm(dim=-1)
            total = total + torch.exp(
                -(away - radius * self.radius_mm).clamp(min=-40 * blend_mm) / blend_mm
            )
        level = -blend_mm * torch.log(total.clamp(min=1e-20))
        return level - 0.35 * roughness * self.radius_mm


def draw_blob(
    *,
    centre_mm: Vector,
    radius_mm: float,
    family: Literal["noise", "metaballs"],
    elongation: float,
    rng: np.random.Generator,
    long_axis: np.ndarray | None = None,
) -> Blob:
    """Return a blob with random axes; ``elongation`` is the log-ratio's standard deviation."""
    axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    log_length = rng.normal(0.0, elongation, 3)
    if long_axis is not None:
        axes[:, 0] = long_axis
        axes = np.linalg.qr(axes)[0]
        log_length[0] = abs(log_length[0]) + 1.6 * elongation
    log_length -= log_length.mean()
    stretch = axes @ np.diag(np.exp(-log_length)) @ axes.T
    balls: list[tuple[Vector, float]] = []
    if family == "metaballs":
        for _ in range(int(rng.integers(3, 9))):
            direction = rng.standard_normal(3)
            offset = direction / np.linalg.norm(direction) * rng.uniform(0.2, 0.7)
            balls.append(
                (
                    (float(offset[0]), float(offset[1]), float(offset[2])),
                    float(rng.uniform(0.4, 0.75)),
                )
            )
    return Blob(centre_mm, radius_mm, stretch, tuple(balls))


def draw_roughness(
    grid: Grid, *, large_mm: float, small_mm: float, rng: np.random.Generator
) -> FloatVolume:
    """Return a field of relative radius changes with coarse and fine structure."""
    large = smooth_noise(grid, correlation_mm=large_mm, rng=rng)
    small = smooth_noise(grid, correlation_mm=small_mm, rng=rng)
    return (0.24 * large + 0.11 * small).clamp(-0.6, 0.7)


def window(grid: Grid, centre_mm: Sequence[float], reach_mm: float) -> tuple[slice, slice, slice]:
    """Return the voxels within ``reach_mm`` of a place along each axis, at least one."""
    centre = grid.to_voxel(centre_mm)
    reach = reach_mm / np.array(grid.spacing_mm)
    last = np.array(grid.shape) - 1
    start = np.clip(np.floor(centre - reach), 0, last).astype(int)
    stop = np.clip(np.ceil(centre + reach), 0, last).astype(int) + 1
    first, second, third = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return first, second, third


class Density:
    """Where things may lie: places are drawn in proportion to a weight per voxel.

    Parameters
    ----------
    weight : Tensor, shape (x, y, z)
        Not negative.
    grid : Grid
    """

    def __init__(self, weight: FloatVolume, grid: Grid) -> None:
        self._grid = grid
        self._voxels = torch.nonzero(weight > 0)
        self._total = torch.cumsum(weight[weight > 0].double(), dim=0).numpy()

    def draw(self, rng: np.random.Generator) -> Vector | None:
        """Return a world place in mm, or None where the weight is 0 everywhere."""
        if self._total.size == 0:
            return None
        drawn = int(np.searchsorted(self._total, rng.uniform(0.0, self._total[-1]), side="right"))
        voxel = self._voxels[min(drawn, self._total.size - 1)].numpy()
        x, y, z = self._grid.to_world(voxel + rng.uniform(-0.5, 0.5, 3))
        return float(x), float(y), float(z)
