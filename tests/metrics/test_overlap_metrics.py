import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou

from medseg.errors import LabelError, ShapeError
from medseg.metrics.overlap import dice, intersection_over_union

seeds = st.integers(0, 10_000)


def random_pair(seed: int, shape: tuple[int, ...] = (7, 5, 6)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(shape) < rng.uniform(0.1, 0.7), rng.random(shape) < rng.uniform(0.1, 0.7)


@given(seeds)
def test_dice_and_iou_agree_with_monai(seed: int) -> None:
    prediction, reference = random_pair(seed)
    one, two = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference))
    assert dice(prediction, reference) == pytest.approx(float(compute_dice(one, two)), abs=1e-6)
    assert intersection_over_union(prediction, reference) == pytest.approx(
        float(compute_iou(one, two)), abs=1e-6
    )


@given(seeds)
def test_dice_and_iou_are_symmetric_and_tied_to_each_other(seed: int) -> None:
    prediction, reference = random_pair(seed)
    score, iou = dice(prediction, reference), intersection_over_union(prediction, reference)
    assert score == dice(reference, prediction)
    assert score == pytest.approx(2 * iou / (1 + iou))


def test_dice_of_two_overlapping_boxes_is_the_hand_computed_number() -> None:
    one, two = np.zeros((2, 8, 8, 8), dtype=bool)
    one[:4, :4, :4] = True  # 64 voxels
    two[2:6, :4, :4] = True  # 64 voxels, 32 shared
    assert dice(one, two) == 0.5
    assert intersection_over_union(one, two) == pytest.approx(1 / 3)


def test_tensors_and_integer_masks_are_taken() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    assert dice(mask, mask.to(torch.uint8)) == 1.0


def test_probabilities_are_refused_as_masks() -> None:
    with pytest.raises(LabelError, match=r"prediction .* float64 and from 0\.2 to 0\.9.*Threshold"):
        dice(np.array([0.2, 0.9]), np.array([True, False]))


def test_label_maps_are_refused_as_masks() -> None:
    with pytest.raises(LabelError, match=r"reference .* from 0 to 4"):
        dice(np.array([1, 0]), np.array([4, 0]))


def test_different_shapes_are_refused_with_both() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 2\) and \(3,\)"):
        dice(np.ones((2, 2), dtype=bool), np.ones(3, dtype=bool))
