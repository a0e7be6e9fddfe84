import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medseg.geometry import Grid
from medseg.metrics.lesions import (
    LesionScores,
    LesionSettings,
    label_lesions,
    lesion_scores,
    lesion_table,
)

ONE_MM = (1.0, 1.0, 1.0)


def boxes(*corners: tuple[int, int, int], size: int = 2) -> np.ndarray:
    mask = np.zeros((20, 20, 20), dtype=bool)
    for x, y, z in corners:
        mask[x : x + size, y : y + size, z : z + size] = True
    return mask


def test_counts_follow_the_one_voxel_rule() -> None:
    reference = boxes((0, 0, 0), (6, 6, 6), (12, 12, 12))
    prediction = boxes((1, 1, 1), (6, 6, 6), (0, 15, 15), (15, 0, 0))
    scores = lesion_scores(prediction, reference, spacing_mm=ONE_MM)
    assert scores == LesionScores(n_reference=3, n_found=2, n_predicted=4, n_true=2)
    assert scores.sensitivity == pytest.approx(2 / 3)
    assert scores.precision == 0.5
    assert scores.f1 == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))


def test_a_share_of_the_lesion_can_be_asked_for() -> None:
    reference, prediction = boxes((0, 0, 0)), boxes((1, 1, 1))  # one voxel of eight is shared
    for share, found in ((0.125, 1), (0.13, 0)):
        rule = LesionSettings(min_overlap_share=share)
        scores = lesion_scores(prediction, reference, spacing_mm=ONE_MM, settings=rule)
        assert (scores.n_found, scores.n_true) == (found, found)


def test_one_prediction_over_two_lesions_finds_both() -> None:
    prediction = np.zeros((20, 20, 20), dtype=bool)
    prediction[:10, 0, 0] = True
    scores = lesion_scores(prediction, boxes((0, 0, 0), (6, 0, 0)), spacing_mm=ONE_MM)
    assert (scores.n_found, scores.n_predicted, scores.f1) == (2, 1, 1.0)


@pytest.mark.parametrize(("connectivity", "count"), [(6, 3), (18, 2), (26, 1)])
def test_connectivity_joins_faces_edges_corners(connectivity: int, count: int) -> None:
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 0] = mask[2, 2, 1] = True  # an edge, then a corner
    rule = LesionSettings(connectivity=connectivity)  # type: ignore[arg-type]
    assert label_lesions(mask, spacing_mm=ONE_MM, settings=rule)[1] == count


@given(st.integers(0, 10_000), st.booleans())
def test_component_count_agrees_with_simpleitk(seed: int, corners: bool) -> None:
    mask = np.random.default_rng(seed).random((9, 8, 7)) < 0.15
    rule = LesionSettings(connectivity=26 if corners else 6)
    oracle = SimpleITK.ConnectedComponentImageFilter()
    oracle.SetFullyConnected(corners)
    oracle.Execute(SimpleITK.GetImageFromArray(mask.astype(np.uint8)))
    labels, count = label_lesions(mask, spacing_mm=ONE_MM, settings=rule)
    assert count == oracle.GetObjectCount()
    assert ((labels > 0) == mask).all()
    sizes = np.bincount(labels.ravel())[1:]
    assert (np.diff(sizes) <= 0).all(), "lesion 1 is the largest"


def test_minimum_size_is_in_mm3_and_drops_neither_side_into_error() -> None:
    spacing_mm = (1.0, 1.0, 3.0)
    reference, prediction = boxes((0, 0, 0), (6, 6, 6)), boxes((0, 0, 0), (6, 6, 6))
    reference[15, 15, 15] = True  # 3 mm3, missed
    prediction[15, 0, 0] = True  # 3 mm3, false
    strict = lesion_scores(prediction, reference, spacing_mm=spacing_mm)
    lenient = lesion_scores(
        prediction, reference, spacing_mm=spacing_mm, settings=LesionSettings(min_volume_mm3=3.1)
    )
    assert strict.f1 == pytest.approx(2 / 3)
    assert lenient == LesionScores(2, 2, 2, 2)


def test_a_prediction_on_a_spot_too_small_to_be_a_lesion_is_no_false_alarm() -> None:
    reference = np.zeros((20, 20, 20), dtype=bool)
    reference[5, 5, 5] = True
    rule = LesionSettings(min_volume_mm3=2)
    scores = lesion_scores(boxes((5, 5, 5)), reference, spacing_mm=ONE_MM, settings=rule)
    assert (scores.n_reference, scores.n_predicted, scores.n_true) == (0, 1, 1)


def test_table_names_every_lesion_with_place_and_volume() -> None:
    affine = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -10], [0, 0, 1, 5], [0, 0, 0, 1]])
    grid = Grid((20, 20, 20), affine)
    reference, prediction = boxes((4, 6, 8), (14, 14, 14), size=3), boxes((5, 7, 9), (0, 0, 0))
    rows = lesion_table(prediction, reference, grid=grid)
    assert [(row["side"], row["lesion"], row["found"]) for row in rows] == [
        ("reference", 1, True),
        ("reference", 2, False),
        ("prediction", 1, False),
        ("prediction", 2, True),
    ]
    first = rows[0]
    assert first["volume_mm3"] == pytest.approx(27 * 3.0)
    assert first["covered"] == pytest.approx(8 / 27)
    place = [first[key] for key in ("x_mm", "y_mm", "z_mm")]
    np.testing.assert_allclose(place, grid.to_world([5, 7, 9]))


def test_numbering_is_by_size_not_by_place() -> None:
    mask = boxes((0, 0, 0), size=1) | boxes((10, 10, 10), size=4)
    labels, count = label_lesions(mask, spacing_mm=ONE_MM, settings=LesionSettings())
    assert (count, labels[11, 11, 11], labels[0, 0, 0]) == (2, 1, 2)
    again, _ = ndimage.label(mask)
    assert ((again > 0) == (labels > 0)).all()
