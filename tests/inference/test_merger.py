import random

import pytest
import torch

from medseg.errors import ShapeError
from medseg.inference.merger import LEAST_WEIGHT, Merger, gaussian_weights
from medseg.inference.splitter import plan_windows

SHAPE = (9, 7, 10)


def test_weights_are_symmetric_positive_and_largest_in_the_middle() -> None:
    weights = gaussian_weights((7, 5, 6))
    assert weights.shape == (7, 5, 6)
    assert weights.min() >= LEAST_WEIGHT
    assert weights[3, 2, 2] == weights.max() <= 1
    torch.testing.assert_close(weights, weights.flip(0, 1, 2))


def test_windows_cut_from_a_volume_give_it_back() -> None:
    volume = torch.rand(2, *SHAPE)
    merger = Merger(SHAPE)
    for window in plan_windows(SHAPE, (4, 4, 4), overlap=0.5):
        merger.add(window, volume[(..., *window)])
    torch.testing.assert_close(merger.merged(), volume)


def test_order_of_windows_does_not_matter() -> None:
    windows = list(plan_windows(SHAPE, (4, 5, 3), overlap=0.5))
    values = {str(window): torch.rand(2, 4, 5, 3) for window in windows}
    volumes = []
    for seed in range(3):
        random.Random(seed).shuffle(windows)
        merger = Merger(SHAPE)
        for window in windows:
            merger.add(window, values[str(window)])
        volumes.append(merger.merged())
    torch.testing.assert_close(volumes[0], volumes[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(volumes[0], volumes[2], atol=1e-6, rtol=0)


def test_the_middle_of_a_window_outweighs_the_edge_of_another() -> None:
    merger = Merger((12,))
    merger.add((slice(0, 8),), torch.zeros(1, 8))
    merger.add((slice(4, 12),), torch.ones(1, 8))
    merged = merger.merged()[0]
    assert merged[4] < 0.1 < 0.9 < merged[7]
    assert (merged.diff() >= 0).all()


def test_a_gap_is_refused() -> None:
    merger = Merger((4,))
    merger.add((slice(0, 3),), torch.ones(1, 3))
    with pytest.raises(ShapeError, match="cover all"):
        merger.merged()


def test_values_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(3,\).*\(1, 4\)"):
        Merger((4,)).add((slice(0, 3),), torch.ones(1, 4))
