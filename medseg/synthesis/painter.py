"""Learned lesions painted into patches while a network is trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as nnf
from pydantic import TypeAdapter, ValidationError
from torch import Generator, Tensor

from medseg.data.augment import PaintSettings, happens
from medseg.data.regions import RegionSettings, encode
from medseg.data.training_set import TrainingCase
from medseg.errors import ConfigError, DataError
from medseg.seeding import torch_generator
from medseg.synthesis.lesion_model import TURNS, LesionModel, LesionSettings, learn_lesions
from medseg.synthesis.lesions import LabelledScan, normal_tissue
from medseg.synthesis.painting import DrawnLesion, paint_lesion
from medseg.synthesis.placing import draw_place, white_matter_weight

log = logging.getLogger(__name__)
_LEAST_SHARE = 0.3
_MOST_REGIONS = 8


class LesionPainter:
    """Paints a lesion of a bank into a patch, with a chance; a step of the patch sampler.

    What is painted depends on the generator alone.

    Parameters
    ----------
    model : LesionModel
    paint : PaintSettings
    cases : sequence of TrainingCase
        Whose patches come: their normal tissue sets the scale of the looks.
    regions : RegionSettings
        Of the targets.
    spacing_mm : tuple of 3 float
        Of the cases.
    seed : int
        Of the bank.
    """

    def __init__(
        self,
        model: LesionModel,
        paint: PaintSettings,
        cases: Sequence[TrainingCase],
        *,
        regions: RegionSettings,
        spacing_mm: tuple[float, float, float],
        seed: int,
    ) -> None:
        self._model, self._paint, self._regions = model, paint, regions
        self._spacing_mm = spacing_mm
        generator = torch_generator(seed, "lesion bank")
        self._bank: list[DrawnLesion] = model.draw(paint.bank, generator=generator)
        self._normal = {
            case.identifier: normal_tissue(case.image, _lesion(case).to(torch.uint8), case.brain)
            for case in cases
        }

    def __call__(
        self, case: TrainingCase, image: Tensor, target: Tensor, brain: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the patch's image (c, *p) and target (n, *p), with a lesion more or as they are.

        Parameters
        ----------
        case : TrainingCase
            The patch is from it.
        image, target, brain : Tensor
            The patch: (c, *p), (n, *p) and bool (*p).
        generator : torch.Generator
        """
        chosen = self._bank[int(torch.randint(len(self._bank), (), generator=generator))]
        turn = TURNS[int(torch.randint(len(TURNS), (), generator=generator))]
        if not happens(self._paint.chance, generator):
            return image, target
        first = int(case.has_background)
        # A voxel more all round, so that no two lesions touch.
        near = nnf.max_pool3d(target[first:].amax(0)[None, None], 3, 1, 1)[0, 0]
        free = brain & (near < 0.5)
        weight = white_matter_weight(image[case.present], brain, free, self._spacing_mm)
        place = draw_place(weight, generator)
        if place is None:
            return image, target
        painted = paint_lesion(
            image,
            chosen.turned(*turn),
            labels=self._model.labels,
            centre=place,
            allowed=free,
            normal=self._normal[case.identifier],
            spacing_mm=self._spacing_mm,
        )
        if painted.share < _LEAST_SHARE:
            return image, target
        present = case.present.view(-1, 1, 1, 1)
        return torch.where(present, painted.image, image), self._marked(case, target, painted.label)

    def _marked(self, case: TrainingCase, target: Tensor, label: Tensor) -> Tensor:
        added, _ = encode(
            label,
            names=self._regions.names,
            definition=self._model.definition,
            mode=self._regions.mode,
        )
        new = (label > 0) & case.known.view(-1, 1, 1, 1)
        return torch.where(new, added, target)


def make_painter(
    paint: PaintSettings | None,
    cases: Sequence[TrainingCase],
    *,
    regions: RegionSettings,
    channels: Sequence[str],
    spacing_mm: tuple[float, float, float],
    patch: Sequence[int],
    seed: int,
) -> LesionPainter | None:
    """Return the painter that settings ask for, None where they ask for none.

    Raises
    ------
    ConfigError
        Slices, other channels or regions than the lesions have, or settings that cannot be.
    DataError
        Lesions are to be learned from cases that have none.
    ModelError
        The folder holds no learned lesions.
    """
    if paint is None or paint.chance == 0.0:
        return None
    if len(patch) != 3:
        raise ConfigError(
            f"Lesions are painted into volumes, but patch.size is {list(patch)}.",
            hint="Use a 3D network, or leave augment.paint out.",
        )
    model = (
        LesionModel.load(paint.lesions)
        if isinstance(paint.lesions, Path)
        else learn_from_training(
            cases, paint, regions=regions, channels=channels, spacing_mm=spacing_mm, seed=seed
        )
    )
    missing = [name for name in regions.names if name not in model.definition]
    if tuple(channels) != model.channels or missing:
        raise ConfigError(
            f"Painted lesions must have the channels {list(channels)} and regions "
            f"{list(regions.names)} of the training, but they have {list(model.channels)} and "
            f"{sorted(model.definition)}.",
            hint="Learn them from scans like the training's, or set paint.lesions to 'training'.",
        )
    return LesionPainter(model, paint, cases, regions=regions, spacing_mm=spacing_mm, seed=seed)


def learn_from_training(
    cases: Sequence[TrainingCase],
    paint: PaintSettings,
    *,
    regions: RegionSettings,
    channels: Sequence[str],
    spacing_mm: tuple[float, float, float],
    seed: int,
) -> LesionModel:
    """Return the lesions of the training cases themselves; a case listed twice counts once.

    The regions a voxel lies in are its label here, one bit each.
    """
    names = regions.names
    if len(names) > _MOST_REGIONS:
        raise ConfigError(
            f"Lesions are learned from at most {_MOST_REGIONS} regions, but there are {len(names)}."
        )
    distinct = {case.identifier: case for case in cases}.values()
    usable = [case for case in distinct if bool(case.present.all()) and bool(case.known.all())]
    if not usable:
        raise DataError(
            "Lesions are learned from training cases with all channels and regions, but none of "
            f"{len(cases)} has them.",
            hint="Give a folder of learned lesions as augment.paint.lesions.",
        )
    bits = 2 ** torch.arange(len(names))
    scans = [
        LabelledScan(
            identifier=case.identifier,
            image=case.image,
            label=(case.target[int(case.has_background) :] * bits.view(-1, 1, 1, 1)).sum(0).long(),
            brain=case.brain,
            spacing_mm=spacing_mm,
        )
        for case in usable
    ]
    codes = range(1, 2 ** len(names))
    definition = {
        name: tuple(code for code in codes if code >> place & 1) for place, name in enumerate(names)
    }
    try:
        options = TypeAdapter(LesionSettings).validate_python(paint.learning)
    except ValidationError as error:
        raise ConfigError(
            f"augment.paint.learning must be settings of learned lesions, but: {error}.",
            hint="See medseg.synthesis.lesion_model.LesionSettings.",
        ) from error
    model = learn_lesions(
        scans, options, channels=channels, definition=definition, seed=seed, check=False
    )
    if regions.mode == "classes":
        return replace(model, definition={n: (1 << i,) for i, n in enumerate(names)})
    return model


def _lesion(case: TrainingCase) -> Tensor:
    return case.target[int(case.has_background) :].amax(0) > 0.5
