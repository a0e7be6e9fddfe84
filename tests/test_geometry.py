"""Laws of grids; the contract over many kinds of affine is in contracts/test_grids.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.errors import GeometryError
from medseg.geometry import Grid


def _singular() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, 1] = affine[:3, 0]
    return affine


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((4, 5), np.eye(4), r"\(4, 5\)"),
        ((4, 5, 6, 1), np.eye(4), r"\(4, 5, 6, 1\)"),
        ((4, 0, 6), np.eye(4), r"\(4, 0, 6\)"),
        ((4, 5, 6), np.eye(3), "4 x 4"),
        ((4, 5, 6), np.diag([1, np.nan, 1, 1]), "finite"),
        ((4, 5, 6), np.diag([1, 0, 1, 1]), r"positive.*0\.0"),
        ((4, 5, 6), _singular(), "singular"),
    ],
)
def test_an_unusable_grid_is_refused_with_its_value(shape, affine, message) -> None:
    with pytest.raises(GeometryError, match=message):
        Grid(shape, affine)


def test_tiny_voxels_are_not_taken_for_a_singular_affine() -> None:
    assert Grid((4, 5, 6), np.diag([1e-3, 1e-3, 1e-3, 1])).voxel_volume_mm3 == pytest.approx(1e-9)


def test_an_affine_cannot_be_changed_behind_the_grid() -> None:
    affine = np.eye(4)
    grid = Grid((4, 5, 6), affine)
    affine[0, 0] = 7
    assert grid.spacing_mm == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 7


def test_the_volume_of_a_sheared_voxel_is_the_determinant() -> None:
    affine = np.array([[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]])
    grid = Grid((4, 5, 6), affine)
    assert grid.is_sheared
    assert grid.voxel_volume_mm3 == pytest.approx(12)
    assert np.prod(grid.spacing_mm) > 13


def test_distance_is_measured_at_the_corners_where_a_small_rotation_shows() -> None:
    turn = np.deg2rad(1)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    a, b = Grid((101, 1, 1), np.eye(4)), Grid((101, 1, 1), affine)
    assert a.corner_distance_mm(b) == pytest.approx(200 * np.sin(turn / 2))
    assert not a.matches(b, tolerance_mm=0.1)
    assert a.matches(b, tolerance_mm=2)
    assert not a.matches(Grid((100, 1, 1), np.eye(4)), tolerance_mm=1e9)


@given(
    shape=st.tuples(*[st.integers(2, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 5)] * 3),
    wanted=st.tuples(*[st.floats(0.4, 5)] * 3),
)
def test_another_spacing_covers_the_same_field_of_view(shape, spacing, wanted) -> None:
    grid = Grid(shape, np.diag([-spacing[0], spacing[1], spacing[2], 1]))
    other = grid.with_spacing(wanted)
    assert other.spacing_mm == pytest.approx(wanted)
    assert other.orientation == grid.orientation
    faces = other.to_voxel(grid.to_world([[-0.5] * 3, [n - 0.5 for n in shape]]))
    assert faces[0] == pytest.approx(-0.5, abs=1e-6)
    assert np.all(faces[1] <= np.array(other.shape) - 0.5 + 2e-3)
    assert np.all(faces[1] > np.array(other.shape) - 1.5)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -1, 1)])
def test_a_spacing_that_is_none_is_refused(spacing) -> None:
    with pytest.raises(GeometryError, match="three positive lengths"):
        Grid((4, 5, 6), np.eye(4)).with_spacing(spacing)


@pytest.mark.parametrize("orientation", ["RA", "RAX", "RLA", "RASI", "ras"])
def test_an_orientation_that_is_none_is_refused(orientation) -> None:
    with pytest.raises(GeometryError, match=orientation):
        Grid((4, 5, 6), np.eye(4)).reoriented(orientation)
