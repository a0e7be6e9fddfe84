"""A case source whose lesions are learned and whose heads are another source's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor

from medseg.data.phantom.cohort import PhantomSource
from medseg.data.source import CaseSource, check_index
from medseg.errors import DataError, ScanError
from medseg.preprocess.brain import brain_mask
from medseg.scan import Case, LabelMap, Scan
from medseg.seeding import torch_generator
from medseg.synthesis.lesion_model import LesionModel
from medseg.synthesis.lesions import normal_tissue
from medseg.synthesis.painting import Painted, paint_lesion
from medseg.synthesis.placing import draw_place, white_matter_weight

# Places tried for one lesion until this share of it finds room; else the best of them is taken.
_TRIES, _LEAST_SHARE = 6, 0.6


class LearnedSource:
    """Scans of other subjects with learned lesions painted into them.

    A case is a function of the lesions, the hosts, the seed and its index alone. Lesions that a
    host has already stay, with their labels.

    Parameters
    ----------
    name : str
    hosts : CaseSource
        Whose scans are painted into; each in turn, again with other lesions when there are fewer
        than cases.
    lesions : callable
        Returns the learned lesions; asked when the first case is.
    n_subjects : int
        Length.
    seed : int

    Raises
    ------
    DataError
        There is no host.
    """

    def __init__(
        self,
        name: str,
        hosts: CaseSource,
        lesions: Callable[[], LesionModel],
        *,
        n_subjects: int,
        seed: int,
    ) -> None:
        if not len(hosts):
            raise DataError(
                f"Lesions are painted into scans, but {hosts.name!r} has none.",
                hint="Give another source as hosts.",
            )
        self.name, self._hosts, self._lesions = name, hosts, lesions
        self._n_subjects, self.seed = n_subjects, seed
        self.licence = f"generated; heads: {hosts.licence}"
        self.citation = f"generated; heads: {hosts.citation}"

    @cached_property
    def lesions(self) -> LesionModel:
        """The learned lesions."""
        return self._lesions()

    @cached_property
    def lesions_hash(self) -> str:
        """Hash of the description of the lesions, weights left out."""
        text = json.dumps(self.lesions.describe(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return self._n_subjects

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Names of the cases."""
        return tuple(f"{self.name}-s{self.seed}-{index:04d}" for index in range(len(self)))

    @property
    def subjects(self) -> tuple[str, ...]:
        """The host behind each case: two cases of one head stay together."""
        whose = self._hosts.subjects
        return tuple(f"{self.name}-{whose[i % len(whose)]}" for i in range(len(self)))

    def provenance(self, index: int) -> dict[str, object]:
        """Return what a case was generated from, as JSON: model, seed, parents."""
        index = check_index(index, len(self))
        model = self.lesions
        return {
            "model": {
                "kind": "learned",
                "shape": model.shape.kind,
                "looks": model.looks.kind,
                "hash": self.lesions_hash,
            },
            "seed": self.seed,
            "index": index,
            "parents": [self._hosts.identifiers[index % len(self._hosts)]],
            "lesions_learned_from": list(model.parents),
        }

    def __getitem__(self, index: int) -> Case:
        """Return the case at ``index``, generated anew each time.

        Raises
        ------
        IndexError
            The index is not in ``-len .. len - 1``.
        ScanError
            The host lacks a modality of the lesions, or has no room for any lesion.
        """
        index = check_index(index, len(self))
        place = index % len(self._hosts)
        host, model = self._hosts[place], self.lesions
        missing = [name for name in model.channels if name not in host.scans]
        if missing:
            raise ScanError(
                f"A host must have the modalities of the lesions, {list(model.channels)}, but "
                f"{host.identifier!r} has no {missing}.",
                hint="Learn lesions in the modalities of the hosts, or take other hosts.",
            )
        brain = brain_mask(host)
        image = torch.stack([host.scans[name].data for name in model.channels])
        before = torch.zeros(host.grid.shape, dtype=torch.int64)
        if host.label is not None:
            before = host.label.data.long()
        white = None
        if isinstance(self._hosts, PhantomSource):
            white = self._hosts.white_matter(place).square()
        generator = torch_generator(self.seed, "learned", index)
        spacing_mm = host.grid.spacing_mm
        image, label = _paint_all(
            model, image, before, brain.data > 0, white, spacing_mm, generator
        )
        if not bool((label != before).any()):
            raise ScanError(
                f"A host must have room for a lesion, but {host.identifier!r} has none.",
                hint="Take other hosts, or smaller lesions.",
            )
        return Case(
            identifier=self.identifiers[index],
            subject=self.subjects[index],
            scans={name: Scan(image[i], host.grid) for i, name in enumerate(model.channels)},
            label=LabelMap(label.to(torch.uint8), host.grid),
            brain=brain,
            synthetic=True,
        )


def _paint_all(
    model: LesionModel,
    image: Tensor,
    label: Tensor,
    brain: Tensor,
    white: Tensor | None,
    spacing_mm: tuple[float, float, float],
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Return image and label with as many lesions as a training scan has, where they find room."""
    normal = normal_tissue(image, label, brain)
    for lesion in model.draw(model.draw_count(generator), generator=generator):
        best: Painted | None = None
        near = nnf.max_pool3d((label > 0).float()[None, None], 3, 1, 1)[0, 0] > 0.5
        free = brain & ~near
        weight = (
            white_matter_weight(image, brain, free, spacing_mm) if white is None else white * free
        )
        for _ in range(_TRIES):
            place = draw_place(weight, generator)
            if place is None or (best is not None and best.share >= _LEAST_SHARE):
                break
            painted = paint_lesion(
                image,
                lesion,
                labels=model.labels,
                centre=place,
                allowed=free,
                normal=normal,
                spacing_mm=spacing_mm,
            )
            if bool(painted.label.any()) and (best is None or painted.share > best.share):
                best = painted
        if best is not None:
            image, label = best.image, torch.maximum(label, best.label)
    return image, label
