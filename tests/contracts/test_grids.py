"""The law of every grid: voxel and world positions are two names of one place."""

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medseg.geometry import Grid

ORIENTATIONS = [
    "".join(letters) for order in permutations(["RL", "AP", "SI"]) for letters in product(*order)
]
KINDS = ["aligned", "oblique", "sheared"]


def make_grid(seed: int, kind: str, orientation: str = "RAS") -> Grid:
    """A small non-cubic, anisotropic grid of the kind, far from the origin."""
    rng = np.random.default_rng(seed)
    linear = np.diag(rng.uniform(0.5, 4, 3))
    if kind != "aligned":
        linear = Rotation.from_rotvec(rng.uniform(-0.4, 0.4, 3)).as_matrix() @ linear
    if kind == "sheared":
        linear = linear @ (np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, rng.uniform(-150, 150, 3)
    shape = tuple(int(n) for n in rng.integers(2, 9, 3))
    return Grid(shape, affine).reoriented(orientation)  # type: ignore[arg-type]


grids = st.builds(
    make_grid, st.integers(0, 10**6), st.sampled_from(KINDS), st.sampled_from(ORIENTATIONS)
)


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@given(grids, st.integers(0, 10**6))
def test_world_of_voxel_is_the_identity(grid, seed) -> None:
    voxels = np.random.default_rng(seed).uniform(-20, 20, (5, 3))
    assert grid.to_voxel(grid.to_world(voxels)) == pytest.approx(voxels, abs=1e-8)
    homogeneous = np.column_stack([voxels, np.ones(5)]) @ grid.affine.T
    assert grid.to_world(voxels) == pytest.approx(homogeneous[:, :3])


@given(grids, st.lists(st.integers(-3, 3), min_size=6, max_size=6))
def test_crop_then_pad_is_the_identity(grid, cut) -> None:
    start = [min(a, n - 1) for a, n in zip(cut[:3], grid.shape, strict=True)]
    stop = [max(n - b, a + 1) for a, b, n in zip(start, cut[3:], grid.shape, strict=True)]
    inner = grid.crop(start, stop)
    back = inner.crop([-a for a in start], [n - a for a, n in zip(start, grid.shape, strict=True)])
    assert back.matches(grid, tolerance_mm=1e-9)
    assert inner.to_world([0, 0, 0]) == pytest.approx(grid.to_world(start))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_orientation_is_reached_and_left_again(kind, orientation) -> None:
    grid = make_grid(3, kind)
    turned = grid.reoriented(orientation)
    assert turned.orientation == orientation
    assert turned.voxel_volume_mm3 == pytest.approx(grid.voxel_volume_mm3)
    # The same set of places, in another order.
    ours, theirs = np.round(turned.corners_mm(), 6), np.round(grid.corners_mm(), 6)
    assert {*map(tuple, ours + 0.0)} == {*map(tuple, theirs + 0.0)}
    assert turned.reoriented(grid.orientation).matches(grid, tolerance_mm=1e-9)


@given(st.integers(0, 10**6), st.sampled_from(KINDS[:2]), st.sampled_from(ORIENTATIONS))
def test_simpleitk_puts_voxels_at_the_same_place(seed, kind, orientation) -> None:
    grid = make_grid(seed, kind, orientation)
    flip = np.diag([-1.0, -1.0, 1.0])  # ITK's world is LPS
    image = sitk.Image([int(n) for n in grid.shape], sitk.sitkUInt8)
    image.SetSpacing(grid.spacing_mm)
    image.SetDirection((flip @ grid.affine[:3, :3] / np.array(grid.spacing_mm)).ravel().tolist())
    image.SetOrigin((flip @ grid.affine[:3, 3]).tolist())
    voxel = [1.5, -2.0, 0.25]
    place = flip @ np.array(image.TransformContinuousIndexToPhysicalPoint(voxel))
    assert grid.to_world(voxel) == pytest.approx(place, abs=1e-6)
