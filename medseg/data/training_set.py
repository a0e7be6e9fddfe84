"""From prepared cases to batches of patches.

Batch number ``step`` is a function of the seed and the step alone: nothing is remembered between
batches, so a training that is resumed sees exactly what the uninterrupted one would have seen.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Generator, Tensor

from medseg.data.augment import (
    AugmentSettings,
    SpatialDraw,
    augment_intensity,
    draw_kept_channels,
    draw_spatial,
)
from medseg.data.patches import PlaceIndex, draw_start, take_patch
from medseg.data.regions import Definition, RegionSettings, encode
from medseg.errors import DataError, ShapeError
from medseg.preprocess.prepare import PreparedCase
from medseg.seeding import numpy_generator, torch_generator
from medseg.settings import settings

__all__ = [
    "AugmentSettings",
    "Batch",
    "Batches",
    "PatchSampler",
    "PatchSettings",
    "TrainingCase",
    "cases_sha256",
    "make_training_case",
]


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """A case as the network is trained on it.

    Parameters
    ----------
    identifier, subject : str
        Names of the case and the person.
    image : Tensor, shape (c, *s), float32
        Absent channels are 0.
    present : Tensor, shape (c,), bool
        Which channels were measured.
    target : Tensor, shape (n, *s), float32
        1 inside each region.
    known : Tensor, shape (n,), bool
        Which regions the source defines.
    brain : Tensor, shape (*s), bool
    has_background : bool
        Channel 0 of the target is the background of a softmax head: no lesion is sought there.

    Raises
    ------
    ShapeError
        The tensors do not fit together.
    """

    identifier: str
    subject: str
    image: Tensor
    present: Tensor
    target: Tensor
    known: Tensor
    brain: Tensor
    has_background: bool = field(default=False)

    def __post_init__(self) -> None:
        spatial = tuple(self.brain.shape)
        expected = {
            "image": (self.image.shape, (len(self.present), *spatial)),
            "target": (self.target.shape, (len(self.known), *spatial)),
        }
        for name, (found, wanted) in expected.items():
            if tuple(found) != wanted:
                raise ShapeError(
                    f"The {name} of case {self.identifier!r} must have shape {wanted}, but has "
                    f"{tuple(found)}."
                )

    @property
    def regions(self) -> Tensor:
        """Target of each region, (r, *s): all channels but the background."""
        return self.target[int(self.has_background) :]


#: From case, patch of image (c, *p), target (n, *p) and brain (*p), and a generator to image and
#: target with something painted in, or in other colours.
Painter = Callable[[TrainingCase, Tensor, Tensor, Tensor, Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches for one step.

    Parameters
    ----------
    image : Tensor, shape (b, c, *p), float32
    target : Tensor, shape (b, n, *p), float32
    known : Tensor, shape (b, n), bool
    """

    image: Tensor
    target: Tensor
    known: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on another device."""
        return Batch(self.image.to(device), self.target.to(device), self.known.to(device))


class Batches(Protocol):
    """Batches by number, each a function of its number alone."""

    def batch(self, step: int) -> Batch:
        """Return batch number ``step``, whatever was asked for before."""
        ...


_Length = Annotated[int, Field(ge=1)]


@settings
class PatchSettings:
    """Size and place of patches.

    Parameters
    ----------
    size : tuple of 2 or 3 int
        Voxels along each axis; two for axial slices. A patch larger than the volume is padded with
        0.
    batch_size : int
        Patches a step.
    lesion_fraction : float
        Share of patches that contain a lesion voxel. Regions, their connected components and the
        voxels of one are drawn evenly in this order, so that a small lesion is seen as often as a
        large one.
    """

    size: tuple[_Length, ...] = Field(default=(32, 32, 32), min_length=2, max_length=3)
    batch_size: int = Field(default=2, ge=1)
    lesion_fraction: float = Field(default=0.5, ge=0, le=1)


def make_training_case(
    prepared: PreparedCase, *, regions: RegionSettings, definition: Definition
) -> TrainingCase:
    """Return a prepared case with its labels turned into the network's targets.

    Parameters
    ----------
    prepared : PreparedCase
        With a label.
    regions : RegionSettings
        What the network predicts.
    definition : mapping of str to sequence of int
        Labels of each region in the source of this case; regions left out are unknown.

    Raises
    ------
    DataError
        The case has no label.
    """
    if prepared.label is None:
        raise DataError(
            f"A case for training must have a mask, but {prepared.identifier!r} has none.",
            hint="Add the mask or leave the case out.",
        )
    target, known = encode(
        prepared.label, names=regions.names, definition=definition, mode=regions.mode
    )
    return TrainingCase(
        identifier=prepared.identifier,
        subject=prepared.subject,
        image=prepared.image,
        present=prepared.present,
        target=target,
        known=known,
        brain=prepared.brain,
        has_background=regions.mode == "classes",
    )


def cases_sha256(cases: Iterable[TrainingCase]) -> str:
    """Return a SHA-256 over all that a training sees of its cases, in their order."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(repr((case.identifier, case.subject)).encode())
        for part in (case.image, case.present, case.target, case.known, case.brain):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


class PatchSampler:
    """Batches of augmented patches by number.

    Cases take turns in an order that is shuffled anew each round, so all are seen equally often; a
    case listed twice (a bootstrap resample) takes two turns.

    Parameters
    ----------
    cases : sequence of TrainingCase
        At least one, of one number of channels and regions.
    patch : PatchSettings
    augment : AugmentSettings
    seed : int
    painter : callable, optional
        Paints lesions into patches, or gives them other intensities. It has a stream of chance of
        its own, so that with and without it the same patches are taken and changed alike.

    Raises
    ------
    DataError
        No case, or cases with different channels or regions.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        *,
        patch: PatchSettings,
        augment: AugmentSettings,
        seed: int,
        painter: Painter | None = None,
    ) -> None:
        kinds = sorted({(len(case.present), len(case.known)) for case in cases})
        if len(kinds) != 1:
            raise DataError(
                "Training needs cases of one number of channels and regions, but those of the "
                f"{len(cases)} cases are {kinds}.",
                hint="Prepare all cases with the same channels and regions.",
            )
        self._cases = tuple(cases)
        self._patch = patch
        self._augment = augment
        self._seed = seed
        self._painter = painter
        # A case that is listed twice is indexed once.
        distinct = {id(case): case for case in cases}
        places = {key: _index(case) for key, case in distinct.items()}
        labels = {key: _labels(case) for key, case in distinct.items()}
        self._places = tuple(places[id(case)] for case in cases)
        self._labels = tuple(labels[id(case)] for case in cases)

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self._cases)

    def case_indices(self, step: int) -> tuple[int, ...]:
        """Return which case each patch of batch ``step`` comes from."""
        first = step * self._patch.batch_size
        return tuple(self._case_at(first + place) for place in range(self._patch.batch_size))

    def _case_at(self, turn: int) -> int:
        rounds, place = divmod(turn, len(self._cases))
        order = numpy_generator(self._seed, "order", rounds).permutation(len(self._cases))
        return int(order[place])

    def batch(self, step: int) -> Batch:
        """Return batch number ``step``, whatever was asked for before."""
        generator = torch_generator(self._seed, "patches", step)
        paint = torch_generator(self._seed, "paint", step)
        patches = [self._one(index, generator, paint) for index in self.case_indices(step)]
        return Batch(
            image=torch.stack([image for image, _, _ in patches]),
            target=torch.stack([target for _, target, _ in patches]),
            known=torch.stack([known for _, _, known in patches]),
        )

    def _one(
        self, index: int, generator: Generator, paint: Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        case, places, size = self._cases[index], self._places[index], self._patch.size
        near_lesion = float(torch.rand((), generator=generator)) < self._patch.lesion_fraction
        voxel = places.lesion_voxel(generator) if near_lesion else places.brain_voxel(generator)
        image, labels = case.image, self._labels[index]
        if len(size) == 2 and image.ndim == 4:
            image, labels = image[..., voxel[2]], labels[..., voxel[2]]
        shape = image.shape[1:]
        start = draw_start(voxel[: len(size)], size=size, shape=shape, generator=generator)
        draw = SpatialDraw(flips=(False,) * len(size))
        if self._augment.enabled:
            draw = draw_spatial(self._augment, size=size, generator=generator)
        image, labels = take_patch(image, labels, start=start, size=size, draw=draw)
        target, brain = labels[:-1], labels[-1:] > 0.5
        if self._painter is not None:
            image, target = self._painter(case, image, target, brain[0], paint)
        if self._augment.enabled:
            image = self._change(image, brain, case.present, generator)
        return image, target, case.known

    def _change(
        self, image: Tensor, brain: Tensor, present: Tensor, generator: Generator
    ) -> Tensor:
        wide = (-1, *[1] * (image.ndim - 1))
        image = augment_intensity(
            image, brain & present.view(wide), settings=self._augment, generator=generator
        )
        kept = draw_kept_channels(
            present, chance=self._augment.modality_dropout, generator=generator
        )
        return image * kept.view(wide)


def _index(case: TrainingCase) -> PlaceIndex:
    first = 1 if case.has_background else 0
    return PlaceIndex.of(case.target[first:], case.known[first:], case.brain)


def _labels(case: TrainingCase) -> Tensor:
    """Stack target and brain, so that one interpolation keeps both aligned; bytes, to be small."""
    return torch.cat([case.target, case.brain[None].to(case.target.dtype)]).to(torch.uint8)
