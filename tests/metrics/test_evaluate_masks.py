import math

import numpy as np
import pytest
from pydantic import ValidationError

from medseg.errors import DataError
from medseg.metrics.evaluate import (
    METRICS,
    MetricSettings,
    aggregate,
    evaluate_masks,
    worst_scores,
)
from medseg.metrics.lesions import LesionSettings
from medseg.metrics.volume import volume_errors

SPACING_MM = (1.0, 2.0, 3.0)


def cube(size: int = 3) -> np.ndarray:
    mask = np.zeros((10, 9, 8), dtype=bool)
    mask[2 : 2 + size, 2 : 2 + size, 2 : 2 + size] = True
    return mask


def test_scores_hold_every_metric_and_both_volumes() -> None:
    scores = evaluate_masks(cube(), cube(4), spacing_mm=SPACING_MM, probability=cube() * 0.8)
    assert list(scores) == [*(m.name for m in METRICS), "volume_ml", "reference_volume_ml"]
    assert scores["volume_ml"] == pytest.approx(27 * 6 / 1000)
    assert scores["reference_volume_ml"] == pytest.approx(64 * 6 / 1000)
    assert scores["volume_error_percent"] == pytest.approx(100 * (27 - 64) / 64)
    assert all(math.isfinite(value) for value in scores.values())


def test_without_probabilities_calibration_is_undefined() -> None:
    scores = evaluate_masks(cube(), cube(), spacing_mm=SPACING_MM)
    assert all(math.isnan(scores[m.name]) == m.needs_probability for m in METRICS)


def test_settings_reach_the_metrics() -> None:
    speck = cube()
    speck[9, 8, 7] = True
    lenient = MetricSettings(nsd_tolerance_mm=50, lesions=LesionSettings(min_volume_mm3=7))
    default = evaluate_masks(speck, cube(), spacing_mm=SPACING_MM)
    scores = evaluate_masks(speck, cube(), spacing_mm=SPACING_MM, settings=lenient)
    assert default["lesion_precision"] == 0.5
    assert default["nsd"] < 1
    assert (scores["lesion_precision"], scores["nsd"]) == (1.0, 1.0)


def test_settings_refuse_unknown_keys_and_impossible_values() -> None:
    with pytest.raises(ValidationError):
        MetricSettings(nsd_tolerance_mm=0)
    with pytest.raises(ValidationError):
        MetricSettings(tolerance=1)  # type: ignore[call-arg]


def test_volume_error_percent_of_a_false_alarm_is_undefined() -> None:
    error_ml, percent = volume_errors(cube(), cube() & False, spacing_mm=SPACING_MM)
    assert error_ml > 0
    assert math.isnan(percent)


def test_missing_prediction_counts_with_the_worst_value() -> None:
    good = evaluate_masks(cube(), cube(), spacing_mm=SPACING_MM)
    table = aggregate([good, good, good, worst_scores(cube(), spacing_mm=SPACING_MM)])
    assert table["dsc"].mean == 0.75
    assert (table["dsc"].n, table["dsc"].n_missing, table["dsc"].n_undefined) == (4, 1, 0)
    diagonal_mm = math.sqrt(10**2 + 18**2 + 24**2)
    assert table["hd95_mm"].mean == pytest.approx(diagonal_mm / 4)
    assert table["volume_error_ml"].mean == pytest.approx(-27 * 6 / 4000)
    # nobody gave probabilities, so the missing one must not stand alone
    assert (table["ece"].n, table["ece"].n_undefined) == (0, 4)


def test_a_missing_prediction_is_never_better_than_any_other() -> None:
    empty = cube() & False
    for reference in (cube(), empty):
        worst = worst_scores(reference, spacing_mm=SPACING_MM)
        for prediction in (cube(4), empty, ~reference):
            scores = evaluate_masks(prediction, reference, spacing_mm=SPACING_MM)
            assert all(worst[key] <= scores[key] for key in ("dsc", "iou", "nsd", "lesion_f1"))
            assert worst["hd95_mm"] >= scores["hd95_mm"]


def test_a_bare_missing_row_takes_the_metrics_own_worst_value() -> None:
    table = aggregate([{"dsc": 0.9}, {"missing": "true"}])
    assert table["dsc"].mean == pytest.approx(0.45)
    with pytest.raises(DataError, match=r"hd95_mm.*worst_scores"):
        aggregate([{"hd95_mm": 3.0}, {"missing": True}])


def test_undefined_values_leave_the_denominator_and_are_counted() -> None:
    table = aggregate([{"dsc": "0.5", "ece": "n/a"}, {"dsc": 1.0, "ece": 0.1}])
    assert (table["ece"].n, table["ece"].n_undefined, table["ece"].mean) == (1, 1, 0.1)
    assert math.isnan(table["ece"].std)
    assert table["dsc"].median == 0.75
    assert table["dsc"].std == pytest.approx(math.sqrt(0.125))


def test_no_cases_have_no_mean() -> None:
    with pytest.raises(DataError, match="at least one case"):
        aggregate([])
