"""Are samples new, or the training lesions again? Nearest neighbours tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from medseg.synthesis.lesions import Lesion
from medseg.synthesis.painting import DrawnLesion

Turns = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class CopyCheck:
    """How far samples are from the training items, beside how far these are from each other.

    Parameters
    ----------
    of : str
        "shape" (1 - Dice of the whole mask) or "looks" (rms difference, in deviations of normal
        tissue).
    n_samples, n_items : int
    median_sample, median_item : float
        Median distance of a sample to its nearest training item, and of a training item to its
        nearest other one.
    least_sample, least_item : float
        The smallest of them.
    share_nearer : float
        Share of the samples nearer to a training item than 95 % of the training items are to
        another one; 0.05 if samples are as new as items, near 1 if samples are copies.
    """

    of: str
    n_samples: int
    n_items: int
    median_sample: float
    median_item: float
    least_sample: float
    least_item: float
    share_nearer: float

    def describe(self) -> dict[str, object]:
        """Return the numbers as JSON."""
        return asdict(self)


def check_copies(
    drawn: Sequence[DrawnLesion], lesions: Sequence[Lesion], *, turns: Turns
) -> tuple[CopyCheck, ...]:
    """Compare drawn lesions with those they were learned from, in shape and in looks.

    A turned or mirrored copy is a copy: the distance is the least over all ``turns``.

    Raises
    ------
    ValueError
        Fewer than two training lesions, which have no nearest other one.
    """
    samples = [((d.levels[-1] > 0).float(), d.image) for d in drawn]
    items = [(lesion.parts[-1], lesion.image) for lesion in lesions]
    if len(items) < 2 or not samples:
        raise ValueError(f"needs two lesions and a sample, but has {len(items)}, {len(samples)}")
    checks = []
    for place, name in enumerate(("shape", "looks")):
        measure = _dice_distances if name == "shape" else _rms_distances
        theirs = torch.full((len(items),), torch.inf)
        mine = torch.full((len(samples),), torch.inf)
        rows = torch.stack([item[place].flatten() for item in items])
        new = torch.stack([item[place].flatten() for item in samples])
        for axes, flips in turns:
            turned = [lesion.turned(axes, flips) for lesion in lesions]
            parts = [t.parts[-1] if name == "shape" else t.image for t in turned]
            gallery = torch.stack([part.flatten() for part in parts])
            others = measure(rows, gallery).fill_diagonal_(torch.inf)
            theirs = torch.minimum(theirs, others.amin(1))
            mine = torch.minimum(mine, measure(new, gallery).amin(1))
        checks.append(_check(name, mine, theirs))
    return tuple(checks)


def _dice_distances(rows: Tensor, gallery: Tensor) -> Tensor:
    shared = rows @ gallery.T
    return 1 - 2 * shared / (rows.sum(1)[:, None] + gallery.sum(1)).clamp(min=1.0)


def _rms_distances(rows: Tensor, gallery: Tensor) -> Tensor:
    return torch.cdist(rows, gallery) / rows.shape[1] ** 0.5


def _check(name: str, samples: Tensor, items: Tensor) -> CopyCheck:
    limit = items.quantile(0.05)
    return CopyCheck(
        of=name,
        n_samples=len(samples),
        n_items=len(items),
        median_sample=float(samples.median()),
        median_item=float(items.median()),
        least_sample=float(samples.min()),
        least_item=float(items.min()),
        share_nearer=float((samples < limit).float().mean()),
    )
