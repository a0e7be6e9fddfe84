"""Resampling against SimpleITK, and the laws that no oracle is needed for."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from medseg.errors import ShapeError
from medseg.geometry import Grid
from medseg.preprocess.lattice import parallel_axes
from medseg.preprocess.resample import resample, resample_labels

SHAPE = (13, 16, 11)


def make_grid(seed: int, *, oblique: bool, shape: tuple[int, int, int] = SHAPE) -> Grid:
    """Anisotropic voxels of 0.8 to 1.3 mm around one centre, so that two such grids overlap."""
    rng = np.random.default_rng(seed)
    linear = np.diag(rng.uniform(0.8, 1.3, 3) * rng.choice([-1, 1], 3))
    if oblique:
        linear = Rotation.from_rotvec(rng.uniform(-0.3, 0.3, 3)).as_matrix() @ linear
    affine = np.eye(4)
    affine[:3, :3] = linear
    centre = rng.uniform(-1, 1, 3)
    affine[:3, 3] = centre - linear @ (np.array(shape) - 1) / 2
    return Grid(shape, affine)


def _noise(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def _itk(data: torch.Tensor, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(data.numpy().transpose(2, 1, 0))
    flip = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(grid.spacing_mm)
    image.SetDirection((flip @ grid.affine[:3, :3] / np.array(grid.spacing_mm)).ravel().tolist())
    image.SetOrigin((flip @ grid.affine[:3, 3]).tolist())
    return image


def _by_itk(data: torch.Tensor, source: Grid, target: Grid, how: int, fill: float) -> np.ndarray:
    reference = _itk(torch.zeros(target.shape), target)
    image = sitk.Resample(_itk(data, source), reference, sitk.Transform(), how, fill)
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def _well_inside(source: Grid, target: Grid, margin: float = 0.05) -> np.ndarray:
    """Off the faces, where the two round differently."""
    voxels = source.to_voxel(target.to_world(np.moveaxis(np.indices(target.shape), 0, -1)))
    distance = np.abs(np.stack([voxels + 0.5, np.array(source.shape) - 0.5 - voxels]))
    return distance.min(axis=(0, -1)) > margin


@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.sampled_from([0.0, -3.0]))
def test_linear_interpolation_is_that_of_simpleitk(seed, oblique_in, oblique_out, fill) -> None:
    source = make_grid(seed, oblique=oblique_in)
    target = make_grid(seed + 1, oblique=oblique_out, shape=(10, 9, 14))
    data = _noise(seed)
    ours = resample(data[None], source, target, fill=fill, blur=False)[0].numpy()
    theirs = _by_itk(data, source, target, sitk.sitkLinear, fill)
    where = _well_inside(source, target)
    assert where.any()
    assert np.allclose(ours[where], theirs[where], atol=1e-3)


@given(st.integers(0, 10**6), st.booleans())
def test_nearest_neighbour_is_that_of_simpleitk(seed, oblique) -> None:
    source = make_grid(seed, oblique=oblique)
    target = make_grid(seed + 1, oblique=False, shape=(10, 9, 14))
    data = torch.from_numpy(np.random.default_rng(seed).integers(1, 500, SHAPE).astype(np.int16))
    ours = resample(data[None], source, target, mode="nearest", fill=7)[0]
    assert ours.dtype == torch.int16
    theirs = _by_itk(data.float(), source, target, sitk.sitkNearestNeighbor, 7)
    # A position within rounding of the middle between two voxels may go either way.
    assert np.mean(ours.numpy() == theirs) > 0.999


@given(st.integers(0, 10**6), st.sampled_from([0.7, 1.0, 2.0, 3.3]))
def test_both_ways_of_interpolating_agree(seed, factor) -> None:
    source = make_grid(seed, oblique=False)
    target = source.with_spacing([factor * mm for mm in source.spacing_mm])
    affine = target.affine.copy()
    affine[:3, 3] += 0.21  # off the voxels
    target = Grid(target.shape, affine)
    turned = Rotation.from_rotvec([0, 0, 1e-3]).as_matrix()  # just enough to be not parallel
    affine = affine.copy()
    affine[:3, :3] = turned @ affine[:3, :3]
    almost = Grid(target.shape, affine)
    assert parallel_axes(source, target) is not None
    assert parallel_axes(source, almost) is None
    x, y, z = torch.meshgrid(*(torch.arange(float(n)) for n in SHAPE), indexing="ij")
    data = torch.sin(x / 2) + torch.cos(y / 3) * torch.sin(z / 2)
    a, b = resample(data[None], source, target)[0], resample(data[None], source, almost)[0]
    where = torch.from_numpy(_well_inside(source, target, margin=0.3))
    assert torch.allclose(a[where], b[where], atol=0.05)


def test_down_sampling_averages_what_it_cannot_show() -> None:
    grid = Grid((48, 48, 48), np.eye(4))
    data = _noise(0, grid.shape)
    coarse = grid.with_spacing((4, 4, 4))
    blurred = resample(data[None], grid, coarse)[0]
    aliased = resample(data[None], grid, coarse, blur=False)[0]
    sigma = np.sqrt(4**2 - 1) / 2.3548
    smooth = torch.from_numpy(gaussian_filter(data.numpy(), sigma, mode="nearest", truncate=4))
    expected = resample(smooth[None], grid, coarse, blur=False)[0]
    inner = (slice(2, -2),) * 3
    assert torch.allclose(blurred[inner], expected[inner], atol=2e-3)
    assert blurred.std() < 0.3 * aliased.std()


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("factor", [0.5, 1.3, 3.0])
def test_a_constant_stays_constant_and_a_ramp_stays_a_ramp(oblique, factor) -> None:
    source = make_grid(5, oblique=oblique, shape=(20, 22, 24))
    target = make_grid(6, oblique=False).with_spacing([factor] * 3)
    places = torch.from_numpy(target.to_world(np.moveaxis(np.indices(target.shape), 0, -1))).float()
    inside = torch.from_numpy(_well_inside(source, target, margin=5))
    assert inside.any()
    ones = resample(torch.ones(1, *source.shape), source, target)[0]
    assert torch.allclose(ones[inside], torch.tensor(1.0), atol=1e-5)
    ramp = torch.from_numpy(source.to_world(np.moveaxis(np.indices(source.shape), 0, -1))).float()
    ours = resample(ramp.permute(3, 0, 1, 2).contiguous(), source, target).permute(1, 2, 3, 0)
    assert torch.allclose(ours[inside], places[inside], atol=1e-3)


@given(
    st.integers(0, 10**6),
    st.booleans(),
    st.lists(st.integers(-4, 25), min_size=6, max_size=6),
    st.sampled_from(["RAS", "LPS", "ASL", "IRP"]),
)
def test_crops_pads_and_flips_move_values_exactly(seed, oblique, ends, orientation) -> None:
    source = make_grid(seed, oblique=oblique)
    start = ends[:3]
    stop = [max(a + 1, b) for a, b in zip(start, ends[3:], strict=True)]
    target = source.crop(start, stop).reoriented(orientation)
    data = torch.randint(1, 1000, (2, *SHAPE), generator=torch.Generator().manual_seed(seed))
    moved = resample(data, source, target, fill=-1)
    assert moved.dtype == data.dtype
    places = source.to_voxel(target.to_world(np.moveaxis(np.indices(target.shape), 0, -1)))
    index = np.rint(places).astype(int)
    inside = ((index >= 0) & (index < np.array(SHAPE))).all(axis=-1)
    expected = np.full((2, *target.shape), -1)
    expected[:, inside] = data.numpy()[:, *index[inside].T]
    assert np.array_equal(moved.numpy(), expected)
    if inside.all() and min(target.shape) > 0:
        again = resample(moved, target, source, fill=-1)
        kept = again != -1
        assert torch.equal(again[kept], data[kept])


def test_rounding_of_a_stored_affine_does_not_cost_exactness() -> None:
    grid = make_grid(3, oblique=True)
    stored = Grid(SHAPE, grid.affine.astype(np.float32).astype(np.float64))
    data = _noise(0)
    assert torch.equal(resample(data[None], grid, stored)[0], data)


def test_a_grid_that_misses_the_source_is_all_fill() -> None:
    source = make_grid(1, oblique=False)
    for turn in (0.0, 0.3):
        affine = source.affine.copy()
        affine[:3, :3] = Rotation.from_rotvec([turn, 0, 0]).as_matrix() @ affine[:3, :3] * 1.1
        affine[:3, 3] += 500
        for mode in ("linear", "nearest"):
            far = Grid((3, 4, 5), affine)
            moved = resample(_noise(0)[None], source, far, mode=mode, fill=2)
            assert torch.equal(moved, torch.full((1, 3, 4, 5), 2.0))


def test_a_single_slice_can_be_resampled() -> None:
    source = Grid((6, 7, 1), np.diag([1, 1, 4, 1.0]))
    data = _noise(0, (6, 7, 1))
    moved = resample(data[None], source, source.with_spacing((1, 1, 2)))[0]
    assert torch.allclose(moved, data.expand(6, 7, 2))


def test_data_of_another_shape_are_refused() -> None:
    grid = make_grid(0, oblique=False)
    with pytest.raises(ShapeError, match=r"\(13, 16, 11\).*\(1, 3, 3, 3\)"):
        resample(torch.zeros(1, 3, 3, 3), grid, grid)
    with pytest.raises(ShapeError):
        resample(torch.zeros(SHAPE), grid, grid)


def _ball(grid: Grid, radius_mm: float) -> torch.Tensor:
    places = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    return torch.from_numpy(np.linalg.norm(places, axis=-1) <= radius_mm).to(torch.uint8)


@pytest.mark.parametrize("spacing", [0.6, 1.7, 2.0, 3.0])
@pytest.mark.parametrize("oblique", [False, True])
def test_a_mask_keeps_volume_and_centre(spacing, oblique) -> None:
    source = make_grid(9, oblique=oblique, shape=(40, 40, 40))
    target = make_grid(10, oblique=False, shape=(40, 40, 40)).with_spacing([spacing] * 3)
    ball = _ball(source, 12)
    moved = resample_labels(ball, source, target)
    volumes = [
        float(mask.sum()) * grid.voxel_volume_mm3
        for mask, grid in ((ball, source), (moved, target))
    ]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.04)
    centres = [
        grid.to_world(np.argwhere(mask.numpy())).mean(axis=0)
        for mask, grid in ((ball, source), (moved, target))
    ]
    assert np.linalg.norm(centres[1] - centres[0]) < 0.1 * max(spacing, 1)


def test_two_touching_labels_both_stay_and_no_third_appears() -> None:
    source = Grid((24, 24, 24), np.eye(4))
    data = torch.zeros(source.shape, dtype=torch.int16)
    data[4:20, 4:20, 4:12] = 1
    data[4:20, 4:20, 12:20] = 530
    for mm in (0.7, 2.0, 2.3):
        moved = resample_labels(data, source, source.with_spacing([mm] * 3))
        assert moved.dtype == torch.int16
        assert moved.unique().tolist() == [0, 1, 530]
        assert float((moved > 0).sum()) * mm**3 == pytest.approx(16**3, rel=0.2)


def test_an_empty_mask_stays_empty() -> None:
    grid = make_grid(0, oblique=False)
    empty = torch.zeros(SHAPE, dtype=torch.uint8)
    assert resample_labels(empty, grid, grid.with_spacing((2, 2, 2))).sum() == 0
