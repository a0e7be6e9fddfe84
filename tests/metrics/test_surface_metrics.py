import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from scipy import ndimage

from medseg.errors import GeometryError, ShapeError
from medseg.metrics.surface import (
    hausdorff_mm,
    image_diagonal_mm,
    surface_dice,
    surface_distances_mm,
)

SPACING_MM = (1.0, 0.7, 2.5)
seeds = st.integers(0, 10_000)


def blobs(seed: int, shape: tuple[int, int, int] = (18, 16, 12)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 2, 2, 1))
    shared = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    one, two = fields / fields.std() + shared / shared.std()
    return one > np.quantile(one, 0.85), two > np.quantile(two, 0.9)


def batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None].float()


def ellipsoid(shape, spacing_mm, semi_axes_mm) -> np.ndarray:
    centre = (np.array(shape) - 1) / 2
    offsets = [
        (np.arange(n) - c) * s / a
        for n, c, s, a in zip(shape, centre, spacing_mm, semi_axes_mm, strict=True)
    ]
    x, y, z = np.meshgrid(*offsets, indexing="ij")
    return x**2 + y**2 + z**2 <= 1


@given(seeds, st.sampled_from([95.0, 100.0, 50.0]))
def test_hausdorff_agrees_with_monai(seed: int, percentile: float) -> None:
    one, two = blobs(seed)
    theirs = compute_hausdorff_distance(
        batch(one), batch(two), percentile=percentile, spacing=list(SPACING_MM)
    )
    ours = hausdorff_mm(one, two, spacing_mm=SPACING_MM, percentile=percentile)
    assert ours == pytest.approx(float(theirs), abs=1e-4)


@given(seeds, st.sampled_from([0.5, 1.0, 3.0]))
def test_surface_dice_agrees_with_monai(seed: int, tolerance_mm: float) -> None:
    one, two = blobs(seed)
    theirs = compute_surface_dice(
        batch(one),
        batch(two),
        class_thresholds=[tolerance_mm],
        include_background=True,
        spacing=list(SPACING_MM),
    )
    ours = surface_dice(one, two, spacing_mm=SPACING_MM, tolerance_mm=tolerance_mm)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


@given(seeds)
def test_distances_agree_with_a_dense_distance_transform(seed: int) -> None:
    one, two = blobs(seed)
    edge, other = (mask & ~ndimage.binary_erosion(mask) for mask in (one, two))
    dense = ndimage.distance_transform_edt(~other, sampling=SPACING_MM)[edge]
    ours, _ = surface_distances_mm(one, two, spacing_mm=SPACING_MM)
    np.testing.assert_allclose(ours, dense, atol=1e-9)


def test_hausdorff_agrees_with_simpleitk() -> None:
    # SimpleITK measures between whole masks, which is the same for sets that do not contain each
    # other's farthest point; the axes are reversed because ITK counts them the other way round.
    one, two = blobs(3)
    images = [SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in (one, two)]
    for image in images:
        image.SetSpacing(SPACING_MM[::-1])
    oracle = SimpleITK.HausdorffDistanceImageFilter()
    oracle.Execute(*images)
    ours = hausdorff_mm(one, two, spacing_mm=SPACING_MM, percentile=100.0)
    assert ours == pytest.approx(oracle.GetHausdorffDistance(), abs=1e-4)


def test_concentric_spheres_are_their_difference_in_radius_apart() -> None:
    shape, spacing_mm = (48, 48, 24), (1.0, 1.0, 2.0)
    small = ellipsoid(shape, spacing_mm, (10, 10, 10))
    large = ellipsoid(shape, spacing_mm, (16, 16, 16))
    assert hausdorff_mm(small, large, spacing_mm=spacing_mm) == pytest.approx(6, abs=1.5)
    assert surface_dice(small, large, spacing_mm=spacing_mm, tolerance_mm=8.0) == 1
    assert surface_dice(small, large, spacing_mm=spacing_mm, tolerance_mm=3.5) < 0.1


def test_ellipsoids_differ_most_along_the_longer_axis_in_mm() -> None:
    shape, spacing_mm = (31, 31, 31), (0.5, 1.0, 2.0)
    one = ellipsoid(shape, spacing_mm, (6, 6, 8))
    two = ellipsoid(shape, spacing_mm, (6, 6, 20))
    assert hausdorff_mm(one, two, spacing_mm=spacing_mm, percentile=100.0) == pytest.approx(
        12, abs=2
    )


@pytest.mark.parametrize(("axis", "step_mm"), enumerate(SPACING_MM))
def test_a_shift_is_measured_in_mm_of_its_own_axis(axis: int, step_mm: float) -> None:
    mask = np.zeros((14, 14, 14), dtype=bool)
    mask[5:8, 5:8, 5:8] = True
    shifted = np.roll(mask, 3, axis)
    distance = hausdorff_mm(mask, shifted, spacing_mm=SPACING_MM, percentile=100.0)
    assert distance == pytest.approx(3 * step_mm)


def test_the_edge_of_the_image_is_surface() -> None:
    full = np.ones((5, 5, 5), dtype=bool)
    core = np.zeros_like(full)
    core[2, 2, 2] = True
    assert hausdorff_mm(core, full, spacing_mm=(1.0, 1.0, 1.0), percentile=100.0) == pytest.approx(
        np.sqrt(12)
    )


def test_diagonal_is_the_worst_case_of_an_empty_mask() -> None:
    mask, empty = np.ones((3, 4, 1), dtype=bool), np.zeros((3, 4, 1), dtype=bool)
    assert image_diagonal_mm(mask.shape, (2.0, 2.0, 10.0)) == pytest.approx(np.sqrt(36 + 64 + 100))
    assert hausdorff_mm(mask, empty, spacing_mm=(2.0, 2.0, 10.0)) == pytest.approx(np.sqrt(200))
    assert hausdorff_mm(empty, empty, spacing_mm=(2.0, 2.0, 10.0)) == 0
    assert surface_dice(empty, mask, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=99.0) == 0


def test_two_dimensions_work_too() -> None:
    one, two = np.zeros((2, 9, 9), dtype=bool)
    one[2, 2], two[5, 6] = True, True
    assert hausdorff_mm(one, two, spacing_mm=(1.0, 1.0)) == 5


def test_surface_of_nothing_is_refused() -> None:
    mask = np.zeros((2, 2, 2), dtype=bool)
    with pytest.raises(ShapeError, match="0 and 0"):
        surface_distances_mm(mask, mask, spacing_mm=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, float("nan"))])
def test_impossible_spacing_is_refused(spacing_mm) -> None:
    mask = np.ones((2, 2, 2), dtype=bool)
    with pytest.raises(GeometryError, match="3 positive lengths"):
        hausdorff_mm(mask, mask, spacing_mm=spacing_mm)
