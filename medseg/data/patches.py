"""Where patches are taken: near lesions, small ones as often as large, or anywhere in the brain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator, Tensor
from torch.nn import functional as F  # noqa: N812

from medseg.data.augment import SpatialDraw, flip, reach_voxels, sampling_grid, warp


@dataclass(frozen=True, eq=False)
class Components:
    """The connected components of one region, as flat voxel positions.

    Parameters
    ----------
    voxels : ndarray of int, shape (v,)
        Flat positions of all voxels of the region, one component after the other.
    ends : ndarray of int, shape (components,)
        Where each component ends in ``voxels``.
    """

    voxels: NDArray[np.int64]
    ends: NDArray[np.int64]


def find_components(mask: NDArray[np.bool_]) -> Components:
    """Return the components of a mask; voxels that share a corner are connected."""
    numbered = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=np.ones((3,) * mask.ndim), output=numbered)
    voxels = np.flatnonzero(numbered)
    owner = numbered.reshape(-1)[voxels]
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=1)[1:])
    return Components(voxels[order].astype(np.int64), ends.astype(np.int64))


def _integer(below: int, generator: Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


@dataclass(frozen=True, eq=False)
class PlaceIndex:
    """Where the patches of one case can be centred.

    Parameters
    ----------
    shape : tuple of int
        Shape of the volume.
    regions : tuple of Components
        One per known region that is not empty.
    brain : ndarray of int
        Flat positions of the brain's voxels; of all voxels when there is no brain.
    """

    shape: tuple[int, ...]
    regions: tuple[Components, ...]
    brain: NDArray[np.int64]

    @classmethod
    def of(cls, target: Tensor, known: Tensor, brain: Tensor) -> PlaceIndex:
        """Index ``target`` (n, *s), without background channel, ``known`` (n,), ``brain`` (*s)."""
        regions = tuple(
            find_components(channel.numpy() > 0.5)
            for channel, is_known in zip(target, known.tolist(), strict=True)
            if is_known and bool((channel > 0.5).any())
        )
        inside = np.flatnonzero(brain.numpy())
        if not len(inside):
            inside = np.arange(brain.numel())
        return cls(tuple(brain.shape), regions, inside)

    def lesion_voxel(self, generator: Generator) -> tuple[int, ...]:
        """Draw a region, one of its components, and a voxel of that: each evenly.

        Falls back to :meth:`brain_voxel` when the case has no lesion.
        """
        if not self.regions:
            return self.brain_voxel(generator)
        region = self.regions[_integer(len(self.regions), generator)]
        component = _integer(len(region.ends), generator)
        start = int(region.ends[component - 1]) if component else 0
        place = start + _integer(int(region.ends[component]) - start, generator)
        return self._position(int(region.voxels[place]))

    def brain_voxel(self, generator: Generator) -> tuple[int, ...]:
        """Draw a voxel of the brain."""
        return self._position(int(self.brain[_integer(len(self.brain), generator)]))

    def _position(self, flat: int) -> tuple[int, ...]:
        return tuple(int(index) for index in np.unravel_index(flat, self.shape))


def draw_start(
    voxel: Sequence[int], *, size: Sequence[int], shape: Sequence[int], generator: Generator
) -> tuple[int, ...]:
    """Return the first voxel of a patch that contains ``voxel`` somewhere in its middle half.

    Along an axis that is at least as long as the patch, the patch is moved into the volume; along a
    shorter one the volume is centred in it, and the start is negative.
    """
    start = []
    for at, length, total in zip(voxel, size, shape, strict=True):
        offset = length // 4 + _integer(max(length // 2, 1), generator)
        if total < length:
            start.append(-((length - total) // 2))
        else:
            start.append(min(max(at - offset, 0), total - length))
    return tuple(start)


def cut(volume: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return ``volume``, shape (c, *s), from ``start`` over ``size`` voxels; 0 outside it."""
    inner, padding = [slice(None)], []
    for first, length, total in zip(start, size, volume.shape[1:], strict=True):
        low = min(max(first, 0), total)
        high = max(min(first + length, total), low)
        before = min(max(-first, 0), length)
        inner.append(slice(low, high))
        padding.append((before, length - before - (high - low)))
    block = volume[tuple(inner)]
    flat = [amount for pair in reversed(padding) for amount in pair]
    return F.pad(block, flat) if any(flat) else block


def take_patch(
    image: Tensor, target: Tensor, *, start: Sequence[int], size: tuple[int, ...], draw: SpatialDraw
) -> tuple[Tensor, Tensor]:
    """Return the patch of image (linear) and target (nearest) under one spatial map.

    The map is applied where the patch is taken, so a turned patch shows what lies beyond its edges
    rather than zeros. Without affine and elastic part no voxel is interpolated.

    Parameters
    ----------
    image : Tensor, shape (c, *s)
    target : Tensor, shape (n, *s), any type
    start : sequence of int
        First voxel of the patch; may be negative.
    size : tuple of int
        Shape of the patch.
    draw : SpatialDraw
        The map.

    Returns
    -------
    Tensor, shape (c, *size) and Tensor, shape (n, *size), float32
    """
    if draw.is_exact:
        return (
            flip(cut(image, start, size), draw.flips),
            flip(cut(target, start, size).float(), draw.flips),
        )
    reach = reach_voxels(draw, size)
    middle = [first + (length - 1) / 2 for first, length in zip(start, size, strict=True)]
    corner = [int(np.floor(at)) - far for at, far in zip(middle, reach, strict=True)]
    shape = tuple(2 * far + 2 for far in reach)
    centre = torch.tensor([at - first for at, first in zip(middle, corner, strict=True)])
    grid = sampling_grid(draw, size=size, centre=centre, shape=shape)
    patch = warp(cut(image, corner, shape), grid, mode="bilinear")
    labels = warp(cut(target, corner, shape).float(), grid, mode="nearest")
    return flip(patch, draw.flips), flip(labels, draw.flips)
