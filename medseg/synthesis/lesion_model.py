"""Lesions as a generative model: their shape, their looks, their size and number."""

import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Generator, Tensor

from medseg.data.regions import Definition
from medseg.errors import DataError, ModelError
from medseg.generative.base import GenerativeBase
from medseg.generative.vae import Vae
from medseg.io.atomic import write_json
from medseg.seeding import numpy_generator, torch_generator
from medseg.settings import settings
from medseg.synthesis.copies import CopyCheck, check_copies
from medseg.synthesis.cube_vae import known_kinds, load_cube_model, make_cube_model
from medseg.synthesis.drawing import CodeSpread, draw_images, draw_levels, texture_correlation
from medseg.synthesis.lesions import LabelledScan, Lesion, cut_lesions, order_labels
from medseg.synthesis.painting import DrawnLesion

log = logging.getLogger(__name__)

#: The 48 ways to turn and mirror a cube onto itself.
TURNS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = tuple(
    (axes, tuple(axis for axis in range(3) if flips[axis]))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
)
_FORMAT = "medseg lesions 1"
_FIT = {"max_steps": 600, "batch_size": 32, "learning_rate": 3e-3, "epochs": 400}
#: What the kinds need to know of masks, and sizes that suit a few hundred small cubes.
_SHAPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "cube_vae": {"likelihood": "bernoulli", "latent": 8, "channels": (12, 24), "fit": _FIT},
    "vae": {"likelihood": "bernoulli", "latent": 8, "hidden": (128,), "fit": _FIT},
    "rbm": {"visible": "bernoulli"},
    "dbn": {"visible": "bernoulli"},
    "dbm": {"visible": "bernoulli"},
    "gan": {"network": "dcgan"},
}
_LOOKS_DEFAULTS: dict[str, dict[str, Any]] = {
    "cube_vae": {"latent": 8, "channels": (12, 24), "decoder_std": "per_feature", "fit": _FIT},
    "gan": {"network": "dcgan"},
}


@settings
class LesionSettings:
    """How lesions are learned.

    Parameters
    ----------
    side : int
        Voxels along the cube of a lesion; its size in mm is kept apart.
    shape_kind, shape : str and dict
        Kind of generative model of the masks, and its settings; any kind with ``sample``.
    looks_kind, looks : str and dict
        The same for intensities given the mask; a kind that takes maps as condition.
    least_voxels : int
        Smaller lesions of the training scans are left out.
    copies : int
        Turned and mirrored copies of each lesion in the fit, of 48.
    most_items : int
        Cubes in the fit, at most.
    """

    side: int = Field(default=16, ge=8, le=32)
    shape_kind: str = "cube_vae"
    shape: dict[str, Any] = Field(default_factory=dict)
    looks_kind: str = "cube_vae"
    looks: dict[str, Any] = Field(default_factory=dict)
    least_voxels: int = Field(default=6, ge=1)
    copies: int = Field(default=8, ge=1, le=48)
    most_items: int = Field(default=800, ge=2)


@dataclass(frozen=True, eq=False)
class LesionModel:
    """Learned lesions of one disease in one set of modalities.

    Parameters
    ----------
    shape : GenerativeBase
        Of the nested masks (k, s, s, s).
    looks : GenerativeBase
        Of the intensities (c, s, s, s) given the masks and the size.
    channels : tuple of str
        Modalities of the looks.
    labels : tuple of int
        Of the nested masks, innermost first.
    definition : mapping of region to labels
        What the labels mean.
    half_sides_mm : tuple of float
        Of the training lesions.
    counts : tuple of int
        Lesions in each training scan that has any.
    texture : float
        Correlation of neighbouring voxels of what the looks' mean leaves open.
    settings : LesionSettings
    seed : int
    parents : tuple of str
        Training scans.
    codes : pair of CodeSpread, optional
        Where the codes of shapes and looks lie, of models that have such codes.
    checks : tuple of CopyCheck
        Of shape and looks, made at the fit.
    """

    shape: GenerativeBase
    looks: GenerativeBase
    channels: tuple[str, ...]
    labels: tuple[int, ...]
    definition: Definition
    half_sides_mm: tuple[float, ...]
    counts: tuple[int, ...]
    texture: float
    settings: LesionSettings
    seed: int
    parents: tuple[str, ...]
    codes: tuple[CodeSpread | None, CodeSpread | None]
    checks: tuple[CopyCheck, ...] = field(default=())

    def draw(
        self, n: int, *, generator: Generator, half_side_mm: float | None = None
    ) -> list[DrawnLesion]:
        """Return ``n`` lesions, of a drawn or the wanted size, each turned at random.

        Sizes are those of training lesions times a factor of about 10 %.
        """
        if half_side_mm is None:
            chosen = torch.randint(len(self.half_sides_mm), (n,), generator=generator)
            drawn = torch.tensor(self.half_sides_mm)[chosen]
            sizes = drawn * torch.exp(0.1 * torch.randn(n, generator=generator))
        else:
            sizes = torch.full((n,), float(half_side_mm))
        levels = draw_levels(self.shape, self.codes[0], n, generator=generator)
        masks = (levels > 0).float()
        images = draw_images(
            self.looks,
            self.codes[1],
            condition_of(masks, sizes),
            texture=self.texture,
            generator=generator,
        )
        turns = torch.randint(len(TURNS), (n,), generator=generator).tolist()
        return [
            DrawnLesion(levels[i], images[i], float(sizes[i])).turned(*TURNS[turns[i]])
            for i in range(n)
        ]

    def draw_count(self, generator: Generator) -> int:
        """Return a number of lesions, as a training scan has."""
        return self.counts[int(torch.randint(len(self.counts), (), generator=generator))]

    def describe(self) -> dict[str, object]:
        """Return everything but the two models, as JSON."""
        return {
            "format": _FORMAT,
            "channels": list(self.channels),
            "labels": list(self.labels),
            "definition": {name: list(labels) for name, labels in self.definition.items()},
            "half_sides_mm": list(self.half_sides_mm),
            "counts": list(self.counts),
            "texture": self.texture,
            "settings": TypeAdapter(LesionSettings).dump_python(self.settings, mode="json"),
            "seed": self.seed,
            "parents": list(self.parents),
            "codes": [None if spread is None else spread.describe() for spread in self.codes],
            "copy_checks": [check.describe() for check in self.checks],
        }

    def save(self, folder: Path) -> None:
        """Write the models and ``lesions.json``, which comes last."""
        self.shape.save(folder / "shape")
        self.looks.save(folder / "looks")
        write_json(folder / "lesions.json", self.describe())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the model written by :meth:`save`.

        Raises
        ------
        ModelError
            There is none, or a part is missing or damaged.
        """
        path = folder / "lesions.json"
        if not path.is_file():
            raise ModelError(
                f"{folder} must hold learned lesions (lesions.json), but it does not.",
                hint="Make them with `medseg generate --learn`.",
            )
        try:
            text = json.loads(path.read_text(encoding="utf-8"))
            if text.get("format") != _FORMAT:
                raise ValueError(f"its format is {text.get('format')!r}, not {_FORMAT!r}")
            return cls(
                shape=load_cube_model(folder / "shape"),
                looks=load_cube_model(folder / "looks"),
                channels=tuple(text["channels"]),
                labels=tuple(text["labels"]),
                definition={name: tuple(found) for name, found in text["definition"].items()},
                half_sides_mm=tuple(text["half_sides_mm"]),
                counts=tuple(text["counts"]),
                texture=float(text["texture"]),
                settings=TypeAdapter(LesionSettings).validate_python(text["settings"]),
                seed=int(text["seed"]),
                parents=tuple(text["parents"]),
                codes=_restore_codes(text["codes"]),
                checks=tuple(CopyCheck(**check) for check in text["copy_checks"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"{path} must describe learned lesions, but: {error}.",
                hint="The file was changed or written by another version: learn them again.",
            ) from error


def _restore_codes(text: Sequence[Any]) -> tuple[CodeSpread | None, CodeSpread | None]:
    shape, looks = (None if spread is None else CodeSpread.restore(spread) for spread in text)
    return shape, looks


def condition_of(masks: Tensor, half_sides_mm: Tensor) -> Tensor:
    """Return what looks depend on, (m, (k + 1) s^3): nested masks and the size, as maps."""
    size = (half_sides_mm.clamp(min=0.1) / 10.0).log().view(-1, 1, 1, 1, 1)
    maps = torch.cat([masks, size.expand(-1, 1, *masks.shape[2:])], dim=1)
    return maps.flatten(1)


def learn_lesions(
    scans: Sequence[LabelledScan],
    options: LesionSettings,
    *,
    channels: Sequence[str],
    definition: Definition,
    seed: int,
    check: bool = True,
) -> LesionModel:
    """Return the lesions of ``scans`` as a model; the same seed gives the same model.

    Parameters
    ----------
    scans : sequence of LabelledScan
        With all channels.
    options : LesionSettings
    channels : sequence of str
        Their modalities.
    definition : mapping of region to labels
        What the labels mean, kept for those who paint.
    seed : int
    check : bool
        Compare samples with the training lesions.

    Raises
    ------
    DataError
        No scan has a lesion that is large enough.
    ConfigError
        A kind or a setting that the catalogue does not have.
    ModelError
        A kind that cannot be sampled, or that takes no maps as condition.
    """
    labels = order_labels(scans)
    found = [
        cut_lesions(scan, labels=labels, side=options.side, least_voxels=options.least_voxels)
        for scan in scans
    ]
    lesions = [lesion for group in found for lesion in group]
    if not lesions:
        raise DataError(
            f"Lesions of at least {options.least_voxels} voxels are needed, but the {len(scans)} "
            "scans have none.",
            hint="Lower least_voxels, or use a finer spacing.",
        )
    items = _turned(lesions, options, seed=seed)
    masks = torch.stack([item.parts for item in items])
    images = torch.stack([item.image for item in items])
    condition = condition_of(masks, torch.tensor([item.half_side_mm for item in items]))
    shape, looks = _make_models(options, parts=len(labels), channels=len(channels))
    log.info("learning %d lesions of %d scans (%d cubes)", len(lesions), len(scans), len(items))
    shape.fit(masks, generator=torch_generator(seed, "shape"))
    looks.fit(images, generator=torch_generator(seed, "looks"), condition=condition)
    inside = masks[:, -1:] > 0.5
    texture = texture_correlation(looks, images, condition, inside)
    model = LesionModel(
        shape=shape,
        looks=looks,
        channels=tuple(channels),
        labels=labels,
        definition={name: tuple(found) for name, found in definition.items()},
        half_sides_mm=tuple(round(lesion.half_side_mm, 4) for lesion in lesions),
        counts=tuple(len(group) for group in found if group),
        texture=texture,
        settings=options,
        seed=seed,
        parents=tuple(dict.fromkeys(lesion.parent for lesion in lesions)),
        codes=(
            CodeSpread.of(shape, masks) if isinstance(shape, Vae) and shape.decoder.coins else None,
            CodeSpread.of(looks, images, condition) if isinstance(looks, Vae) else None,
        ),
    )
    if not check or len(lesions) < 3:
        return model
    drawn = model.draw(48, generator=torch_generator(seed, "copy check"))
    return LesionModel(**{**vars(model), "checks": check_copies(drawn, lesions, turns=TURNS)})


def _turned(lesions: Sequence[Lesion], options: LesionSettings, *, seed: int) -> list[Lesion]:
    """Return turned copies of every lesion, the same number of each."""
    rng = numpy_generator(seed, "turns")
    copies = max(1, min(options.copies, options.most_items // len(lesions)))
    # A fit needs two different items, so a single lesion is turned at least once.
    copies = max(copies, math.ceil(4 / len(lesions)))
    chosen = rng.permutation(len(lesions))[: options.most_items]
    return [
        lesions[index].turned(*TURNS[turn])
        for index in chosen
        for turn in rng.permutation(len(TURNS))[:copies]
    ]


def _make_models(
    options: LesionSettings, *, parts: int, channels: int
) -> tuple[GenerativeBase, GenerativeBase]:
    cube = (options.side,) * 3
    shape = make_cube_model(
        options.shape_kind,
        (parts, *cube),
        _merged(_SHAPE_DEFAULTS, options.shape_kind, options.shape),
    )
    if "sample" not in shape.provides or shape.condition_size:
        raise ModelError(
            f"Shapes are drawn from a model with samples and without a condition, but kind "
            f"{options.shape_kind!r} is not one.",
            hint="Use cube_vae, dbn, rbm, gmm or gan.",
        )
    kind = known_kinds().get(options.looks_kind)
    if kind is not None and "condition_maps" not in kind.settings_type.__pydantic_fields__:
        raise ModelError(
            f"Looks depend on the mask, but kind {options.looks_kind!r} takes no maps as its "
            "condition.",
            hint="Use cube_vae or gan.",
        )
    given = _merged(_LOOKS_DEFAULTS, options.looks_kind, options.looks)
    looks = make_cube_model(
        options.looks_kind, (channels, *cube), {**given, "condition_maps": parts + 1}
    )
    return shape, looks


def _merged(
    defaults: Mapping[str, dict[str, Any]], kind: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    return {**defaults.get(kind, {}), **given}
