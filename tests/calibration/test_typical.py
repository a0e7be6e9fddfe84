import numpy as np
import pytest

from medseg.calibration.typical import LEAST_STD, Typical, distances_left_out
from medseg.errors import DataError, ShapeError


def test_the_mean_is_as_usual_as_can_be_and_a_deviation_away_is_one() -> None:
    values = np.random.default_rng(0).normal(size=(200, 3)) * [1, 5, 20] + [0, 3, -7]
    usual = Typical.of(values)
    assert usual.distance(values.mean(axis=0)) == 0
    away = np.hypot(values.std(axis=0), LEAST_STD)
    assert usual.distance(values.mean(axis=0) - away) == pytest.approx(1)


def test_one_case_or_equal_ones_leave_a_width() -> None:
    assert Typical.of([[2.0, 3.0]]).distance([2.0, 3.0 + LEAST_STD]) == pytest.approx(0.5**0.5)


def test_a_subject_is_not_compared_with_itself() -> None:
    rows = [np.array([value]) for value in (0.0, 0.0, 5.0, 5.0)]
    subjects = ["a", "b", "c", "c"]
    distances = distances_left_out(rows, rows, subjects)
    # Both visits of "c" are far from "a" and "b", although they are alike.
    assert distances[2] == distances[3] == pytest.approx(50)
    assert distances[0] < distances[2]


def test_cases_that_show_nothing_do_not_count() -> None:
    rows = [np.array([1.0]), np.array([4.0])]
    assert distances_left_out(rows, [None, rows[1]], ["a", "b"])[1] == 0
    assert distances_left_out(rows, [None, rows[1]], ["a", "b"])[0] == pytest.approx(30)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="at least one case"):
        Typical.of(np.empty((0, 3)))
    with pytest.raises(DataError, match="finite"):
        Typical.of([[np.nan]])
    with pytest.raises(ShapeError, match="2 features"):
        Typical.of([[1.0, 2.0]]).distance([1.0])
