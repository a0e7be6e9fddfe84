"""Prepared cases of an experiment as raw data of nnU-Net, and what its labels are called."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.data.regions import Definition
from medseg.data.training_set import TrainingCase
from medseg.errors import ConfigError


@dataclass(frozen=True)
class Scheme:
    """Regions as labels: those nested in one another from the outside in, and any others.

    Parameters
    ----------
    nested, others : tuple of str
    """

    nested: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All regions in the order of nnU-Net's outputs."""
        return self.nested + self.others

    def labels(self) -> dict[str, int | list[int]]:
        """Return the entry ``labels`` of nnU-Net's ``dataset.json``."""
        depth, single = len(self.nested), len(self.names) == 1
        named: dict[str, int | list[int]] = {"background": 0}
        for place, name in enumerate(self.nested):
            named[name] = 1 if single else list(range(place + 1, depth + 1))
        for place, name in enumerate(self.others):
            named[name] = 1 if single else [depth + 1 + place]
        return named

    def has_regions(self) -> bool:
        """Return whether nnU-Net trains on regions: it does where one has several labels."""
        return len(self.nested) > 1

    def label_map(self, case: TrainingCase, names: Sequence[str]) -> NDArray[np.uint8]:
        """Return a case's target, whose channels are ``names``, as one label map."""
        target = dict(zip(names, case.target.numpy() > 0.5, strict=True))
        shape = tuple(case.target.shape[1:])
        label = np.zeros(shape, dtype=np.uint8)
        for name in self.nested:
            label += target[name]
        for place, name in enumerate(self.others):
            label[target[name] & (label == 0)] = len(self.nested) + 1 + place
        return label


def make_scheme(names: Sequence[str], definition: Definition) -> Scheme:
    """Return the scheme of regions, those of ``definition`` nested and the others apart.

    Raises
    ------
    ConfigError
        Two regions of the definition overlap without one lying in the other.
    """
    nested = sorted((n for n in names if n in definition), key=lambda n: -len(definition[n]))
    for outer, inner in itertools.pairwise(nested):
        if not set(definition[inner]) < set(definition[outer]):
            raise ConfigError(
                f"nnU-Net gets regions that lie in one another, but {inner!r} is not inside "
                f"{outer!r}.",
                hint="Compare on an experiment with protocol.regions.names such as [core, whole].",
            )
    return Scheme(tuple(nested), tuple(name for name in names if name not in definition))


def write_image(path: Path, data: NDArray[np.generic], spacing_mm: Sequence[float]) -> None:
    """Write a volume on a plain grid: only its spacing matters to nnU-Net."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, np.diag([*spacing_mm, 1.0])).to_filename(path)


def write_dataset(
    folder: Path,
    cases: dict[str, TrainingCase],
    *,
    names: Sequence[str],
    scheme: Scheme,
    channels: Sequence[str],
    spacing_mm: Sequence[float],
) -> None:
    """Write a raw data set of nnU-Net; the keys of ``cases`` are its file names.

    Region channels of the cases are ``names``. A region that a case does not know counts as absent:
    nnU-Net has no word for unknown.
    """
    for key, case in cases.items():
        write_channels(folder / "imagesTr", key, case, spacing_mm)
        label = scheme.label_map(case, names)
        write_image(folder / "labelsTr" / f"{key}.nii.gz", label, spacing_mm)
    about: dict[str, object] = {
        "channel_names": {str(place): name for place, name in enumerate(channels)},
        "labels": scheme.labels(),
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    if scheme.has_regions():
        about["regions_class_order"] = list(range(1, len(scheme.names) + 1))
    (folder / "dataset.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def write_channels(
    folder: Path, key: str, case: TrainingCase, spacing_mm: Sequence[float]
) -> list[str]:
    """Write the channels of a case and return their files."""
    paths = [folder / f"{key}_{place:04d}.nii.gz" for place in range(len(case.image))]
    for path, channel in zip(paths, case.image.numpy(), strict=True):
        write_image(path, channel, spacing_mm)
    return [str(path) for path in paths]
