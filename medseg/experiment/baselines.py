"""What can be had without learning: thresholds, tuned on the same few cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """One threshold on FLAIR for the outer region, others on T1c inside it.

    Parameters
    ----------
    outer : float
        Of the first channel named ``flair``, in standard deviations of the brain.
    inner : float
        Of the last channel, inside the (filled) outer mask; what is enclosed by it counts too.
    bright : float
        Of the last channel, for what is bright by itself.
    """

    outer: float
    inner: float
    bright: float


@dataclass(frozen=True)
class ThresholdMasks:
    """What the thresholds find in a case, each mask of shape (x, y, z).

    Parameters
    ----------
    outer : numpy.ndarray
        The largest component above the cut after a smoothing of one voxel, filled.
    inner : numpy.ndarray
        Above its cut inside the outer one, with holes filled, so that a dark centre counts.
    bright : numpy.ndarray
        Above its cut inside the outer one, without what it encloses.
    """

    outer: Mask
    inner: Mask
    bright: Mask


def threshold_masks(case: TrainingCase, cuts: Thresholds) -> ThresholdMasks:
    """Return the masks of a case."""
    outer, contrast = _outer(case, cuts.outer), case.image[-1].numpy()
    bright = (contrast > cuts.bright) & outer
    return ThresholdMasks(outer, _filled((contrast > cuts.inner) & outer), bright)


def fit_thresholds(
    cases: Sequence[TrainingCase], *, outer: int, inner: int, bright: int | None = None
) -> Thresholds:
    """Return the cuts with the best mean DSC on ``cases``.

    Parameters
    ----------
    cases : sequence of TrainingCase
        The channels begin with FLAIR and end with T1c.
    outer, inner, bright : int
        Numbers of the regions; without ``bright`` its cut is that of the inner one.
    """
    outside = _best_cut(cases, 0, region=outer, masks=_outer)
    found = {id(case): _outer(case, outside) for case in cases}

    def bright_of(case: TrainingCase, cut: float) -> Mask:
        return (case.image[-1].numpy() > cut) & found[id(case)]

    def inner_of(case: TrainingCase, cut: float) -> Mask:
        return _filled(bright_of(case, cut))

    inside = _best_cut(cases, -1, region=inner, masks=inner_of)
    if bright is None:
        return Thresholds(outside, inside, inside)
    return Thresholds(outside, inside, _best_cut(cases, -1, region=bright, masks=bright_of))


def _best_cut(
    cases: Sequence[TrainingCase],
    channel: int,
    *,
    region: int,
    masks: Callable[[TrainingCase, float], Mask],
) -> float:
    values = np.concatenate([case.image[channel][case.brain].numpy() for case in cases])
    cuts = [float(cut) for cut in np.quantile(values, _QUANTILES)]
    truths = [case.regions[region].numpy() > 0.5 for case in cases]

    def score(cut: float) -> float:
        pairs = zip(cases, truths, strict=True)
        return float(np.mean([dice(masks(case, cut), truth) for case, truth in pairs]))

    return max(cuts, key=score)


def _outer(case: TrainingCase, cut: float) -> Mask:
    flair = ndimage.gaussian_filter(case.image[0].numpy(), 1.0)
    return _filled(_largest((flair > cut) & case.brain.numpy()))


def _filled(mask: Mask) -> Mask:
    return np.asarray(ndimage.binary_fill_holes(mask), dtype=bool)


def _largest(mask: Mask) -> Mask:
    labels, count = ndimage.label(mask)  # type: ignore[misc]
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())[1:]
    return labels == 1 + int(sizes.argmax())
