"""What is bright but not disease: caps, white dots, vessels, choroid plexus, flow, meninges."""

from __future__ import annotations

import math

import numpy as np
import torch

from medseg.data.phantom.blobs import Density, window
from medseg.data.phantom.contrast import Layer
from medseg.data.phantom.fields import edge, partial_volume_mm, smooth_noise, voxel_points
from medseg.data.phantom.presets import ScannerNumbers
from medseg.data.phantom.subject import Subject
from medseg.geometry import Grid
from medseg.shapes import FloatVolume

_WALK_STEP_MM = 1.0
_CANDIDATES = 5


def draw_confounders(
    subject: Subject, numbers: ScannerNumbers, rng: np.random.Generator
) -> tuple[Layer, ...]:
    """Return the layers that a model must learn not to label."""
    return (
        _caps(subject, rng),
        _white_dots(subject, numbers, rng),
        _flow(subject, rng),
        _choroid(subject, rng),
        _meninges(subject, numbers, rng),
        _sinus(subject, numbers, rng),
        _vessels(subject, numbers, rng),
    )


def _caps(subject: Subject, rng: np.random.Generator) -> Layer:
    """Bright white matter at the ventricles' horns, as in most healthy people."""
    width_mm = float(rng.uniform(1.5, 4.0))
    patches = 0.5 + 0.9 * smooth_noise(subject.grid, correlation_mm=22.0, rng=rng)
    near = torch.exp(-subject.ventricle_mm / width_mm)
    share = near * patches.clamp(0.0, 1.3) * subject.tissue("white", "deep_grey")
    strength = float(rng.uniform(0.03, 0.15))
    return Layer(share, add={"flair": strength, "t2": 0.5 * strength})


def _white_dots(subject: Subject, numbers: ScannerNumbers, rng: np.random.Generator) -> Layer:
    """Small bright dots in white matter that nobody labels (perivascular, unspecific)."""
    share = torch.zeros(subject.grid.shape)
    weight = subject.tissue("white").square() * (subject.depth_mm > 6.0)
    density = Density(weight, subject.grid)
    soft_mm = partial_volume_mm(subject.grid) + 0.3
    for _ in range(int(rng.poisson(numbers.white_dots))):
        place = density.draw(rng)
        radius_mm = float(rng.uniform(0.8, 1.7))
        if place is None:
            break
        box = window(subject.grid, place, radius_mm + 5.0 * soft_mm)
        points = voxel_points_in(subject, box)
        distance = (points - torch.tensor(place)).norm(dim=-1) - radius_mm
        dot = float(rng.uniform(0.4, 1.0)) * edge(distance, width_mm=soft_mm)
        share[box] = torch.maximum(share[box], dot)
    return Layer(share, add={"flair": 0.25, "t2": 0.2, "t1": -0.05, "t1c": -0.05})


def voxel_points_in(subject: Subject, box: tuple[slice, slice, slice]) -> torch.Tensor:
    """Return the world places, shape (u, v, w, 3), of the voxels in a box of a subject's grid."""
    part = subject.grid.crop([axis.start for axis in box], [axis.stop for axis in box])
    return voxel_points(part)


def _flow(subject: Subject, rng: np.random.Generator) -> Layer:
    """Fluid that moves is not suppressed on FLAIR."""
    patches = smooth_noise(subject.grid, correlation_mm=20.0, rng=rng) - 0.4
    share = subject.fluid() * patches.clamp(0.0, 1.5)
    return Layer(share, add={"flair": float(rng.uniform(0.1, 0.45))})


def _choroid(subject: Subject, rng: np.random.Generator) -> Layer:
    noise = smooth_noise(subject.grid, correlation_mm=5.0, rng=rng)
    share = subject.tissue("ventricle") * edge(1.5 - noise, width_mm=0.2)
    strength = float(rng.uniform(0.25, 0.7))
    return Layer(share, add={"t1c": strength, "flair": 0.3 * strength, "t1": 0.15})


def _meninges(subject: Subject, numbers: ScannerNumbers, rng: np.random.Generator) -> Layer:
    patches = smooth_noise(subject.grid, correlation_mm=16.0, rng=rng).clamp(0.0, 1.5)
    share = torch.exp(-((subject.depth_mm / 2.0) ** 2)) * patches
    strength = float(rng.uniform(*numbers.surface))
    return Layer(share, add={"t1c": strength, "flair": 0.15 * strength})


def _sinus(subject: Subject, numbers: ScannerNumbers, rng: np.random.Generator) -> Layer:
    """Draw the sagittal sinus: a bright line on T1c where the midline meets the upper surface."""
    tube = (subject.midline_mm / 2.5).square() + ((subject.depth_mm - 1.0) / 2.5).square()
    heights = voxel_points(subject.grid)[..., 2]
    middle = float(heights[subject.brain].mean())
    share = torch.exp(-tube) * torch.sigmoid((heights - middle) / 5.0)
    return Layer(share, add={"t1c": float(rng.uniform(*numbers.vessels))})


def _vessels(subject: Subject, numbers: ScannerNumbers, rng: np.random.Generator) -> Layer:
    """Bright on T1c, dark on T2 and FLAIR (flow void); they run in the fluid of the sulci."""
    share = _walks(subject, count=int(rng.integers(25, 60)), rng=rng)
    strength = float(rng.uniform(*numbers.vessels))
    return Layer(share, add={"t1c": strength, "t1": 0.1 * strength, "t2": -0.2, "flair": -0.05})


def _walks(subject: Subject, *, count: int, rng: np.random.Generator) -> FloatVolume:
    """Return the share of vessel in each voxel: smooth random walks that seek fluid."""
    grid = subject.grid
    fluid = subject.fluid().numpy()
    start = subject.tissue("csf") * (subject.depth_mm > 1.0) * subject.brain
    density = Density(start, grid)
    places = [density.draw(rng) for _ in range(count)]
    position = np.array([place for place in places if place is not None]).reshape(-1, 3)
    heading = _unit(rng.standard_normal(position.shape))
    radius_mm = rng.uniform(0.5, 1.3, len(position))
    steps = rng.integers(10, 60, len(position))
    lumen = np.zeros(grid.shape, dtype=np.float32)
    share = math.pi * radius_mm**2 * _WALK_STEP_MM / grid.voxel_volume_mm3
    for step in range(int(steps.max(initial=0))):
        turns = heading[:, None] + 0.5 * rng.standard_normal((len(position), _CANDIDATES, 3))
        turns = _unit(turns)
        reached = _voxels(grid, position[:, None] + 3.0 * turns)
        best = np.argmax(fluid[tuple(np.moveaxis(reached, -1, 0))], axis=1)
        heading = turns[np.arange(len(position)), best]
        position = position + _WALK_STEP_MM * heading
        alive = step < steps
        np.add.at(lumen, tuple(_voxels(grid, position[alive]).T), share[alive])
    return torch.from_numpy(np.minimum(lumen, 1.0))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def _voxels(grid: Grid, places_mm: np.ndarray) -> np.ndarray:
    rounded = np.rint(grid.to_voxel(places_mm)).astype(int)
    return np.clip(rounded, 0, np.array(grid.shape) - 1)
