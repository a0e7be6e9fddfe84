"""Generated heads kept in memory, with a contrast that is a known map of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from medseg.data.phantom.cohort import PhantomSettings, PhantomSource
from medseg.scan import Case, LabelMap, Scan
from medseg.translation.apply import average_slices, thinner


@dataclass(frozen=True)
class Sizes:
    """How much is measured; ``quick`` shows only that all works."""

    n_train: int = 12
    n_test: int = 8
    spacing_mm: float = 3.0
    thin_mm: float = 2.0
    n_thin: int = 6
    factor: int = 4
    widths: tuple[int, ...] = (12, 24, 48)
    batch: int = 4
    patch: int = 40
    steps: int = 400
    cycle_steps: int = 250
    segment_steps: int = 400
    segment_widths: tuple[int, ...] = (8, 16, 32)
    patches: int = 400
    restored: int = 40
    restore_steps: int = 400


QUICK = Sizes(
    n_train=2,
    n_test=2,
    spacing_mm=8.0,
    thin_mm=8.0,
    n_thin=2,
    factor=2,
    widths=(4, 8),
    batch=2,
    patch=16,
    steps=3,
    cycle_steps=3,
    segment_steps=3,
    segment_widths=(4, 8),
    patches=40,
    restored=4,
    restore_steps=10,
)


@dataclass(frozen=True, eq=False)
class Cohort:
    """Cases in memory: a case source."""

    name: str
    cases: Sequence[Case]
    licence: str = "generated"
    citation: str = "generated"

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Name of each case."""
        return tuple(case.identifier for case in self.cases)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Person of each case."""
        return tuple(case.subject for case in self.cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Case:
        return self.cases[index]


def known_map(scan: Scan, brain: LabelMap) -> Scan:
    """Return a scan through a contrast curve that rises and falls, then through a blur.

    No matching of histograms can undo a curve that is not monotone, nor a blur.
    """
    inside = brain.data > 0
    level = scan.data / scan.data[inside].quantile(0.98)
    curve = 0.3 + torch.sin(2.4 * level.clamp(0, 1.6)) + 0.15 * level
    blurred = F.avg_pool3d((curve * inside)[None, None], 3, 1, 1)[0, 0]
    weight = F.avg_pool3d(inside.float()[None, None], 3, 1, 1)[0, 0].clamp(min=1e-6)
    return Scan(100 * (0.4 * curve + 0.6 * blurred / weight) * inside, scan.grid)


def heads(sizes: Sizes, *, test: bool, seed: int) -> Cohort:
    """Return subjects with MS lesions, FLAIR, T1, T2 and ``mapped``, the known map of FLAIR."""
    settings = PhantomSettings(
        n_subjects=sizes.n_test if test else sizes.n_train,
        spacing_mm=sizes.spacing_mm,
        modalities=("flair", "t1", "t2"),
        seed=2 * seed + test,
    )
    made = []
    for case in PhantomSource(settings):
        mapped = known_map(case.scans["flair"], _brain(case))
        made.append(replace(case, scans={**case.scans, "mapped": mapped}))
    return Cohort("test" if test else "training", made)


def thin_heads(sizes: Sizes, *, test: bool, seed: int) -> Cohort:
    """Return subjects with thin FLAIR slices, as many as the factor divides."""
    settings = PhantomSettings(
        n_subjects=sizes.n_thin,
        spacing_mm=sizes.thin_mm,
        modalities=("flair",),
        seed=1000 + 2 * seed + test,
    )
    return Cohort("thin", [_cropped(case, sizes.factor) for case in PhantomSource(settings)])


def thick(case: Case, factor: int) -> Case:
    """Return a case with slices ``factor`` times as thick."""
    scan, brain = case.scans["flair"], _brain(case)
    fine = scan.grid
    grid = fine.crop((0, 0, 0), (fine.shape[0], fine.shape[1], fine.shape[2] // factor))
    affine = fine.affine.copy()
    affine[:3, 2] *= factor
    affine[:3, 3] += (factor - 1) / 2 * fine.affine[:3, 2]
    grid = replace(grid, affine=affine)
    if not thinner(grid, axis=2, factor=factor).matches(fine, tolerance_mm=1e-3):
        raise ValueError("the thick grid does not cover the thin one")
    inside = average_slices(brain.data.float(), axis=2, factor=factor) > 0.5
    return Case(
        identifier=case.identifier,
        subject=case.subject,
        scans={"flair": Scan(average_slices(scan.data, axis=2, factor=factor), grid)},
        brain=LabelMap(inside.to(torch.uint8), grid),
        synthetic=True,
    )


def zscored(data: Tensor, inside: Tensor) -> Tensor:
    """Return z-scores inside, 0 outside: what a network for segmentation would see."""
    values = data[inside]
    return (data - values.mean()) / values.std().clamp(min=1e-6) * inside


def _cropped(case: Case, factor: int) -> Case:
    grid = case.grid
    stop = (*grid.shape[:2], grid.shape[2] // factor * factor)
    cut, brain = grid.crop((0, 0, 0), stop), _brain(case)
    data = case.scans["flair"].data[..., : stop[2]].contiguous()
    mask = brain.data[..., : stop[2]].contiguous()
    return Case(
        case.identifier, case.subject, {"flair": Scan(data, cut)}, None, LabelMap(mask, cut)
    )


def _brain(case: Case) -> LabelMap:
    if case.brain is None:
        raise ValueError(f"case {case.identifier!r} has no brain mask")
    return case.brain
