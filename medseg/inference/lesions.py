"""The lesions of a prediction, each with the share of posterior samples that has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.geometry import Grid
from medseg.metrics.lesions import (
    LesionSettings,
    covered_shares,
    describe_lesions,
    is_found,
    label_lesions,
)


@dataclass(frozen=True)
class Lesion:
    """One connected component of a predicted region.

    Parameters
    ----------
    region : str
    lesion : int
        1 is the largest of its region.
    volume_mm3 : float
    x_mm, y_mm, z_mm : float
        Centroid in the world, RAS.
    probability : float
        Share of posterior samples whose mask covers enough of it (the matching rule of the
        settings).
    mean_std : float
        Mean over its voxels of the standard deviation of the probability over samples.
    """

    region: str
    lesion: int
    volume_mm3: float
    x_mm: float
    y_mm: float
    z_mm: float
    probability: float
    mean_std: float


class PackedMasks:
    """Masks of all samples at one bit a voxel, because lesions are known only after the last one.

    Parameters
    ----------
    shape : tuple of 3 int
        Voxels of the grid.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._bits: list[NDArray[np.uint8]] = []

    def __len__(self) -> int:
        return len(self._bits)

    def add(self, mask: Tensor) -> None:
        """Keep one boolean mask (x, y, z)."""
        self._bits.append(np.packbits(mask.cpu().numpy()))

    def __getitem__(self, index: int) -> NDArray[np.bool_]:
        """Return sample ``index`` as a boolean array (x, y, z)."""
        size = int(np.prod(self._shape))
        return np.unpackbits(self._bits[index], count=size).astype(bool).reshape(self._shape)


def find_lesions(
    mask: Tensor,
    *,
    region: str,
    grid: Grid,
    samples: PackedMasks,
    std: Tensor,
    settings: LesionSettings,
) -> list[Lesion]:
    """Return the lesions of one region, the largest first.

    Parameters
    ----------
    mask : Tensor, shape (x, y, z), bool
        The decided region.
    region : str
    grid : Grid
    samples : PackedMasks
        The region in each posterior sample, at least one.
    std : Tensor, shape (x, y, z)
        Standard deviation of the probability over samples.
    settings : LesionSettings
    """
    labels, count = label_lesions(mask.numpy(), spacing_mm=grid.spacing_mm, settings=settings)
    if count == 0:
        return []
    # Only voxels of lesions matter, and there are few of them.
    places = np.nonzero(labels)
    inside = labels[places]
    hits = np.zeros(count)
    for index in range(len(samples)):
        hits += is_found(covered_shares(inside, count, samples[index][places]), settings)
    spread = np.bincount(inside, weights=std.numpy()[places], minlength=count + 1)[1:]
    sizes = np.bincount(inside, minlength=count + 1)[1:]
    rows = describe_lesions(labels, count, grid)
    return [
        Lesion(
            region=region,
            lesion=int(row["lesion"]),
            volume_mm3=row["volume_mm3"],
            x_mm=row["x_mm"],
            y_mm=row["y_mm"],
            z_mm=row["z_mm"],
            probability=float(hits[i] / len(samples)),
            mean_std=float(spread[i] / sizes[i]),
        )
        for i, row in enumerate(rows)
    ]


def paint_regions(
    masks: Tensor, *, definition: Sequence[Sequence[int]]
) -> tuple[Tensor, tuple[int, ...]]:
    """Return overlapping regions as one label map: region i gets the value i + 1.

    Parameters
    ----------
    masks : Tensor, shape (n, x, y, z), bool
    definition : sequence of sequence of int
        The labels of the training data behind each region. A region of more labels is painted
        first, so that the core lies on the whole tumour and not under it.

    Returns
    -------
    labels : Tensor, shape (x, y, z), uint8
        0 is background.
    order : tuple of int
        Indices of the regions as they were painted.
    """
    order = tuple(
        sorted(range(len(definition)), key=lambda index: (-len(set(definition[index])), index))
    )
    labels = torch.zeros(masks.shape[1:], dtype=torch.uint8)
    for index in order:
        labels[masks[index]] = index + 1
    return labels, order
