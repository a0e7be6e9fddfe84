"""What is taken for a brain mask."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.data.sources.reading import read_brain
from medseg.errors import ScanError
from medseg.geometry import Grid
from medseg.io.nifti import read_label_map, write_scan
from medseg.preprocess.resample import resample
from medseg.scan import Scan

SHAPE = (40, 44, 36)
GRID = Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]))


def _ball() -> torch.Tensor:
    places = np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2
    return torch.from_numpy(np.linalg.norm(places, axis=-1) <= 15)


def _written(folder: Path, data: torch.Tensor, grid: Grid = GRID) -> Path:
    path = folder / "brainmask.nii.gz"
    write_scan(path, Scan(data.float().contiguous(), grid))
    return path


@given(height=st.sampled_from([1.0, 0.99999997, 255.0, 1000.0]), spacing=st.floats(3, 6))
def test_a_mask_of_any_height_with_any_soft_edge_is_read(
    tmp_path_factory, height: float, spacing: float
) -> None:
    grid = GRID.with_spacing([spacing] * 3)
    soft = resample(_ball().float()[None] * height, GRID, grid)[0]
    path = _written(tmp_path_factory.mktemp("soft"), soft, grid)
    assert torch.equal(read_brain(path).data, (soft > height / 2).to(torch.uint8))


def _image(inside: torch.Tensor) -> torch.Tensor:
    rng = np.random.default_rng(0)
    grey = torch.from_numpy(rng.normal(110, 20, SHAPE)).clamp(1, 255)
    return torch.where(inside, grey, 0.0)


def _parcellation(inside: torch.Tensor, labels: tuple[int, ...]) -> torch.Tensor:
    """Slabs along the first axis."""
    slabs = torch.tensor(labels)[torch.arange(SHAPE[0]) * len(labels) // SHAPE[0]]
    return torch.where(inside, slabs[:, None, None].expand(SHAPE), 0)


@pytest.mark.parametrize(
    "data",
    [
        _image(_ball()),
        _parcellation(_ball(), (1, 2, 3)),  # three tissues
        _parcellation(_ball(), (2, 3, 10, 17, 41, 42, 49, 60)),
        _parcellation(_ball(), (2, 3, 41, 42, 11101, 12175)),
    ],
    ids=["image", "tissues", "structures", "gyri"],
)
def test_an_image_or_a_parcellation_is_no_mask(tmp_path: Path, data: torch.Tensor) -> None:
    with pytest.raises(ScanError, match=r"brainmask\.nii\.gz.*image or a parcellation") as caught:
        read_brain(_written(tmp_path, data))
    assert "Binarise it" in caught.value.hint


def test_real_masks_are_masks(shared_data: Path) -> None:
    for path in sorted(shared_data.rglob("*brainmask*.nii.gz")):
        expected = read_label_map(path).data > 0
        assert torch.equal(read_brain(path).data > 0, expected)
