import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medseg.errors import DataError
from medseg.experiment.statistics import (
    bootstrap_mean_interval,
    crossed_interval,
    holm,
    paired_difference,
)


def subjects_of(n, each=1):
    return [f"s{i:02d}" for i in range(n) for _ in range(each)]


class TestBootstrap:
    def test_agrees_with_scipy_where_each_subject_has_one_value(self):
        values = np.random.default_rng(0).gamma(2.0, size=30)
        found = bootstrap_mean_interval(values, subjects_of(30), seed=1, n_resamples=20_000)
        oracle = stats.bootstrap(
            (values,), np.mean, method="percentile", n_resamples=20_000, rng=2
        ).confidence_interval
        assert found.mean == pytest.approx(values.mean())
        assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=0.02)
        assert (found.n_values, found.n_subjects) == (30, 30)

    def test_matches_the_exact_bootstrap_of_three_subjects(self):
        # All 27 resamples are enumerated; the values of one subject always come together.
        groups = {"a": [0.0, 1.0], "b": [4.0], "c": [9.0, 9.0, 12.0]}
        values = [value for group in groups.values() for value in group]
        subjects = [name for name, group in groups.items() for _ in group]
        exact = [
            np.mean([value for name in drawn for value in groups[name]])
            for drawn in itertools.product(groups, repeat=3)
        ]
        found = bootstrap_mean_interval(values, subjects, seed=0, n_resamples=40_000, level=0.6)
        low, high = np.quantile(np.repeat(exact, 1000), [0.2, 0.8])
        assert (found.low, found.high) == pytest.approx((low, high))

    def test_repeating_a_subjects_values_adds_no_certainty(self):
        values = np.random.default_rng(3).normal(size=12)
        once = bootstrap_mean_interval(values, subjects_of(12), seed=0)
        often = bootstrap_mean_interval(np.repeat(values, 9), subjects_of(12, 9), seed=0)
        assert (often.low, often.high) == pytest.approx((once.low, once.high))
        naive = bootstrap_mean_interval(np.repeat(values, 9), subjects_of(108), seed=0)
        assert naive.high - naive.low < 0.5 * (once.high - once.low)

    def test_covers_the_truth_about_as_often_as_it_says(self):
        draw = np.random.default_rng(4)
        hits = 0
        for trial in range(300):
            # Two values a subject that share most of their variance.
            values = np.repeat(draw.normal(size=25), 2) + 0.2 * draw.normal(size=50)
            found = bootstrap_mean_interval(values, subjects_of(25, 2), seed=trial, n_resamples=400)
            hits += found.low <= 0.0 <= found.high
        assert 0.88 <= hits / 300 <= 0.99

    @given(
        values=st.lists(st.floats(-10, 10), min_size=2, max_size=12),
        shift=st.floats(-5, 5),
        scale=st.floats(0.1, 3),
    )
    def test_follows_a_change_of_unit(self, values, shift, scale):
        subjects = subjects_of(len(values))
        found = bootstrap_mean_interval(values, subjects, seed=5, n_resamples=200)
        moved = bootstrap_mean_interval(
            [scale * value + shift for value in values], subjects, seed=5, n_resamples=200
        )
        for name in ("mean", "low", "high"):
            expected = scale * getattr(found, name) + shift
            assert getattr(moved, name) == pytest.approx(expected, abs=1e-6)

    def test_seed_decides_and_order_of_cases_does_not(self):
        values, subjects = np.random.default_rng(9).normal(size=40), subjects_of(20, 2)
        first = bootstrap_mean_interval(values, subjects, seed=7)
        assert bootstrap_mean_interval(values, subjects, seed=7) == first
        assert bootstrap_mean_interval(values, subjects, seed=8) != first
        order = np.random.default_rng(0).permutation(40)
        shuffled = bootstrap_mean_interval(values[order], [subjects[i] for i in order], seed=7)
        assert (shuffled.low, shuffled.high) == pytest.approx((first.low, first.high))

    def test_one_subject_has_no_interval(self):
        found = bootstrap_mean_interval([0.5, 0.7], ["a", "a"], seed=0)
        assert found.mean == pytest.approx(0.6)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert found.n_subjects == 1

    @pytest.mark.parametrize(
        ("values", "subjects", "options", "value"),
        [
            ([], [], {}, r"\(0,\)"),
            ([1.0, 2.0], ["a"], {}, "1 subjects"),
            ([[1.0]], ["a"], {}, r"\(1, 1\)"),
            ([1.0, float("nan")], ["a", "b"], {}, "subject b"),
            ([1.0, 2.0], ["a", "b"], {"level": 95.0}, "95"),
            ([1.0, 2.0], ["a", "b"], {"n_resamples": 0}, "and 0"),
        ],
    )
    def test_refuses(self, values, subjects, options, value):
        with pytest.raises(DataError, match=value):
            bootstrap_mean_interval(values, subjects, seed=0, **options)


class TestCrossedInterval:
    def crossed(self, of_first, of_second, noise):
        draw = np.random.default_rng(1)
        first, second = (np.repeat(np.arange(8), 6), np.tile(np.arange(6), 8))
        values = of_first * draw.normal(size=8)[first] + of_second * draw.normal(size=6)[second]
        values = values + noise * draw.normal(size=48)
        return values, [f"h{i}" for i in first], [f"t{i}" for i in second]

    def test_is_the_bootstrap_over_one_factor_where_the_other_does_nothing(self):
        values, first, second = self.crossed(1.0, 0.0, 0.0)
        found = crossed_interval(values, first, second, seed=0)
        plain = bootstrap_mean_interval(values, first, seed=0)
        assert found.mean == pytest.approx(plain.mean)
        assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.06)
        assert (found.n_values, found.n_subjects) == (48, 48)

    def test_what_is_shared_makes_it_wider_than_independent_values(self):
        values, first, second = self.crossed(1.0, 1.0, 0.1)
        shared = crossed_interval(values, first, second, seed=0)
        apart = bootstrap_mean_interval(values, subjects_of(48), seed=0)
        assert shared.high - shared.low > 1.5 * (apart.high - apart.low)

    def test_one_level_has_no_interval(self):
        found = crossed_interval([0.1, 0.3], ["a", "a"], ["x", "y"], seed=0)
        assert (found.mean, found.n_subjects) == (pytest.approx(0.2), 2)
        assert math.isnan(found.low)


class TestPairedDifference:
    def test_is_the_interval_and_the_test_of_the_differences(self):
        draw = np.random.default_rng(1)
        a, b = draw.normal(0.3, size=20), draw.normal(size=20)
        found = paired_difference(a, b, subjects_of(20), seed=2)
        interval = bootstrap_mean_interval(a - b, subjects_of(20), seed=2)
        assert (found.difference, found.low, found.high) == pytest.approx(
            (interval.mean, interval.low, interval.high)
        )
        assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(a, b).pvalue)
        assert (found.n_values, found.n_subjects) == (20, 20)

    def test_exchanging_the_methods_turns_the_sign(self):
        a, b = np.random.default_rng(2).normal(size=(2, 15))
        there = paired_difference(a, b, subjects_of(15), seed=0)
        back = paired_difference(b, a, subjects_of(15), seed=0)
        assert back.difference == pytest.approx(-there.difference)
        assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
        assert back.p_wilcoxon == pytest.approx(there.p_wilcoxon)

    def test_repeats_of_a_subject_do_not_lower_p(self):
        a, b = np.random.default_rng(3).normal(size=(2, 8))
        once = paired_difference(a, b, subjects_of(8), seed=0)
        often = paired_difference(np.repeat(a, 6), np.repeat(b, 6), subjects_of(8, 6), seed=0)
        assert often.p_wilcoxon == pytest.approx(once.p_wilcoxon)
        assert often.n_values == 48

    def test_three_subjects_cannot_be_significant(self):
        found = paired_difference([0.9, 0.8, 0.7], [0.1, 0.2, 0.05], subjects_of(3), seed=0)
        assert found.p_wilcoxon == pytest.approx(0.25)

    @given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
    def test_p_is_the_share_of_signs_that_say_as_much_with_zeros_and_ties(self, halves):
        a = np.array(halves) / 2.0
        ranks = stats.rankdata(np.abs(a)) * (a != 0)
        sums = [
            sum(rank for rank, up in zip(ranks, signs, strict=True) if up)
            for signs in itertools.product((False, True), repeat=len(a))
        ]
        seen = ranks[a > 0].sum()
        tails = np.mean(np.array(sums) <= seen), np.mean(np.array(sums) >= seen)
        found = paired_difference(a, np.zeros(len(a)), subjects_of(len(a)), seed=0)
        assert found.p_wilcoxon == pytest.approx(min(1.0, 2 * min(tails)))

    def test_five_that_differ_among_fifty_five_that_do_not_show_what_five_show(self):
        a = np.r_[np.zeros(55), 0.1 * np.arange(1, 6)]
        found = paired_difference(a, np.zeros(60), subjects_of(60), seed=0)
        assert found.p_wilcoxon == pytest.approx(2 / 2**5)

    def test_equal_methods(self):
        found = paired_difference([0.1, 0.2], [0.1, 0.2], ["a", "b"], seed=0)
        assert (found.difference, found.low, found.high, found.p_wilcoxon) == (0, 0, 0, 1)

    def test_false_alarms_are_rare(self):
        draw = np.random.default_rng(5)
        p = [
            paired_difference(
                draw.normal(size=12), draw.normal(size=12), subjects_of(12), seed=0, n_resamples=1
            ).p_wilcoxon
            for _ in range(400)
        ]
        assert np.mean(np.array(p) <= 0.05) < 0.08

    def test_refuses_methods_of_different_cases(self):
        with pytest.raises(DataError, match=r"\(3,\)"):
            paired_difference([1.0, 2.0], [1.0, 2.0, 3.0], ["a", "b"], seed=0)


class TestHolm:
    def test_known_example(self):
        # By hand: 4 x .005, 3 x .01, 2 x .03, then the running maximum over 1 x .04.
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    @given(p=st.lists(st.floats(0, 1), max_size=8), alpha=st.floats(0.01, 0.5))
    def test_rejects_what_the_step_down_rule_rejects(self, p, alpha):
        rejected: set[int] = set()
        for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            if p[i] * (len(p) - step) > alpha:
                break
            rejected.add(i)
        assert {i for i, value in enumerate(holm(p)) if value <= alpha} == rejected

    @given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_between_the_raw_value_and_bonferroni(self, p):
        for raw, adjusted in zip(p, holm(p), strict=True):
            assert raw <= adjusted <= min(1.0, max(p) * len(p))

    def test_nothing_and_one(self):
        assert holm([]) == []
        assert holm([0.3]) == [0.3]

    @pytest.mark.parametrize("wrong", [-0.1, 1.2, float("nan")])
    def test_refuses(self, wrong):
        with pytest.raises(DataError, match=str(wrong)):
            holm([0.5, wrong])
