"""What can be had without learning: thresholds, tuned on the same few cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.data.training_set import TrainingCase
from medseg.metrics.overlap import dice

Mask = NDArray[np.bool_]
_QUANTILES = np.linspace(0.60, 0.995, 40)


@dataclass(frozen=True)
class Thresholds:
    """One threshold on FLAIR for the outer region, one on T1c inside it for the inner ones.

    Parameters
    ----------
    outer : float
        Of the first channel named ``flair``, in standard deviations of the brain.
    inner : float
        Of the second channel, inside the (filled, dilated) outer mask.
    """

    outer: float
    inner: float


def threshold_masks(case: TrainingCase, cuts: Thresholds) -> tuple[Mask, Mask]:
    """Return the outer and the inner mask of a case, both of shape (x, y, z).

    Outer: the largest component above the cut after a smoothing of one voxel, filled. Inner: above
    the other cut inside the outer one, with holes filled, so that a dark centre counts.
    """
    brain = case.brain.numpy()
    flair = ndimage.gaussian_filter(case.image[0].numpy(), 1.0)
    outer = _largest((flair > cuts.outer) & brain)
    outer = np.asarray(ndimage.binary_fill_holes(outer), dtype=bool)
    bright = case.image[-1].numpy() > cuts.inner
    inner = ndimage.binary_fill_holes(bright & outer)
    return outer, np.asarray(inner, dtype=bool)


def fit_thresholds(cases: Sequence[TrainingCase], *, outer: int, inner: int) -> Thresholds:
    """Return the cuts with the best mean DSC on ``cases``.

    Parameters
    ----------
    cases : sequence of TrainingCase
        The channels begin with FLAIR and end with T1c.
    outer, inner : int
        Numbers of the outer and the inner region.
    """
    flair = np.concatenate([case.image[0][case.brain].numpy() for case in cases])
    contrast = np.concatenate([case.image[-1][case.brain].numpy() for case in cases])
    best, cut_outer = -1.0, 0.0
    for cut in np.quantile(flair, _QUANTILES):
        score = _mean_dice(cases, Thresholds(float(cut), 0.0), channel=outer, which=0)
        if score > best:
            best, cut_outer = score, float(cut)
    best, cut_inner = -1.0, 0.0
    for cut in np.quantile(contrast, _QUANTILES):
        score = _mean_dice(cases, Thresholds(cut_outer, float(cut)), channel=inner, which=1)
        if score > best:
            best, cut_inner = score, float(cut)
    return Thresholds(cut_outer, cut_inner)


def _mean_dice(
    cases: Sequence[TrainingCase], cuts: Thresholds, *, channel: int, which: int
) -> float:
    scores = [
        dice(threshold_masks(case, cuts)[which], case.regions[channel].numpy() > 0.5)
        for case in cases
    ]
    return float(np.mean(scores))


def _largest(mask: Mask) -> Mask:
    labels, count = ndimage.label(mask)  # type: ignore[misc]
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())[1:]
    return labels == 1 + int(sizes.argmax())
