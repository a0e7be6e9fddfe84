"""Augmentation of one patch: chance here, effect there.

``draw_*`` functions turn settings and a generator into numbers; the others turn numbers into a
changed patch, the same one every time. Flips, affine and elastic deformation are one map, applied
to image and target by one interpolation each. Intensity changes touch only voxels inside the brain,
so what was set to 0 outside stays 0.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F  # noqa: N812

from medseg.settings import settings

_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


@settings
class PaintSettings:
    """Learned lesions painted into patches.

    Parameters
    ----------
    chance : float
        Probability per patch.
    lesions : Path or "training"
        Folder of learned lesions (``medseg generate`` leaves one in ``OUT/lesions``), or learn them
        from the very cases that are trained on.
    bank : int
        Lesions drawn once and used again and again, turned anew each time.
    learning : dict
        With "training": how, see :class:`medseg.synthesis.lesion_model.LesionSettings`.
    """

    chance: float = Field(default=0.3, ge=0, le=1)
    lesions: Literal["training"] | Path = Field(default="training", union_mode="left_to_right")
    bank: int = Field(default=64, ge=1)
    learning: dict[str, Any] = Field(default_factory=dict)


@settings
class AugmentSettings:
    """How often each change happens and how strong it is at most.

    The names without a unit are probabilities per patch (``flip``: per axis and patch,
    ``modality_dropout``: per channel and patch). Lengths are in voxels, which are taken to be about
    equally long along all axes; intensities in units of the prepared image, standard deviations of
    the brain after z-scoring.

    Parameters
    ----------
    enabled : bool
        False leaves every patch as it is.
    flip, flip_axes
        Axes of the (RAS) image that may be mirrored; 0 is left-right.
    affine, rotation_degrees, log_scale
        Rotation about each axis and log of the scale along each axis, both uniform up to the limit.
    elastic, elastic_voxels, elastic_spacing_voxels
        Standard deviation of the displacement of control points and their distance.
    intensity, log_gain, shift, log_gamma
        Per channel: gain, offset and exponent of the contrast curve.
    noise, noise_std
        Largest standard deviation of added Gaussian noise.
    bias, log_bias, scanner_zero
        Largest log of the smooth multiplicative field, and the value that zero signal has in the
        prepared image: brain tissue averages about three standard deviations above it.
    resolution, resolution_factor
        Largest factor by which one axis is coarsened and brought back.
    modality_dropout
        A present channel is set to 0; the last one never is.
    paint : PaintSettings, optional
        Lesions painted into patches; None for none.
    """

    enabled: bool = True
    flip: float = Field(default=0.5, ge=0, le=1)
    flip_axes: tuple[int, ...] = (0,)
    affine: float = Field(default=0.5, ge=0, le=1)
    rotation_degrees: float = Field(default=15.0, ge=0, le=180)
    log_scale: float = Field(default=0.15, ge=0, le=1)
    elastic: float = Field(default=0.3, ge=0, le=1)
    elastic_voxels: float = Field(default=1.5, ge=0)
    elastic_spacing_voxels: float = Field(default=8.0, gt=1)
    intensity: float = Field(default=0.5, ge=0, le=1)
    log_gain: float = Field(default=0.2, ge=0)
    shift: float = Field(default=0.2, ge=0)
    log_gamma: float = Field(default=0.3, ge=0)
    noise: float = Field(default=0.3, ge=0, le=1)
    noise_std: float = Field(default=0.15, ge=0)
    bias: float = Field(default=0.3, ge=0, le=1)
    log_bias: float = Field(default=0.15, ge=0)
    scanner_zero: float = Field(default=-3.0, le=0)
    resolution: float = Field(default=0.2, ge=0, le=1)
    resolution_factor: float = Field(default=2.0, ge=1)
    modality_dropout: float = Field(default=0.0, ge=0, lt=1)
    paint: PaintSettings | None = None


@dataclass(frozen=True)
class SpatialDraw:
    """One spatial map from patch to volume, both in voxels from their centres.

    Parameters
    ----------
    flips : tuple of bool, one per spatial axis
        Axes that are mirrored, after everything else.
    matrix : Tensor, shape (d, d), optional
        Linear part.
    displacement : Tensor, shape (d, *coarse), optional
        Displacement of control points in voxels, evenly spread over the patch.
    """

    flips: tuple[bool, ...]
    matrix: Tensor | None = None
    displacement: Tensor | None = None

    @property
    def is_exact(self) -> bool:
        """True when no voxel is interpolated."""
        return self.matrix is None and self.displacement is None


def happens(chance: float, generator: Generator) -> bool:
    """Return True with probability ``chance``; one number is drawn whatever the chance."""
    return bool(torch.rand((), generator=generator) < chance)


def _uniform(size: int, limit: float, generator: Generator) -> Tensor:
    return (2 * torch.rand(size, generator=generator) - 1) * limit


def draw_spatial(
    settings: AugmentSettings, *, size: tuple[int, ...], generator: Generator
) -> SpatialDraw:
    """Draw flips, affine and elastic deformation for a patch of ``size`` voxels."""
    dims = len(size)
    flips = tuple(
        happens(settings.flip if axis in settings.flip_axes else 0.0, generator)
        for axis in range(dims)
    )
    matrix = displacement = None
    if happens(settings.affine, generator):
        angles = _uniform(3, math.radians(settings.rotation_degrees), generator)
        scales = _uniform(dims, settings.log_scale, generator).exp()
        matrix = rotation_matrix(angles[:1] if dims == 2 else angles) * scales
    if happens(settings.elastic, generator):
        coarse = [max(3, round(length / settings.elastic_spacing_voxels) + 1) for length in size]
        displacement = torch.randn(dims, *coarse, generator=generator) * settings.elastic_voxels
    return SpatialDraw(flips, matrix, displacement)


def rotation_matrix(angles: Tensor) -> Tensor:
    """Return the rotation by one angle (2D) or about x, then y, then z (3D), in radians.

    Returns
    -------
    Tensor, shape (2, 2) or (3, 3)
    """
    dims = 2 if len(angles) == 1 else 3
    planes = [(0, 1)] if dims == 2 else [(1, 2), (0, 2), (0, 1)]
    matrix = torch.eye(dims)
    for angle, (a, b) in zip(angles, planes, strict=True):
        turn = torch.eye(dims)
        turn[a, a] = turn[b, b] = angle.cos()
        turn[a, b], turn[b, a] = -angle.sin(), angle.sin()
        matrix = turn @ matrix
    return matrix


def reach_voxels(draw: SpatialDraw, size: tuple[int, ...]) -> list[int]:
    """Return how many voxels from its centre the mapped patch reaches along each axis."""
    half = torch.tensor([(length - 1) / 2 for length in size])
    reach = half if draw.matrix is None else draw.matrix.abs() @ half
    if draw.displacement is not None:
        reach = reach + draw.displacement.flatten(1).abs().amax(dim=1)
    return [math.ceil(float(length)) + 1 for length in reach]


def sampling_grid(
    draw: SpatialDraw, *, size: tuple[int, ...], centre: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """Return where each voxel of the patch comes from, in the convention of ``grid_sample``.

    Parameters
    ----------
    draw : SpatialDraw
        The map; its flips are not applied here.
    size : tuple of int
        Shape of the patch.
    centre : Tensor, shape (d,)
        Centre of the patch in voxels of the block that is sampled.
    shape : tuple of int
        Shape of that block.

    Returns
    -------
    Tensor, shape (1, *size, d)
        Last axis in reversed order, -1 and 1 at the outer faces (``align_corners=False``).
    """
    dims = len(size)
    matrix = torch.eye(dims) if draw.matrix is None else draw.matrix
    ramps = [
        (torch.arange(length) - (length - 1) / 2).view(
            [-1 if axis == other else 1 for other in range(dims)]
        )
        for axis, length in enumerate(size)
    ]
    shift: Tensor | list[float] = [0.0] * dims
    if draw.displacement is not None:
        shift = F.interpolate(
            draw.displacement[None], size=size, mode=_INTERPOLATION[dims], align_corners=True
        )[0]
    grid = torch.empty(*size, dims)
    for axis in range(dims):
        voxel = centre[axis] + shift[axis]
        for other in range(dims):
            voxel = voxel + matrix[axis, other] * ramps[other]
        grid[..., dims - 1 - axis] = (2 * voxel + 1) / shape[axis] - 1
    return grid[None]


def warp(block: Tensor, grid: Tensor, *, mode: str) -> Tensor:
    """Return ``block``, shape (c, *s), at the positions of ``grid``; 0 outside the block."""
    return F.grid_sample(block[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]


def flip(patch: Tensor, flips: tuple[bool, ...]) -> Tensor:
    """Return ``patch``, shape (c, *s), mirrored along the spatial axes marked True; exact."""
    axes = [axis + 1 for axis, flipped in enumerate(flips) if flipped]
    return patch.flip(axes) if axes else patch


def change_contrast(
    image: Tensor, inside: Tensor, *, gain: Tensor, shift: Tensor, gamma: Tensor
) -> Tensor:
    """Bend the contrast curve of each channel between its extremes, then scale and shift it.

    Parameters
    ----------
    image : Tensor, shape (c, *s)
    inside : Tensor of bool, shape (c, *s)
        Voxels that may change.
    gain, shift, gamma : Tensor, shape (c,)
        ``((x - low) / (high - low)) ** gamma``, brought back to ``low..high``, times gain plus
        shift.
    """
    shape = (-1, *[1] * (image.ndim - 1))
    axes = tuple(range(1, image.ndim))
    low = torch.where(inside, image, torch.inf).amin(axes, keepdim=True)
    high = torch.where(inside, image, -torch.inf).amax(axes, keepdim=True)
    span = (high - low).clamp_min(1e-6)
    unit = ((image - low) / span).clamp(0, 1)
    bent = unit.pow(gamma.view(shape)) * span + low
    return torch.where(inside, bent * gain.view(shape) + shift.view(shape), image)


def add_noise(image: Tensor, inside: Tensor, *, noise: Tensor) -> Tensor:
    """Add ``noise``, shape (c, *s), inside."""
    return torch.where(inside, image + noise, image)


def multiply_bias(
    image: Tensor, inside: Tensor, *, log_field: Tensor, scanner_zero: float
) -> Tensor:
    """Multiply the signal above ``scanner_zero`` by ``exp(log_field)``, shape (c, *s), inside."""
    return torch.where(inside, (image - scanner_zero) * log_field.exp() + scanner_zero, image)


def coarsen(image: Tensor, inside: Tensor, *, axis: int, factor: float) -> Tensor:
    """Average along spatial ``axis`` to voxels ``factor`` times as long, and interpolate back."""
    size = list(image.shape[1:])
    coarse = list(size)
    coarse[axis] = max(1, round(size[axis] / factor))
    low = F.interpolate(image[None], size=coarse, mode="area")
    back = F.interpolate(low, size=size, mode=_INTERPOLATION[len(size)], align_corners=False)[0]
    return torch.where(inside, back, image)


def smooth_field(coarse: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return control values, shape (c, *coarse), spread smoothly over ``size``."""
    return F.interpolate(
        coarse[None], size=size, mode=_INTERPOLATION[len(size)], align_corners=True
    )[0]


def augment_intensity(
    image: Tensor, brain: Tensor, *, settings: AugmentSettings, generator: Generator
) -> Tensor:
    """Draw and apply resolution, bias field, contrast and noise, in the order of a scanner.

    Parameters
    ----------
    image : Tensor, shape (c, *s)
    brain : Tensor of bool, shape (1, *s) or (c, *s)
        Voxels that may change.
    settings : AugmentSettings
    generator : torch.Generator

    Returns
    -------
    Tensor, shape (c, *s)
    """
    channels, size = image.shape[0], tuple(image.shape[1:])
    inside = brain.expand_as(image)
    if happens(settings.resolution, generator):
        axis = int(torch.randint(len(size), (), generator=generator))
        factor = 1 + float(torch.rand((), generator=generator)) * (settings.resolution_factor - 1)
        image = coarsen(image, inside, axis=axis, factor=factor)
    if happens(settings.bias, generator):
        strength = float(torch.rand((), generator=generator)) * settings.log_bias
        control = torch.rand(channels, *[3] * len(size), generator=generator) * 2 - 1
        field = smooth_field(control * strength, size)
        image = multiply_bias(image, inside, log_field=field, scanner_zero=settings.scanner_zero)
    if happens(settings.intensity, generator):
        gain = _uniform(channels, settings.log_gain, generator).exp()
        shift = _uniform(channels, settings.shift, generator)
        gamma = _uniform(channels, settings.log_gamma, generator).exp()
        image = change_contrast(image, inside, gain=gain, shift=shift, gamma=gamma)
    if happens(settings.noise, generator):
        strength = float(torch.rand((), generator=generator)) * settings.noise_std
        noise = torch.randn(image.shape, generator=generator) * strength
        image = add_noise(image, inside, noise=noise)
    return image


def draw_kept_channels(present: Tensor, *, chance: float, generator: Generator) -> Tensor:
    """Return which present channels stay, shape (c,), bool; one always does if any is present."""
    kept = present & (torch.rand(len(present), generator=generator) >= chance)
    spared = torch.rand(len(present), generator=generator).masked_fill(~present, -1).argmax()
    if bool(present.any()) and not bool(kept.any()):
        kept[spared] = True
    return kept
