"""The case source that generates its subjects."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, TypeAdapter, model_validator

from medseg.data.phantom.anatomy import INDEX, Anatomy, label_map_anatomy, mni_anatomy
from medseg.data.phantom.confounders import draw_confounders
from medseg.data.phantom.contrast import Disease, Layer, draw_tissue_means, render
from medseg.data.phantom.deformation import Deformation, draw_deformation
from medseg.data.phantom.fields import sample, voxel_points
from medseg.data.phantom.lesion_masks import lesion_share
from medseg.data.phantom.ms_lesions import clip_mask, draw_lesions, make_disease, paint_lesions
from medseg.data.phantom.presets import MODALITIES, PRESETS, Preset
from medseg.data.phantom.random_contrast import (
    RANDOM_SCANNER,
    draw_random_means,
    fade,
    recolour,
)
from medseg.data.phantom.subject import Subject, grow_subject
from medseg.data.phantom.tumour import TumourPlan, draw_tumour, paint_tumour
from medseg.data.phantom.tumour_shapes import (
    PlacedShape,
    TumourShape,
    paint_shape,
    place_shape,
    read_tumour_shape,
    tumour_files,
)
from medseg.data.source import check_index
from medseg.data.sources.brats import Convention
from medseg.errors import ConfigError, DataError
from medseg.scan import Case, LabelMap, Scan
from medseg.seeding import numpy_generator
from medseg.settings import settings

Millimetres = Annotated[float, Field(ge=0.5, le=12.0)]
_CACHE_BYTES = 400_000_000
_CACHED_SHAPES = 16
_LEAST_SHARE = 0.1

logger = logging.getLogger(__name__)


@settings
class PhantomSettings:
    """What kind of subjects to generate.

    The two presets differ in anatomy, shape family, contrast and noise. With external label maps
    they also differ in heads: "source" takes every other file, "target" the rest.
    """

    #: Multiple-sclerosis lesions (label 1), or a glioma (labels 1 necrosis, 2 oedema,
    #: 3 non-enhancing, 4 enhancing), or a head without any label, to paint lesions into.
    disease: Literal["ms", "tumour", "healthy"] = "ms"
    #: Population and scanner.
    preset: Literal["source", "target"] = "source"
    #: Length of the cohort; subject i is the same in a cohort of any length.
    n_subjects: int = Field(default=20, ge=1)
    #: One voxel size for all axes, or one for each, in mm.
    spacing_mm: Millimetres | tuple[Millimetres, Millimetres, Millimetres] = 3.0
    #: Grey values of the preset's scanner, or drawn at random for each image.
    contrast: Literal["preset", "random"] = "preset"
    #: Which images a case has; with contrast "random" under any names.
    modalities: tuple[str, ...] = Field(default=("flair", "t1c"), min_length=1)
    #: Another seed is another cohort.
    seed: int = 0
    #: Folder of anatomical label maps with FreeSurfer-like identifiers; none: the MNI152 average.
    label_maps: Path | None = None
    #: Folder of multiple-sclerosis lesion masks in MNI space; none: generated lesions.
    lesion_masks: Path | None = None
    #: Folder with label maps of real tumours at any depth (files *seg* or *mask*; labels of BraTS),
    #: whose shapes are placed in these heads; none: generated shapes.
    tumour_masks: Path | None = None
    #: What the numbers in them mean, as ``label_convention`` of kind brats.
    tumour_labels: Convention = "auto"

    @model_validator(mode="after")
    def _knows_its_modalities(self) -> "PhantomSettings":
        unknown = [name for name in self.modalities if name not in MODALITIES]
        if unknown and self.contrast == "preset":
            raise ValueError(
                f"modalities must be among {list(MODALITIES)} with contrast 'preset', but "
                f"{unknown} are not: use contrast 'random' for any others"
            )
        return self


class PhantomSource:
    """A cohort of generated subjects: a case source that needs no file.

    A case is a function of the settings' seed, disease, preset, spacing, folders and of its index
    alone, not of ``n_subjects``, of the modalities asked for, or of what was read before.

    Parameters
    ----------
    settings : PhantomSettings

    Attributes
    ----------
    heads : tuple of Path
        The label maps that subjects are made from; empty for the MNI152 average.

    Raises
    ------
    ConfigError
        Lesion masks are given for a disease that is not multiple sclerosis, or tumour masks for
        one that is no tumour.
    DataError
        A folder of label maps or masks is missing or holds no NIfTI file.

    Examples
    --------
    >>> source = PhantomSource(PhantomSettings(n_subjects=2))
    >>> len(source), source.identifiers
    (2, ('phantom-ms-source-s0-0000', 'phantom-ms-source-s0-0001'))
    """

    def __init__(self, settings: PhantomSettings) -> None:
        for key, disease in (("lesion_masks", "ms"), ("tumour_masks", "tumour")):
            if getattr(settings, key) is not None and settings.disease != disease:
                raise ConfigError(
                    f"{key} are shapes of disease {disease!r}, but disease is "
                    f"{settings.disease!r}.",
                    hint=f"Leave {key} out, or set disease to {disease!r}.",
                )
        self.settings = settings
        spacing = settings.spacing_mm
        self._spacing_mm = spacing if isinstance(spacing, tuple) else (spacing, spacing, spacing)
        self.heads = _heads_of(settings)
        self._masks = _nifti_files(settings.lesion_masks, "lesion_masks")
        folder = settings.tumour_masks
        self._tumours = () if folder is None else tumour_files(folder)
        kind = "semireal" if self.heads or self._masks or self._tumours else "phantom"
        self.name = f"{kind}-{settings.disease}-{settings.preset}"
        if settings.contrast == "random":
            self.name += "-random"
        self.licence = "Apache-2.0 (generator); MNI152 maps: free use with the notice kept (McGill)"
        self.citation = _citation(settings)
        self._anatomies: OrderedDict[Path | None, Anatomy] = OrderedDict()
        self._shapes: OrderedDict[Path, TumourShape] = OrderedDict()

    def __len__(self) -> int:
        return self.settings.n_subjects

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Names of the cases; each case is a subject of its own."""
        return tuple(self._identifier(index) for index in range(len(self)))

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject of each case."""
        return self.identifiers

    def __getitem__(self, index: int) -> Case:
        """Return the case at ``index``, generated anew each time.

        Raises
        ------
        IndexError
            The index is not in ``-len .. len - 1``.
        """
        index = check_index(index, len(self))
        subject, disease = self._generate(index)
        scans = self._scans(subject, self._confounders(subject, index), disease.layers, index)
        return Case(
            identifier=self._identifier(index),
            subject=self._identifier(index),
            scans=scans,
            label=LabelMap(disease.label, subject.grid),
            brain=LabelMap(subject.brain.to(torch.uint8), subject.grid),
            synthetic=True,
        )

    def white_matter(self, index: int) -> torch.Tensor:
        """Return the share of cerebral white matter in each voxel of a case, shape (x, y, z)."""
        return self._generate(check_index(index, len(self)))[0].tissue("white")

    def provenance(self, index: int) -> dict[str, object]:
        """Return what a case was generated from, as JSON: model, seed, parents."""
        chosen = self.settings
        parents = []
        if self.heads:
            parents.append(str(_pick(self.heads, chosen.seed, index, "heads")))
        if self._masks:
            parents.append(str(_pick(self._masks, chosen.seed, index, "masks")))
        if self._tumours:
            parents.append(str(_pick(self._tumours, chosen.seed, index, "tumours")))
        dumped = TypeAdapter(PhantomSettings).dump_python(chosen, mode="json")
        return {
            "model": {"kind": "phantom", "settings": dumped},
            "seed": chosen.seed,
            "index": index,
            "parents": parents or ["MNI152 2009a"],
        }

    def _identifier(self, index: int) -> str:
        return f"{self.name}-s{self.settings.seed}-{index:04d}"

    def _rng(self, index: int, purpose: str) -> np.random.Generator:
        chosen = self.settings
        names = ("phantom", chosen.disease, chosen.preset, index, purpose)
        return numpy_generator(chosen.seed, *names)

    @property
    def _preset(self) -> Preset:
        return PRESETS[self.settings.preset]

    def _generate(self, index: int) -> tuple[Subject, Disease]:
        numbers = self._preset
        anatomy = self._anatomy(index)
        deformation = draw_deformation(anatomy, numbers.anatomy, self._rng(index, "deformation"))
        growth, looks = self._rng(index, "folds"), self._rng(index, "disease")
        if self.settings.disease == "healthy":
            subject = grow_subject(anatomy, deformation, numbers.anatomy, growth)
            return subject, Disease(torch.zeros(subject.grid.shape, dtype=torch.uint8), ())
        if self.settings.disease == "ms":
            subject = grow_subject(anatomy, deformation, numbers.anatomy, growth)
            share = self._lesion_share(index, anatomy, deformation, subject)
            return subject, make_disease(subject, share, numbers.lesions, looks)
        if self._tumours:
            shape = self._shape(_pick(self._tumours, self.settings.seed, index, "tumours"))
            placing = self._rng(index, "plan")
            placed, deformation = plan_shape(shape, anatomy, deformation, placing)
            subject = grow_subject(anatomy, deformation, numbers.anatomy, growth)
            return subject, paint_shape(subject, placed, numbers.lesions, looks)
        plan, deformation = plan_tumour(anatomy, deformation, numbers, self._rng(index, "plan"))
        subject = grow_subject(anatomy, deformation, numbers.anatomy, growth)
        return subject, paint_tumour(subject, plan, numbers.lesions, looks)

    def _lesion_share(
        self, index: int, anatomy: Anatomy, deformation: Deformation, subject: Subject
    ) -> torch.Tensor:
        rng = self._rng(index, "lesions")
        if self._masks:
            path = _pick(self._masks, self.settings.seed, index, "masks")
            share = lesion_share(path, anatomy)
            if rng.uniform() < 0.5:
                share = share.flip(0)
            points = deformation.template_points(voxel_points(subject.grid))
            share = clip_mask(subject, sample(share[None], anatomy.grid, points)[0])
            if float(share.max()) > _LEAST_SHARE:
                return share
            logger.warning("%s lies outside this head's white matter; lesions are drawn.", path)
        lesions = draw_lesions(subject, self._preset.lesions, rng)
        return paint_lesions(subject, lesions, rng)

    def _shape(self, path: Path) -> TumourShape:
        if path not in self._shapes:
            self._shapes[path] = read_tumour_shape(
                path, self._spacing_mm, convention=self.settings.tumour_labels
            )
            while len(self._shapes) > _CACHED_SHAPES:
                self._shapes.popitem(last=False)
        return self._shapes[path]

    def _confounders(self, subject: Subject, index: int) -> tuple[Layer, ...]:
        return draw_confounders(subject, self._preset.scanner, self._rng(index, "confounders"))

    def _scans(
        self,
        subject: Subject,
        confounders: Sequence[Layer],
        disease: Sequence[Layer],
        index: int,
    ) -> dict[str, Scan]:
        scanner = self._preset.scanner
        is_random = self.settings.contrast == "random"
        means = draw_tissue_means(scanner, self._rng(index, "contrast"))
        scans = {}
        for name in self.settings.modalities:
            layers = [*confounders, *disease]
            if is_random:
                rng = self._rng(index, f"random contrast {name}")
                means[name] = draw_random_means(rng)
                layers = [*fade(confounders, name, rng), *recolour(disease, name, rng)]
            image = render(
                subject,
                layers,
                modality=name,
                means=means[name],
                numbers=RANDOM_SCANNER if is_random else scanner,
                rng=self._rng(index, f"render {name}"),
            )
            scans[name] = Scan(image, subject.grid)
        return scans

    def _anatomy(self, index: int) -> Anatomy:
        path = _pick(self.heads, self.settings.seed, index, "heads") if self.heads else None
        if path not in self._anatomies:
            self._anatomies[path] = (
                mni_anatomy(self._spacing_mm)
                if path is None
                else label_map_anatomy(path, self._spacing_mm)
            )
        self._anatomies.move_to_end(path)
        while (
            len(self._anatomies) > 1
            and sum(anatomy.n_bytes for anatomy in self._anatomies.values()) > _CACHE_BYTES
        ):
            self._anatomies.popitem(last=False)
        anatomy = self._anatomies[path]
        mirror = self._rng(index, "mirror").uniform() < self._preset.anatomy.mirror_chance
        return anatomy.mirrored() if mirror else anatomy


def plan_tumour(
    anatomy: Anatomy, deformation: Deformation, numbers: Preset, rng: np.random.Generator
) -> tuple[TumourPlan, Deformation]:
    """Return a tumour and the deformation of the head after it has grown.

    Planned on the deformation's coarse grid, so that the head is sampled only once at full size.
    """
    white, depth_mm, _ = _room(anatomy, deformation)
    plan = draw_tumour(
        white=white, depth_mm=depth_mm, grid=deformation.grid, numbers=numbers.lesions, rng=rng
    )
    return plan, deformation.pushed(plan.pushes(), depth_mm)


def plan_shape(
    shape: TumourShape, anatomy: Anatomy, deformation: Deformation, rng: np.random.Generator
) -> tuple[PlacedShape, Deformation]:
    """Return a real tumour's place and the deformation of the head after it has grown there."""
    white, depth_mm, side_mm = _room(anatomy, deformation)
    placed = place_shape(
        shape, white=white, depth_mm=depth_mm, side_mm=side_mm, grid=deformation.grid, rng=rng
    )
    return placed, deformation.pushed(placed.pushes(), depth_mm)


def _room(
    anatomy: Anatomy, deformation: Deformation
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return white matter, depth and signed distance to the midline on the coarse grid."""
    maps = torch.stack([anatomy.fractions[INDEX["white"]], anatomy.depth_mm])
    points = deformation.template_points(voxel_points(deformation.grid))
    white, depth_mm = sample(maps, anatomy.grid, points)
    return white, depth_mm, points[..., 0] - float(anatomy.box_mm()[:, 0].mean())


def _pick(paths: tuple[Path, ...], seed: int, index: int, purpose: str) -> Path:
    """Return the file of a case: every file once, in random order, before any comes again."""
    lap, place = divmod(index, len(paths))
    order = numpy_generator(seed, "phantom", purpose, lap).permutation(len(paths))
    return paths[int(order[place])]


def _nifti_files(folder: Path | None, key: str) -> tuple[Path, ...]:
    if folder is None:
        return ()
    paths = tuple(sorted([*folder.glob("*.nii.gz"), *folder.glob("*.nii")]))
    if not paths:
        raise DataError(
            f"{key} must be a folder with NIfTI files, but {folder} has none.",
            hint=f"Correct the setting {key} of the phantom.",
        )
    return paths


def _heads_of(chosen: PhantomSettings) -> tuple[Path, ...]:
    paths = _nifti_files(chosen.label_maps, "label_maps")
    # No head on both sides, so that a transfer experiment cannot know its test anatomy.
    part = paths[0::2] if chosen.preset == "source" else paths[1::2]
    return part or paths


def _citation(chosen: PhantomSettings) -> str:
    cited = ["Fonov et al., NeuroImage 54 (2011) 313-327 (MNI152 2009a)"]
    if chosen.label_maps is not None:
        cited.append("Billot et al., Medical Image Analysis 86 (2023) 102789 (label maps)")
    if chosen.lesion_masks is not None:
        cited.append("Lesjak et al., Neuroinformatics 16 (2018) 51-63 (lesion masks)")
    if chosen.tumour_masks is not None:
        cited.append("Menze et al., IEEE TMI 34 (2015) 1993-2024 (tumour masks)")
    return "; ".join(cited)
