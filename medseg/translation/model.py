"""A trained translator: network, settings and grey values, in a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from medseg.errors import ModelError
from medseg.generative.storage import content_hash, read_folder, write_folder
from medseg.preprocess.normalise import Scaling
from medseg.seeding import seeded_torch
from medseg.translation.generator import CyclePair, Generator
from medseg.translation.resolution import SuperResolver
from medseg.translation.settings import TranslationSettings

#: Name of the two files in a translator's folder.
NAME = "translator"


@dataclass(frozen=True, eq=False)
class Translator:
    """What makes scans of other scans.

    Parameters
    ----------
    network : Generator, CyclePair or SuperResolver
    settings : TranslationSettings
    grey : Scaling
        Mean and standard deviation that the made modality has inside the brain: the medians over
        the training cases. Super-resolution keeps those of its input and has (0, 1).
    training : dict
        Free JSON: cases, steps, last row of the history, seconds.
    """

    network: nn.Module
    settings: TranslationSettings
    grey: Scaling
    training: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write ``translator.safetensors`` and ``translator.json``."""
        write_folder(folder, NAME, self.network.state_dict(), self._description())

    def fingerprint(self) -> str:
        """Return a SHA-256 over weights and description."""
        return content_hash(self.network.state_dict(), self._description())

    def _description(self) -> dict[str, Any]:
        settings = TypeAdapter(TranslationSettings).dump_python(self.settings, mode="json")
        grey = {"offset": self.grey.offset, "scale": self.grey.scale}
        return {"settings": settings, "grey": grey, "training": self.training}


def load_translator(folder: Path) -> Translator:
    """Return the translator that :meth:`Translator.save` wrote.

    Raises
    ------
    ModelError
        A file is missing or damaged, or of another version.
    """
    tensors, description = read_folder(Path(folder), NAME)
    try:
        settings = TypeAdapter(TranslationSettings).validate_python(description["settings"])
        grey = Scaling(**description["grey"])
        network = build_network(settings)
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValidationError, RuntimeError) as error:
        raise ModelError(
            f"The description and weights of a translator must fit, but in {folder}: {error}",
            hint="The folder was written by another version: train the translator again.",
        ) from error
    return Translator(network.eval(), settings, grey, description.get("training", {}))


def build_network(settings: TranslationSettings) -> nn.Module:
    """Return the network of a translator, untrained; its start depends on the seed alone."""
    inputs, reach, widths = len(settings.channels), settings.neighbours, settings.widths
    with seeded_torch(settings.seed, "translator"):
        if settings.method == "super_resolution":
            return SuperResolver(factor=settings.factor, reach=reach, widths=widths)
        if settings.method == "cyclegan":
            same = settings.identity_weight > 0
            return CyclePair((inputs, 1), reach=reach, widths=widths, identity=same)
        return Generator((inputs, 1), reach=reach, widths=widths)
