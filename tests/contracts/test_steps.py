"""The law of every preprocessing step: undoing leads back to the input's grid and labels."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from medseg.geometry import Grid
from medseg.preprocess.crop import Crop
from medseg.preprocess.normalise import Normalise
from medseg.preprocess.reorient import Reorient
from medseg.preprocess.resample import Resample
from medseg.preprocess.step import Step
from medseg.scan import LabelMap, Scan

SHAPE = (14, 17, 11)
# Each makes a step for a grid, with the least share of labelled voxels that must come back.
STEPS = {
    "reorient": (lambda grid: Reorient("SPL"), 1.0),
    "crop": (lambda grid: Crop((1, 1, 1), (13, 16, 10)), 1.0),
    "pad": (lambda grid: Crop((-3, 0, -1), (20, 18, 12)), 1.0),
    "normalise": (lambda grid: Normalise(_label_map(grid), "zscore"), 1.0),
    "keep intensities": (lambda grid: Normalise(_label_map(grid), "none"), 1.0),
    "finer": (lambda grid: Resample((0.5, 0.5, 0.5)), 0.93),
    "same spacing": (lambda grid: Resample(grid.spacing_mm), 0.75),
    "coarser": (lambda grid: Resample((1.6, 1.9, 2.5)), 0.45),
}
GRIDS = ["aligned", "oblique", "sheared"]


def _grid(kind: str) -> Grid:
    affine = np.diag([-1.0, 1.2, 1.6, 1.0])
    if kind != "aligned":
        affine[:3, :3] = Rotation.from_rotvec([0.1, -0.3, 0.2]).as_matrix() @ affine[:3, :3]
    if kind == "sheared":
        affine[0, 1] += 0.15
    affine[:3, 3] = [40, -60, 12]
    return Grid(SHAPE, affine)


def _label_map(grid: Grid) -> LabelMap:
    data = torch.zeros(SHAPE, dtype=torch.int16)
    data[4:10, 5:12, 3:8] = 2
    data[5:8, 7:10, 4:7] = 300
    return LabelMap(data, grid)


def _scan(grid: Grid) -> Scan:
    x, y, z = torch.meshgrid(*(torch.arange(float(n)) for n in SHAPE), indexing="ij")
    return Scan(100 + 3 * x - 2 * y + z, grid)


@pytest.fixture(params=GRIDS)
def grid(request) -> Grid:
    return _grid(request.param)


@pytest.mark.parametrize("name", STEPS)
def test_undo_leads_back_to_the_grid_and_the_labels(name, grid) -> None:
    make, least = STEPS[name]
    step: Step = make(grid)
    label_map = _label_map(grid)
    changed, undo = step.apply(label_map)
    back = undo(changed)
    assert changed.data.dtype == back.data.dtype == torch.int16
    assert back.grid.shape == grid.shape
    assert np.array_equal(back.grid.affine, grid.affine)
    assert {*back.data.unique().tolist()} == {0, 2, 300}
    marked = label_map.data > 0
    kept = float((back.data == label_map.data)[marked | (back.data > 0)].float().mean())
    assert kept >= least
    if least == 1:
        assert torch.equal(back.data, label_map.data)


@pytest.mark.parametrize("name", STEPS)
def test_undo_brings_intensities_back_inside(name, grid) -> None:
    scan = _scan(grid)
    changed, undo = STEPS[name][0](grid).apply(scan)
    back = undo(changed)
    assert np.array_equal(back.grid.affine, grid.affine)
    core = (slice(5, 9), slice(6, 11), slice(4, 7))  # within every mask and crop, off the edges
    tolerance = 1e-3 if STEPS[name][1] == 1 else 0.5
    assert torch.allclose(back.data[core], scan.data[core], atol=tolerance)


@pytest.mark.parametrize("name", STEPS)
def test_a_mask_and_a_scan_go_to_the_same_place(name, grid) -> None:
    step = STEPS[name][0](grid)
    scan, _ = step.apply(_scan(grid))
    label_map, _ = step.apply(_label_map(grid))
    assert np.array_equal(scan.grid.affine, label_map.grid.affine)
    assert scan.data.shape == label_map.data.shape


@pytest.mark.parametrize("name", STEPS)
def test_undo_also_takes_what_was_computed_on_the_output_grid(name, grid) -> None:
    changed, undo = STEPS[name][0](grid).apply(_scan(grid))
    prediction = LabelMap((changed.data > changed.data.mean()).to(torch.uint8), changed.grid)
    back = undo(prediction)
    assert back.data.dtype == torch.uint8
    assert back.grid.matches(grid, tolerance_mm=0)
