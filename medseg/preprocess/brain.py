"""Where the brain, or at least the head, is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medseg.errors import ScanError
from medseg.preprocess.lattice import bounding_box
from medseg.scan import Case, LabelMap, Scan

MINIMUM_ML = 20.0
_BACKGROUND_SHARE = 0.8
_OTSU_BINS = 256


def brain_mask(case: Case) -> LabelMap:
    """Return 1 inside the brain: the case's own mask, or one found from its scans.

    Skull-stripped scans have one background value, usually 0 but not after a z-score: the value
    that fills at least 80 % of the volume's faces. The brain is the largest connected piece of
    anything else in any scan, with its holes filled. Where no scan has such a value (whole heads in
    noisy air), Otsu's threshold on the first scan separates head from air.

    Parameters
    ----------
    case : Case
        Its own mask is used when it has one.

    Returns
    -------
    LabelMap
        uint8, on the case's grid.

    Raises
    ------
    ScanError
        The case's own mask is empty, or what was found is smaller than 20 ml.

    References
    ----------
    N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9, 1979, eq.
    14.
    """
    if case.brain is not None:
        inside = case.brain.data > 0
        minimum_ml = 0.0
    else:
        inside = torch.from_numpy(_found([*case.scans.values()]))
        minimum_ml = MINIMUM_ML
    mask = LabelMap(inside.to(torch.uint8), case.grid)
    volume_ml = mask.volume_ml((1,))
    if volume_ml < minimum_ml or volume_ml == 0:
        raise ScanError(
            f"Case {case.identifier!r}: no brain found; a brain has at least {MINIMUM_ML:g} ml, "
            f"but {volume_ml:.3g} ml stand out from the background.",
            hint="Give a brain mask, and check the voxel sizes in the header.",
        )
    return mask


def _found(scans: Sequence[Scan]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] | None = None
    for scan in scans:
        value = background_value(scan.data)
        if value is not None:
            other = scan.data.numpy() != value
            inside = other if inside is None else inside | other
    if inside is None:
        data = scans[0].data.numpy()
        inside = data > otsu_threshold(data)
    if inside.any():
        # A box around what stands out is half the volume; no hole reaches beyond it.
        box = tuple(map(slice, *bounding_box(torch.from_numpy(inside))))
        inside[box] = filled(largest_component(inside[box]))
    return inside


def background_value(data: Tensor) -> float | None:
    """Return the one value that fills at least 80 % of the volume's six faces, or None."""
    faces = torch.cat([data.select(axis, end).flatten() for axis in range(3) for end in (0, -1)])
    values, counts = torch.unique(faces, return_counts=True)
    most = int(counts.argmax())
    share = float(counts[most]) / faces.numel()
    return float(values[most]) if share >= _BACKGROUND_SHARE else None


def otsu_threshold(data: NDArray[np.floating]) -> float:
    """Return the threshold that maximises the variance between the sides (Otsu 1979, eq. 14)."""
    counts, edges = np.histogram(data, bins=_OTSU_BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    means_below = sums[:-1] / np.maximum(below, 1)
    means_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below * above * (means_below - means_above) ** 2
    return float(edges[1:-1][between.argmax()])


def _pieces(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the number, from 1, of the face-connected piece that each true voxel belongs to."""
    pieces = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=pieces)
    return pieces


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest face-connected piece of a mask, all false when there is none."""
    pieces = _pieces(mask)
    sizes = np.bincount(pieces.ravel())
    if len(sizes) == 1:
        return mask
    sizes[0] = 0
    return pieces == sizes.argmax()


def filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask with every hole filled that is not connected to a face of the volume.

    Equal to ``scipy.ndimage.binary_fill_holes``, which grows the outside step by step and takes
    seconds.
    """
    pieces = _pieces(~mask)
    at_faces = [np.take(pieces, end, axis=axis).ravel() for axis in range(3) for end in (0, -1)]
    # Label 0 is the mask itself.
    outside = np.setdiff1d(np.unique(np.concatenate(at_faces)), [0])
    is_outside = np.isin(np.arange(int(pieces.max()) + 1), outside)
    return ~is_outside.take(pieces)
