"""Where a lesion may lie in a scan: inside the brain, in white matter, not on another lesion."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as nnf
from scipy import ndimage
from torch import Generator, Tensor

_EDGE_MM, _DEEP_MM = 4.0, 9.0
# How far from white matter's grey value a voxel may be, in deviations of the brain.
_LIKE, _FLAT = 0.35, 0.4
_FEWEST_DEEP = 50


def white_matter_weight(
    image: Tensor, brain: Tensor, free: Tensor, spacing_mm: tuple[float, float, float]
) -> Tensor:
    """Return how much each voxel looks like white matter, 0 to 1, when no label map tells.

    White matter is the largest tissue without folds, so its grey value in each channel is taken for
    the median of the flattest third of the deep brain (more than 9 mm below the surface). The
    weight falls with the distance from that in any channel and with local roughness, and is 0
    within 4 mm of the surface.

    Parameters
    ----------
    image : Tensor, shape (c, x, y, z)
        Channels that were measured.
    brain, free : Tensor, shape (x, y, z), bool
        Inside the brain; and where no lesion is.
    spacing_mm : tuple of 3 float

    Returns
    -------
    Tensor, shape (x, y, z)
    """
    usable = brain & free
    if not bool(usable.any()):
        return torch.zeros(brain.shape)
    depth = ndimage.distance_transform_edt(_with_border(brain), sampling=spacing_mm)
    depth_mm = torch.from_numpy(np.asarray(depth))[1:-1, 1:-1, 1:-1]
    spread = image[:, usable].std(dim=1, correction=0).clamp(min=1e-6)
    rough = torch.stack([_roughness(c) / s for c, s in zip(image, spread, strict=True)]).amax(0)
    deep = usable & (depth_mm > _DEEP_MM)
    core = deep if int(deep.sum()) >= _FEWEST_DEEP else usable
    core = core & (rough <= rough[core].quantile(1 / 3))
    unlike = torch.zeros(brain.shape)
    for channel, deviation in zip(image, spread, strict=True):
        distance = (channel - channel[core].median()) / (_LIKE * deviation)
        unlike = torch.maximum(unlike, distance.square())
    unlike = unlike + (rough / _FLAT).square()
    return (usable & (depth_mm > _EDGE_MM)) * torch.exp(-0.5 * unlike)


def _roughness(channel: Tensor) -> Tensor:
    """Return the standard deviation round each voxel."""
    variance = _local_mean(channel.square()) - _local_mean(channel).square()
    return variance.clamp(min=0.0).sqrt()


def _with_border(brain: Tensor) -> np.ndarray:
    # Beyond the edge of a patch the brain may go on: the border voxels are repeated.
    return np.pad(brain.numpy(), 1, mode="edge")


def _local_mean(volume: Tensor) -> Tensor:
    return nnf.avg_pool3d(volume[None, None], 3, 1, 1, count_include_pad=False)[0, 0]


def draw_place(weight: Tensor, generator: Generator) -> Tensor | None:
    """Return a voxel drawn in proportion to ``weight``, shape (3,); None where all of it is 0."""
    total = torch.cumsum(weight.flatten().double(), dim=0)
    chance = torch.rand((), generator=generator, dtype=torch.float64)
    if float(total[-1]) <= 0.0:
        return None
    flat = int(torch.searchsorted(total, chance * total[-1], right=True))
    flat = min(flat, weight.numel() - 1)
    place = np.unravel_index(flat, tuple(weight.shape))
    return torch.tensor([float(axis) for axis in place])
