"""A small case with a bright lesion, on an oblique grid whose axes are swapped and flipped."""

import numpy as np
import pytest
import torch

from medseg.geometry import Grid
from medseg.scan import Case, LabelMap, Scan

SHAPE = (22, 26, 20)
SPACING_MM = (2.6, 2.0, 2.4)
CENTRES = ((11, 13, 10), (6, 9, 12))


def oblique_grid() -> Grid:
    angle = np.deg2rad(12)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    axes = np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1]], dtype=float)
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * SPACING_MM
    affine[:3, 3] = (31, -20, 12)
    return Grid(SHAPE, affine)


def distance_mm(centre: tuple[int, int, int]) -> torch.Tensor:
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in SHAPE), indexing="ij")
    offsets = [(p - c) * s for p, c, s in zip(places, centre, SPACING_MM, strict=True)]
    return torch.stack(offsets).square().sum(0).sqrt()


@pytest.fixture
def case() -> Case:
    grid, noise = oblique_grid(), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    brain = distance_mm(CENTRES[0]) < 21
    lesions = torch.stack([distance_mm(centre) for centre in CENTRES]).amin(0) < 5.5
    flair = brain * (100 + 4 * noise) + lesions * 80
    return Case(
        identifier="sub-01",
        subject="01",
        scans={"flair": Scan(flair, grid), "t1c": Scan(flair.flip(0) * 0.5, grid)},
        label=LabelMap(lesions.to(torch.uint8), grid),
        brain=LabelMap(brain.to(torch.uint8), grid),
    )
