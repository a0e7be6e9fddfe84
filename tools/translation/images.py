"""How near made images are to the true ones, beside copying and matching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg.data.training_set import PatchSettings
from medseg.metrics.image import psnr_db, ssim
from medseg.preprocess.prepare import PreprocessSettings
from medseg.scan import Case
from medseg.training.loop import TrainingSettings
from medseg.translation.apply import translate
from medseg.translation.fit import train_translator
from medseg.translation.model import Translator
from medseg.translation.resolution import interpolate_slices, match_slices
from medseg.translation.settings import Method, TranslationSettings
from tools.translation.cohorts import Cohort, Sizes, thick, zscored

Row = dict[str, object]
Maker = Callable[[Case], Tensor]
#: Task -> input modalities and the one that is made.
TASKS = {
    "known map of FLAIR": (("flair",), "mapped"),
    "FLAIR from T1 and T2": (("t2", "t1"), "flair"),
}
_VOXELS = 200_000


def translator_for(
    task: str,
    method: Method,
    training: Cohort,
    sizes: Sizes,
    *,
    folder: Path,
    seed: int,
    adversarial_weight: float = 1.0,
) -> Translator:
    """Return a translator of a task, trained or read from its folder's checkpoint."""
    channels, target = TASKS[task]
    steps = sizes.cycle_steps if method == "cyclegan" else sizes.steps
    settings = TranslationSettings(
        method=method,
        channels=channels,
        target=target,
        widths=sizes.widths,
        preprocess=PreprocessSettings(spacing_mm=None),
        patch=PatchSettings(
            size=(sizes.patch, sizes.patch), batch_size=sizes.batch, lesion_fraction=0.3
        ),
        training=TrainingSettings(steps=steps, learning_rate=2e-3, log_every=100),
        seed=seed,
        adversarial_weight=adversarial_weight,
    )
    return train_translator(settings, training, folder=folder)


def image_makers(task: str, training: Cohort, learned: dict[str, Translator]) -> dict[str, Maker]:
    """Return what makes the task's modality of a case, as z-scores, by name."""
    channels, target = TASKS[task]
    inputs, truths = _voxels(training, channels, target)
    design = np.column_stack([inputs, np.ones(len(inputs))])
    weights = torch.from_numpy(np.linalg.lstsq(design, truths, rcond=None)[0]).float()
    ranks = np.linspace(0, 1, 257)
    curve = np.quantile(inputs[:, 0], ranks), np.quantile(truths, ranks)

    def copy(case: Case) -> Tensor:
        return _input(case, channels)[0]

    def linear(case: Case) -> Tensor:
        return torch.einsum("c,c...->...", weights[:-1], _input(case, channels)) + weights[-1]

    def histogram(case: Case) -> Tensor:
        return torch.from_numpy(np.interp(copy(case).numpy(), *curve)).float()

    makers: dict[str, Maker] = {"copy": copy, "linear": linear, "histogram": histogram}
    for name, translator in learned.items():
        makers[name] = lambda case, t=translator: translate(t, case)[target].data
    return {
        name: lambda case, make=make: zscored(make(case), inside_of(case))
        for name, make in makers.items()
    }


def image_rows(task: str, makers: dict[str, Maker], test: Cohort) -> list[Row]:
    """Return PSNR and SSIM of every method on every case."""
    target = TASKS[task][1]
    rows: list[Row] = []
    for case in test.cases:
        inside = inside_of(case)
        true = zscored(case.scans[target].data, inside)
        for method, make in makers.items():
            rows.append(_row(method, case, make(case), true, inside))
    return rows


def thin_makers(translator: Translator, factor: int) -> dict[str, Maker]:
    """Return what makes thin slices of a thick case, by name."""

    def planes(case: Case) -> Tensor:
        return case.scans["flair"].data.movedim(2, 0)[None, None].flatten(3)

    def back(thin: Tensor, case: Case) -> Tensor:
        return thin[0, 0].unflatten(1, case.grid.shape[:2]).movedim(0, 2)

    def repeat(case: Case) -> Tensor:
        return back(planes(case).repeat_interleave(factor, dim=2), case)

    def linear(case: Case) -> Tensor:
        return back(interpolate_slices(planes(case), factor), case)

    def consistent(case: Case) -> Tensor:
        smooth = interpolate_slices(planes(case), factor)
        return back(match_slices(smooth, planes(case), factor), case)

    return {
        "linear": linear,
        "repeat": repeat,
        "linear, consistent": consistent,
        "super-resolution": lambda case: translate(translator, case)["flair"].data,
    }


def thin_rows(makers: dict[str, Maker], test: Cohort, factor: int) -> list[Row]:
    """Return PSNR and SSIM of every method on every case."""
    rows: list[Row] = []
    for case in test.cases:
        true, given = case.scans["flair"].data, thick(case, factor)
        for method, make in makers.items():
            rows.append(_row(method, case, make(given), true, inside_of(case)))
    return rows


def thin_translator(training: Cohort, sizes: Sizes, *, folder: Path, seed: int) -> Translator:
    """Return a trained maker of thin slices."""
    length = max(sizes.patch // sizes.factor * sizes.factor, 2 * sizes.factor)
    settings = TranslationSettings(
        method="super_resolution",
        channels=("flair",),
        factor=sizes.factor,
        widths=sizes.widths,
        preprocess=PreprocessSettings(spacing_mm=None),
        patch=PatchSettings(
            size=(length, sizes.patch), batch_size=sizes.batch, lesion_fraction=0.3
        ),
        training=TrainingSettings(steps=sizes.steps, learning_rate=2e-3, log_every=100),
        seed=seed,
    )
    return train_translator(settings, training, folder=folder)


def _row(method: str, case: Case, found: Tensor, true: Tensor, inside: Tensor) -> Row:
    return {
        "method": method,
        "case": case.identifier,
        "psnr_db": psnr_db(found, true, inside),
        "ssim": ssim(found, true, inside),
    }


def inside_of(case: Case) -> Tensor:
    """Return the brain of a case, (x, y, z)."""
    if case.brain is None:
        raise ValueError(f"case {case.identifier!r} has no brain mask")
    return case.brain.data > 0


def _input(case: Case, channels: tuple[str, ...]) -> Tensor:
    return torch.stack([zscored(case.scans[name].data, inside_of(case)) for name in channels])


def _voxels(
    training: Cohort, channels: tuple[str, ...], target: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return z-scores of input and truth at the brain's voxels of the training cases."""
    found, true = [], []
    for case in training.cases:
        inside = inside_of(case)
        found.append(_input(case, channels)[:, inside].T)
        true.append(zscored(case.scans[target].data, inside)[inside])
    inputs, truths = torch.cat(found).numpy(), torch.cat(true).numpy()
    step = max(len(truths) // _VOXELS, 1)
    return inputs[::step], truths[::step]
