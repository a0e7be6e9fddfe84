"""Small heads whose contrasts are known maps of one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg.data.training_set import PatchSettings
from medseg.geometry import Grid
from medseg.preprocess.prepare import PreprocessSettings
from medseg.scan import Case, LabelMap, Scan
from medseg.seeding import torch_generator
from medseg.training.loop import TrainingSettings
from medseg.translation.settings import TranslationSettings

SHAPE = (20, 18, 8)
Map = Callable[[Tensor], Tensor]


class ToySource:
    """Ellipsoids of smooth texture; each modality is a map of the first."""

    name, licence, citation = "toy", "none", "none"

    def __init__(
        self,
        maps: dict[str, Map],
        *,
        n: int = 3,
        first: int = 0,
        shape: Sequence[int] = SHAPE,
        spacing_mm: Sequence[float] = (5.0, 5.0, 5.0),
    ) -> None:
        self._maps, self._shape, self._numbers = maps, tuple(shape), range(first, first + n)
        self._grid = Grid(self._shape, np.diag([*spacing_mm, 1.0]))

    @property
    def identifiers(self) -> tuple[str, ...]:
        return tuple(f"case{number}" for number in self._numbers)

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.identifiers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Case:
        number = self._numbers[index]
        coarse = torch.rand(1, 1, 5, 5, 4, generator=torch_generator(0, "toy", number))
        size = self._shape
        texture = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")[0, 0]
        ends = [1.15 * (length > 1) for length in size]
        axes = [torch.linspace(-end, end, n) for end, n in zip(ends, size, strict=True)]
        far = sum(a.square() for a in torch.meshgrid(*axes, indexing="ij"))
        brain = far < 1
        scans = {
            name: Scan((50 + 100 * change(texture)) * brain, self._grid)
            for name, change in self._maps.items()
        }
        return Case(
            identifier=self.identifiers[index],
            subject=self.identifiers[index],
            scans=scans,
            brain=LabelMap(brain.to(torch.uint8), self._grid),
        )


def toy_settings(method: str, *, steps: int = 6, **changes: object) -> TranslationSettings:
    """Return settings of a training that takes a blink."""
    thick = method == "super_resolution"
    values: dict[str, object] = {
        "method": method,
        "channels": ("a",),
        "target": None if thick else "b",
        "neighbours": 1,
        "widths": (4, 8),
        "discriminator_widths": (4, 8),
        "factor": 2,
        "preprocess": PreprocessSettings(spacing_mm=None),
        "patch": PatchSettings(size=(8, 16) if thick else (16, 16), batch_size=2),
        "training": TrainingSettings(
            steps=steps, learning_rate=3e-3, warm_up_steps=2, log_every=2, device="cpu"
        ),
    }
    return TranslationSettings(**(values | changes))


@pytest.fixture(scope="session")
def source() -> Callable[..., ToySource]:
    return ToySource


@pytest.fixture(scope="session")
def settings() -> Callable[..., TranslationSettings]:
    return toy_settings
