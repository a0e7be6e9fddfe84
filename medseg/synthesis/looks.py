"""Scans of the source in the looks of the target's few, region by region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from medseg.data.training_set import TrainingCase
from medseg.errors import DataError

_QUANTILES = np.linspace(0.0, 1.0, 101)
#: A part of fewer voxels has no looks to speak of.
_LEAST_VOXELS = 10

#: Of each part of a scan, by the regions that it lies in, the quantiles of its channels (c, q).
Looks = Mapping[int, np.ndarray]


class TargetLooks:
    """Gives patches the intensities of another scan, part by part; a step of the patch sampler.

    A part is where a scan has the same regions: the brain without lesion, oedema, core. In each
    and in each channel a voxel keeps its rank, and takes the value that a scan of the target has at
    this rank of the same part; equal voxels stay equal. Which scan that is, is drawn anew for each
    patch and depends on the generator alone; a part that it lacks comes from the next that has it.
    What stays as it is: parts that no scan of the target has or that have fewer than ten voxels,
    channels that one of the two lacks, and what lies outside brain and lesion.

    Parameters
    ----------
    cases : sequence of TrainingCase
        Whose patches come.
    targets : sequence of TrainingCase
        Whose looks they get, of as many channels and regions.

    Raises
    ------
    DataError
        No scan of the target, or one that knows fewer regions than a case.

    References
    ----------
    Nyúl, Udupa and Zhang 2000, "New variants of a method of MRI scale standardization", section II,
    here with all percentiles and one map for each part.
    """

    def __init__(self, cases: Sequence[TrainingCase], targets: Sequence[TrainingCase]) -> None:
        if not targets:
            raise DataError("Looks are taken from scans of the target, but there are none.")
        known = torch.stack([case.known for case in targets]).all(0)
        for case in cases:
            if bool((case.known & ~known).any()):
                raise DataError(
                    f"Looks are taken part by part, so each scan of the target must know the "
                    f"regions of {case.identifier!r}, but one does not.",
                    hint="Leave rehearsal's looks at 'own'.",
                )
        # Cases are held, so that no other object can come to have their id.
        self._cases, self._targets = tuple(cases), tuple(targets)
        self._own = {id(case): looks_of(case, case.known) for case in self._cases}
        masks = {tuple(case.known.tolist()): case.known for case in self._cases}
        self._theirs = {
            key: [looks_of(target, mask) for target in self._targets] for key, mask in masks.items()
        }

    def __call__(
        self, case: TrainingCase, image: Tensor, target: Tensor, brain: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the patch's image (c, *p) in other looks, and its target (n, *p) as it is.

        Parameters
        ----------
        case : TrainingCase
            The patch is from it.
        image, target, brain : Tensor
            The patch: (c, *p), (n, *p) and bool (*p).
        generator : torch.Generator
        """
        number = len(self._targets)
        drawn = int(torch.randint(number, (), generator=generator))
        order = [(drawn + step) % number for step in range(number)]
        theirs, own = self._theirs[tuple(case.known.tolist())], self._own[id(case)]
        parts = parts_of(target, case.known, brain, has_background=case.has_background).numpy()
        result = image.numpy().copy()
        for part in set(np.unique(parts).tolist()) & set(own):
            taken = next((at for at in order if part in theirs[at]), None)
            if taken is None:
                continue
            there = parts == part
            both = case.present & self._targets[taken].present
            for channel in torch.nonzero(both).flatten().tolist():
                result[channel][there] = _mapped(
                    result[channel][there], own[part][channel], theirs[taken][part][channel]
                )
        return torch.from_numpy(result), target


def _mapped(values: np.ndarray, own: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return values at the same ranks; one that has many gets the mean of what is there."""
    levels, place, counts = np.unique(own, return_inverse=True, return_counts=True)
    return np.interp(values, levels, np.bincount(place, weights=theirs) / counts)


def looks_of(case: TrainingCase, known: Tensor) -> Looks:
    """Return the quantiles of a scan's channels in each part, by the regions ``known``.

    Parameters
    ----------
    case : TrainingCase
    known : Tensor, shape (n,), bool
    """
    parts = parts_of(case.target, known, case.brain, has_background=case.has_background).numpy()
    image = case.image.numpy()
    codes, counts = np.unique(parts[parts >= 0], return_counts=True)
    return {
        int(code): np.quantile(image[:, parts == code], _QUANTILES, axis=1).T
        for code, count in zip(codes, counts, strict=True)
        if count >= _LEAST_VOXELS
    }


def parts_of(target: Tensor, known: Tensor, brain: Tensor, *, has_background: bool) -> Tensor:
    """Return which part each voxel is in, (*p), int64: a bit for each known region, or -1 outside.

    Parameters
    ----------
    target : Tensor, shape (n, *p)
    known : Tensor, shape (n,), bool
        Regions that are not known have no bit.
    brain : Tensor, shape (*p), bool
    has_background : bool
        The first channel of ``target`` is the background's.
    """
    first = int(has_background)
    wide = (-1, *[1] * brain.ndim)
    bits = (2 ** torch.arange(len(known) - first) * known[first:]).view(wide)
    code = ((target[first:] > 0.5) * bits).sum(0)
    return torch.where((code > 0) | (brain > 0), code, -1)
