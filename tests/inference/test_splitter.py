import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.errors import ConfigError
from medseg.inference.splitter import choose_window, plan_windows, window_starts

lengths = st.integers(1, 40)
overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.75])


@given(lengths, lengths, overlaps)
def test_windows_of_an_axis_cover_it_with_the_overlap_asked_for(
    length: int, window: int, overlap: float
) -> None:
    starts = window_starts(length, window, overlap=overlap)
    width = min(window, length)
    covered = {voxel for start in starts for voxel in range(start, start + width)}
    assert covered == set(range(length))
    assert starts == tuple(sorted(set(starts)))
    # Whole voxels: neighbours may be less than one voxel farther apart than asked for.
    assert all(b - a < max(1, window * (1 - overlap)) + 1 for a, b in pairwise(starts))


@given(lengths, lengths, overlaps)
def test_one_window_less_would_not_overlap_enough(length: int, window: int, overlap: float) -> None:
    gaps = len(window_starts(length, window, overlap=overlap)) - 1
    if gaps > 1:
        assert (length - window) / (gaps - 1) > max(1, window * (1 - overlap))


def test_an_image_that_fits_is_one_window() -> None:
    assert plan_windows((5, 6, 7), (8, 8, 8), overlap=0.5) == (
        (slice(0, 5), slice(0, 6), slice(0, 7)),
    )


def test_windows_of_all_axes_are_combined() -> None:
    windows = plan_windows((9, 4, 7), (4, 4, 4), overlap=0.0)
    hits = np.zeros((9, 4, 7), dtype=int)
    for window in windows:
        hits[window] += 1
    assert len(windows) == len(set(map(str, windows))) == 3 * 1 * 2
    assert hits.min() == 1


@given(st.tuples(lengths, lengths, lengths), st.integers(1, 5000), overlaps)
def test_chosen_window_fits_image_and_memory(
    shape: tuple[int, ...], max_voxels: int, overlap: float
) -> None:
    window = choose_window(shape, max_voxels=max_voxels, overlap=overlap)
    assert all(1 <= w <= s for w, s in zip(window, shape, strict=True))
    assert math.prod(window) <= max_voxels
    assert (math.prod(shape) > max_voxels) or window == shape


def test_windows_of_one_voxel_never_fall_together() -> None:
    assert window_starts(4, 1, overlap=0.75) == (0, 1, 2, 3)


def test_a_little_more_than_fits_takes_two_windows() -> None:
    window = choose_window((40, 20, 20), max_voxels=12_000, overlap=0.5)
    assert len(plan_windows((40, 20, 20), window, overlap=0.5)) == 2


@pytest.mark.parametrize("window", [(4, 4), (0, 4, 4)])
def test_a_window_for_another_image_is_refused(window: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"\(6, 6, 6\)"):
        plan_windows((6, 6, 6), window, overlap=0.5)
