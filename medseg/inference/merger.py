"""Overlapping windows become one volume, each trusted most in its middle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medseg.errors import ShapeError
from medseg.inference.splitter import Window

#: Standard deviation of the weight as a share of the window's length.
SIGMA_SHARE = 0.125
#: Least weight: the corner of a window may be all that covers the corner of an image.
LEAST_WEIGHT = 1e-3


def gaussian_weights(window: Sequence[int], *, device: torch.device | None = None) -> Tensor:
    """Return the trust in each voxel of a window, shape (*window), float32, about 1 in the middle.

    References
    ----------
    Isensee et al. 2021, "nnU-Net", online methods: Gaussian importance weighting of patches.
    """
    weights = torch.ones((), device=device)
    for length in window:
        offset = torch.arange(length, dtype=torch.float32, device=device) - (length - 1) / 2
        along = torch.exp(-0.5 * (offset / (SIGMA_SHARE * length)) ** 2)
        weights = weights.unsqueeze(-1) * along
    return weights.clamp_min(LEAST_WEIGHT)


class Merger:
    """The weighted mean of what several windows say of each voxel.

    Parameters
    ----------
    shape : sequence of int
        Spatial axes of the whole image, ``*s``.

    Notes
    -----
    A weighted mean of probabilities that sum to 1 sums to 1. The order of windows changes nothing
    but the last bit. Memory: the volume once and its weights.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self._shape = tuple(shape)
        self._sum: Tensor | None = None
        self._weight: Tensor | None = None
        self._skipped: list[Window] = []

    def skip(self, window: Window) -> None:
        """Leave a window out: what no other window covers is 0 in all channels."""
        self._skipped.append(window)

    def add(self, window: Window, values: Tensor) -> None:
        """Take in the values ``(..., *window)`` of one window; leading axes are kept."""
        size = tuple(part.stop - part.start for part in window)
        if tuple(values.shape[-len(size) :]) != size:
            raise ShapeError(
                f"A window of {size} voxels needs values of that shape, but theirs is "
                f"{tuple(values.shape)}.",
                hint="The network must return its logits on the grid of its input.",
            )
        if self._sum is None or self._weight is None:
            lead = values.shape[: values.ndim - len(size)]
            self._sum = values.new_zeros((*lead, *self._shape), dtype=torch.float32)
            self._weight = values.new_zeros(self._shape, dtype=torch.float32)
        weights = gaussian_weights(size, device=values.device)
        self._sum[(..., *window)].addcmul_(values.float(), weights)
        self._weight[window] += weights

    def merged(self) -> Tensor:
        """Return the volume ``(..., *s)``, float32; it is made in place, so this is the last call.

        Raises
        ------
        ShapeError
            A voxel that no window covers, not even one left out.
        """
        if self._sum is None or self._weight is None:
            raise self._gap()
        unseen = self._weight == 0
        for window in self._skipped:
            unseen[window] = False
        if bool(unseen.any()):
            raise self._gap()
        return self._sum.div_(self._weight.clamp_min_(LEAST_WEIGHT))

    def _gap(self) -> ShapeError:
        return ShapeError(
            f"Windows must cover all of the image of {self._shape} voxels, but some voxels were in "
            "none.",
            hint="Make the windows with plan_windows.",
        )
