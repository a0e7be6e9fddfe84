import math

import numpy as np
import pytest
from crepes import ConformalRegressor
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medseg.calibration.conformal import (
    CUTS,
    best_coverage,
    cases_needed,
    conformal_quantile,
    controlled_cut,
    coverage_to_ask,
    false_shares,
    log_volume_score,
    log_volume_spread,
    missed_shares,
    percentile_among,
    volume_interval_ml,
)
from medseg.errors import ConfigError, DataError, ShapeError

VOXELS = 40
chances = arrays.arrays(np.float32, VOXELS, elements=st.floats(0, 1, width=32))
masks = arrays.arrays(np.bool_, VOXELS)


def binomial_spread(share: float, repeats: int) -> float:
    """Return four standard errors of a share: one run in 16,000 is outside."""
    return 4 * math.sqrt(share * (1 - share) / repeats)


# --- quantile -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "coverage"), [(9, 0.9), (30, 0.9), (5, 0.8), (50, 0.5)])
def test_the_next_case_is_covered_as_often_as_promised(n: int, coverage: float) -> None:
    repeats, rng = 4000, np.random.default_rng(n)
    scores = rng.lognormal(size=(repeats, n + 1))
    covered = [row[n] <= conformal_quantile(row[:n], coverage) for row in scores]
    # Without ties the chance is known exactly, and is never more than 1 / (n + 1) too large.
    exact = math.ceil(round((n + 1) * coverage, 9)) / (n + 1)
    assert coverage <= exact < coverage + 1 / (n + 1)
    assert np.mean(covered) == pytest.approx(exact, abs=binomial_spread(exact, repeats))


def test_too_few_cases_promise_nothing_finite() -> None:
    scores = np.arange(8.0)
    assert conformal_quantile(scores, 0.9) == math.inf
    assert conformal_quantile(np.arange(9.0), 0.9) == 8.0
    assert volume_interval_ml(3.0, spread=0.5, factor=math.inf) == (0.0, math.inf)


@given(st.integers(1, 300))
def test_what_is_needed_and_what_can_be_promised_agree(n: int) -> None:
    assert cases_needed(best_coverage(n)) == n
    assert math.isfinite(conformal_quantile(np.zeros(n), best_coverage(n)))
    assert math.isinf(conformal_quantile(np.zeros(n), best_coverage(n + 1)))


def test_the_coverage_that_a_hint_names_can_be_asked_for() -> None:
    for n in range(1, 201):
        named = float(coverage_to_ask(n))
        assert cases_needed(named) <= n
        assert best_coverage(n) - 0.01 < named <= best_coverage(n) + 1e-12
        controlled_cut(np.zeros((n, len(CUTS))), 1.0 - named, safe=0)
        if named < 0.99:
            assert cases_needed(named + 0.01) > n, "and no more is there to ask for"


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("spreads", ["alike", "various"])
def test_intervals_are_those_of_crepes(coverage: float, spreads: str) -> None:
    rng = np.random.default_rng(3)
    truth, predicted = rng.normal(size=(2, 60))
    sigmas = np.ones(60) if spreads == "alike" else rng.uniform(0.5, 2, size=60)
    theirs = ConformalRegressor()
    theirs.fit(truth[:40] - predicted[:40], sigmas=sigmas[:40])
    intervals = theirs.predict_int(predicted[40:], sigmas=sigmas[40:], confidence=coverage)
    # The same on the scale of the logarithm, with the offset taken off again.
    ml = [(np.exp(value) - 0.1 for value in pair) for pair in zip(predicted, truth, strict=True)]
    scores = [log_volume_score(*pair, spread=s) for pair, s in zip(ml[:40], sigmas, strict=False)]
    factor = conformal_quantile(np.array(scores), coverage)
    for middle, sigma, expected in zip(predicted[40:], sigmas[40:], intervals, strict=True):
        low_ml, high_ml = volume_interval_ml(np.exp(middle) - 0.1, spread=sigma, factor=factor)
        assert math.log(high_ml + 0.1) == pytest.approx(expected[1])
        assert low_ml == pytest.approx(max(0.0, math.exp(expected[0]) - 0.1))


@given(st.floats(0, 500), st.floats(0, 500), st.floats(0.05, 3), st.floats(0, 8))
def test_a_volume_is_in_the_interval_where_its_score_is_within_the_factor(
    predicted: float, true: float, spread: float, factor: float
) -> None:
    low, high = volume_interval_ml(predicted, spread=spread, factor=factor)
    score = log_volume_score(predicted, true, spread=spread)
    if abs(score - factor) > 1e-6:
        assert (low <= true <= high) == (score < factor)
    assert 0 <= low <= predicted + 1e-9
    assert predicted <= high + 1e-9


def test_samples_that_agree_leave_the_floor() -> None:
    assert log_volume_spread(np.full(5, 7.0), floor=0.2) == pytest.approx(0.2)
    assert log_volume_spread(np.zeros(1), floor=0.2) == pytest.approx(0.2)
    assert log_volume_spread(np.array([1.0, 9.0]), floor=0.2) > 1.0


def test_equal_scores_count_half() -> None:
    assert percentile_among(np.array([1.0, 2.0, 2.0, 3.0]), 2.0) == 50.0
    assert percentile_among(np.array([1.0]), 5.0) == 100.0


# --- masks ----------------------------------------------------------------------------------------


@given(chances, masks, masks)
def test_losses_are_monotone_and_nothing_at_the_safe_end(
    probability: np.ndarray, mask: np.ndarray, truth: np.ndarray
) -> None:
    missed, false = (f(probability, mask, truth) for f in (missed_shares, false_shares))
    assert missed[0] == 0
    assert false[-1] == 0
    assert (np.diff(missed) >= 0).all()
    assert (np.diff(false) <= 0).all()
    assert max(missed.max(), false.max()) <= 1


@given(chances, masks, masks, st.integers(0, len(CUTS) - 1))
def test_losses_are_those_of_the_masks(
    probability: np.ndarray, mask: np.ndarray, truth: np.ndarray, cut: int
) -> None:
    outer, inner = mask | (probability >= CUTS[cut]), mask & (probability > CUTS[cut])
    missed = (truth & ~outer).sum() / max(truth.sum(), 1)
    false = (inner & ~truth).sum() / max(inner.sum(), 1)
    assert missed_shares(probability, mask, truth)[cut] == pytest.approx(missed)
    # Of the false share it is the running maximum from the strict end.
    assert false_shares(probability, mask, truth)[cut] >= false - 1e-12


def simulated(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both losses of n cases whose probabilities are wrong in ways of their own."""
    both = []
    for _ in range(n):
        truth = rng.random(200) < rng.uniform(0.0, 0.4)
        logits = 2 * rng.normal(size=200) + 3 * (truth - 0.5) * rng.uniform(0.2, 2) + rng.normal()
        probability = 1 / (1 + np.exp(-logits))
        mask = probability > 0.5
        both.append([f(probability, mask, truth) for f in (missed_shares, false_shares)])
    return tuple(np.stack(rows) for rows in zip(*both, strict=True))


@pytest.mark.parametrize("allowed", [0.1, 0.3])
def test_the_expected_loss_of_the_next_case_is_at_most_what_is_allowed(allowed: float) -> None:
    rng, n, repeats = np.random.default_rng(0), 15, 400
    drawn = simulated(rng, 600)
    for losses, safe in zip(drawn, (0, -1), strict=True):
        ends = []
        for _ in range(repeats):
            chosen = rng.choice(len(losses), size=n + 1, replace=False)
            cut = controlled_cut(losses[chosen[:n]], allowed, safe=safe)
            ends.append(losses[chosen[n], cut])
        error = 4 * np.std(ends) / math.sqrt(repeats)
        assert np.mean(ends) <= allowed + error
        assert np.mean(ends) >= allowed - 2 / (n + 1) - error, "and it is not needlessly careful"


@given(st.integers(0, 10_000), st.floats(0.06, 0.5), st.floats(0.01, 0.4))
def test_allowing_more_never_takes_a_safer_cut(seed: int, allowed: float, more: float) -> None:
    missed, false = simulated(np.random.default_rng(seed), 16)
    loose = min(allowed + more, 0.95)
    assert controlled_cut(missed, loose, safe=0) >= controlled_cut(missed, allowed, safe=0)
    assert controlled_cut(false, loose, safe=-1) <= controlled_cut(false, allowed, safe=-1)


def test_too_few_cases_are_refused_with_the_number_that_is_needed() -> None:
    losses = np.zeros((8, len(CUTS)))
    with pytest.raises(DataError, match="9 cases on, but there are 8") as raised:
        controlled_cut(losses, 0.1, safe=0)
    assert "0.88" in raised.value.hint
    assert controlled_cut(np.zeros((9, len(CUTS))), 0.1, safe=0) == len(CUTS) - 1


def test_losses_that_no_promise_holds_for_are_refused() -> None:
    falling = np.tile(np.linspace(0.0, 0.5, 4), (20, 1))
    falling[3, 3] = 0.1
    for losses in (falling, np.full((20, 4), 0.2), np.tile([0.0, 2.0], (20, 1))):
        with pytest.raises(ShapeError, match="never fall"):
            controlled_cut(losses, 0.2, safe=0)


def test_a_case_without_lesion_misses_none_and_all_it_shows_is_false() -> None:
    probability = np.array([0.2, 0.9, 0.95])
    empty, mask = np.zeros(3, dtype=bool), probability > 0.5
    assert not missed_shares(probability, mask, empty).any()
    shares = false_shares(probability, mask, empty)
    assert set(shares) == {0.0, 1.0}
    assert shares[CUTS < 0.94].all()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, 1.5, 90.0, math.nan])
def test_a_coverage_that_is_none_is_refused(coverage: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        conformal_quantile(np.ones(20), coverage)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        cases_needed(coverage)


@pytest.mark.parametrize("scores", [[], [1.0, math.nan]])
def test_no_score_or_no_number_is_refused(scores: list[float]) -> None:
    with pytest.raises(DataError, match="at least one case"):
        conformal_quantile(np.array(scores), 0.9)
