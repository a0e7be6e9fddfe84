import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.errors import ScanError
from medseg.geometry import Grid
from medseg.preprocess.crop import box_on
from medseg.preprocess.lattice import bounding_box


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=5))
def test_the_box_is_the_smallest_around_all(points) -> None:
    mask = torch.zeros(7, 8, 9, dtype=torch.bool)
    mask[tuple(torch.tensor(points).T)] = True
    start, stop = bounding_box(mask)
    assert start == tuple(np.min(points, axis=0))
    assert stop == tuple(np.max(points, axis=0) + 1)


def test_nothing_has_no_box() -> None:
    with pytest.raises(ScanError, match=r"\(2, 3, 4\)"):
        bounding_box(torch.zeros(2, 3, 4, dtype=torch.bool))


def test_a_box_keeps_its_size_on_its_own_grid_and_grows_by_the_margin() -> None:
    grid = Grid((20, 20, 20), np.diag([1, 2, 3, 1.0]))
    box = ((5, 6, 7), (9, 10, 11))
    assert box_on(box, grid, grid, margin_mm=0) == box
    assert box_on(box, grid, grid, margin_mm=2) == ((3, 5, 6), (11, 11, 12))
    assert box_on(box, grid, grid, margin_mm=1000) == ((0, 0, 0), (20, 20, 20))


@given(st.floats(0.7, 4))
def test_a_box_on_another_grid_holds_the_first(spacing) -> None:
    source = Grid((20, 22, 24), np.diag([-1, 1, 2, 1.0]))
    target = source.reoriented("RAS").with_spacing([spacing] * 3)
    box = ((5, 6, 7), (9, 10, 11))
    start, stop = box_on(box, source, target, margin_mm=0)
    corners = [source.to_world(np.array(end) - 0.5) for end in box]
    faces = np.sort([target.to_voxel(corner) for corner in corners], axis=0)
    assert np.all(np.array(start) - 0.5 <= faces[0] + 2e-3)
    assert np.all(np.array(stop) - 0.5 >= faces[1] - 2e-3)
