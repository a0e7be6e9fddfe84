import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from medseg.errors import ScanError, ShapeError
from medseg.metrics.calibration import (
    CLIP,
    brier_score,
    calibration_error,
    negative_log_likelihood_nats,
    pool_reliability,
    reliability_bins,
)

seeds = st.integers(0, 10_000)


def forecast(seed: int, n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.5, 0.8, n)
    return probability, rng.random(n) < probability**1.5


@given(seeds)
def test_likelihood_and_brier_agree_with_scikit_learn(seed: int) -> None:
    probability, truth = forecast(seed)
    clipped = probability.clip(CLIP, 1 - CLIP)
    assert negative_log_likelihood_nats(probability, truth) == pytest.approx(
        log_loss(truth, clipped)
    )
    assert brier_score(probability, truth) == pytest.approx(brier_score_loss(truth, probability))


@given(seeds, st.integers(2, 20))
def test_bins_agree_with_scikit_learn(seed: int, n_bins: int) -> None:
    probability, truth = forecast(seed)
    observed, predicted = calibration_curve(truth, probability, n_bins=n_bins)
    used = [one for one in reliability_bins(probability, truth, n_bins) if one["count"]]
    np.testing.assert_allclose([one["accuracy"] for one in used], observed)
    np.testing.assert_allclose([one["confidence"] for one in used], predicted)


def test_calibration_error_of_a_hand_made_forecast() -> None:
    probability = np.array([0.1] * 10 + [0.9] * 10)
    truth = np.array([True] * 3 + [False] * 7 + [True] * 9 + [False])
    bins = reliability_bins(probability, truth, 5)
    assert [one["count"] for one in bins] == [10, 0, 0, 0, 10]
    assert math.isnan(bins[2]["confidence"])
    assert calibration_error(bins) == pytest.approx(0.5 * 0.2 + 0.5 * 0.0)


def test_an_honest_forecast_has_nearly_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(200_000)
    honest = calibration_error(reliability_bins(probability, rng.random(200_000) < probability))
    assert honest < 0.01
    assert calibration_error(reliability_bins(probability, rng.random(200_000) < 0.2)) > 0.2


@given(seeds)
def test_pooled_bins_are_those_of_all_voxels_together(seed: int) -> None:
    parts = [forecast(seed), forecast(seed + 1, 80)]
    pooled = pool_reliability([reliability_bins(*part, 7) for part in parts])
    together = reliability_bins(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)), 7)
    for one, other in zip(pooled, together, strict=True):
        assert one == pytest.approx(other, nan_ok=True)


def test_certain_and_wrong_is_finite_and_the_worst() -> None:
    wrong = negative_log_likelihood_nats(np.array([0.0, 1.0]), np.array([True, False]))
    assert wrong == pytest.approx(-math.log(CLIP), rel=1e-6)
    assert brier_score(np.array([0.0, 1.0]), np.array([True, False])) == 1


def test_only_the_voxels_inside_count() -> None:
    probability, truth = np.array([0.5, 0.0, 1.0]), np.array([True, True, False])
    inside = np.array([True, False, False])
    assert negative_log_likelihood_nats(probability, truth, inside=inside) == pytest.approx(
        math.log(2)
    )


def test_one_is_counted_in_the_last_bin() -> None:
    bins = reliability_bins(np.array([1.0, 0.5, 0.0]), np.array([True, True, False]), 2)
    assert [one["count"] for one in bins] == [1, 2]


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan")])
def test_logits_and_nan_are_refused(bad: float) -> None:
    with pytest.raises(ScanError, match="between 0 and 1"):
        brier_score(np.array([0.5, bad]), np.array([True, False]))


def test_tables_with_different_bins_are_not_pooled() -> None:
    one = reliability_bins(np.array([0.5]), np.array([True]), 3)
    with pytest.raises(ShapeError, match=r"\[3, 4\]"):
        pool_reliability([one, reliability_bins(np.array([0.5]), np.array([True]), 4)])


def test_an_empty_scored_region_is_refused() -> None:
    with pytest.raises(ShapeError, match="0 voxels"):
        brier_score(np.array([0.5]), np.array([True]), inside=np.array([False]))
