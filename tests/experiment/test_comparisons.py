"""Laws of ranks, power, calibrated intervals and the tables made of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medseg.errors import DataError
from medseg.experiment.decisions import decision_row, leave_one_subject_out
from medseg.experiment.pairs import ArmScores, paired_rows, rank_rows
from medseg.experiment.ranks import critical_difference, rank_arms
from medseg.experiment.statistics import detectable_difference, holm, referral_gain
from medseg.metrics.overlap import dice, expected_dice

# Demšar 2006, table 5a: q at 0.05 for 2 to 10 classifiers.
DEMSAR = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)


def arm(method: str, dsc: dict, source: str = "none", **columns: float) -> ArmScores:
    """Return an arm from DSC by (subset, seed, case); each case is a subject of its own."""
    rows = [
        {"subset": subset, "seed": seed, "case": case, "subject": case, "dsc": str(value)}
        | {key: str(number) for key, number in columns.items()}
        for (subset, seed, case), value in dsc.items()
    ]
    return ArmScores(method, source, rows)


def grid(level: float, spread: float = 0.0, seed: int = 0) -> dict:
    draw = np.random.default_rng(seed)
    return {
        (subset, s, f"c{case}"): level + 0.01 * case + spread * float(draw.normal())
        for subset in ("0", "1")
        for s in ("0", "1")
        for case in range(12)
    }


class TestRanks:
    def test_the_critical_difference_is_the_published_one(self):
        for k, q in enumerate(DEMSAR, start=2):
            found = critical_difference(k, 25)
            # The table of the paper is rounded, and off by up to 0.001.
            assert found / math.sqrt(k * (k + 1) / 150) == pytest.approx(q, abs=0.0015)

    def test_ranks_and_friedman_agree_with_their_definition(self):
        scores = np.random.default_rng(0).normal(size=(9, 4))
        found = rank_arms(scores)
        n, k = scores.shape
        chi2 = 12 * n / (k * (k + 1)) * ((found.mean_ranks**2).sum() - k * (k + 1) ** 2 / 4)
        assert found.friedman_chi2 == pytest.approx(chi2)
        assert found.p_friedman == pytest.approx(stats.chi2.sf(chi2, k - 1))
        assert found.mean_ranks.sum() == pytest.approx(k * (k + 1) / 2)

    def test_the_best_has_rank_1_and_ties_share(self):
        found = rank_arms([[0.9, 0.5, 0.5], [0.8, 0.1, 0.1]])
        assert found.mean_ranks.tolist() == [1.0, 2.5, 2.5]

    def test_what_cannot_be_tested_is_not(self):
        assert math.isnan(rank_arms([[0.1, 0.2], [0.2, 0.1]]).p_friedman)
        assert math.isnan(rank_arms([[0.3] * 3] * 4).p_friedman)
        assert math.isnan(rank_arms([[0.1, 0.2, 0.3]]).critical_difference)
        with pytest.raises(DataError, match="1 entries"):
            rank_arms([[0.1, math.nan]])


class TestPower:
    def test_is_the_share_of_simulated_studies_that_find_the_difference(self):
        n, sd = 40, 0.1
        size = detectable_difference(sd, n)
        draws = np.random.default_rng(1).normal(size, sd, (4000, n))
        power = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean()
        assert power == pytest.approx(0.8, abs=0.03)

    def test_four_times_the_subjects_halve_it_and_one_shows_nothing(self):
        assert detectable_difference(0.1, 40) == pytest.approx(2 * detectable_difference(0.1, 160))
        assert math.isnan(detectable_difference(0.1, 1))


class TestConformal:
    def test_intervals_that_are_too_narrow_or_too_wide_come_to_cover_nine_in_ten(self):
        draw = np.random.default_rng(3)
        for reach in (0.01, 1.0):
            covered, widths = [], []
            for _ in range(60):
                true = np.exp(draw.normal(2, 1, 20))
                guess = true * np.exp(draw.normal(0, 0.3, 20))
                rows = volume_rows(guess * math.exp(-reach), guess * math.exp(reach), true)
                hit, width = leave_one_subject_out(rows)
                covered.append(hit.mean())
                widths.append(width.mean() / np.mean(guess))
            assert np.mean(covered) == pytest.approx(0.9, abs=0.03)
            assert 0.8 < np.mean(widths) < 1.6

    def test_cases_of_one_subject_do_not_calibrate_each_other(self):
        # All nine others are exact, and the two scans of one subject are not.
        rows = volume_rows(np.ones(11), np.ones(11), np.array([1.0] * 9 + [5.0, 5.0]))
        rows[-1]["subject"] = rows[-2]["subject"]
        covered, width = leave_one_subject_out(rows)
        assert covered[-2:].tolist() == [0.0, 0.0]
        assert width[-2:].tolist() == [0.0, 0.0]

    def test_too_few_subjects_give_no_number(self):
        covered, width = leave_one_subject_out(volume_rows(*np.ones((3, 5))))
        assert np.isnan(covered).all()
        assert np.isnan(width).all()


def volume_rows(low, high, true) -> list[dict[str, str]]:
    return [
        {"volume_low_ml": str(a), "volume_high_ml": str(b), "reference_volume_ml": str(c),
         "subject": f"s{i}", "case": f"s{i}", "subset": "0", "seed": "0"}
        for i, (a, b, c) in enumerate(zip(low, high, true, strict=True))
    ]  # fmt: skip


class TestReferral:
    def decided(self, std: np.ndarray, dsc: np.ndarray) -> dict[str, object]:
        rows = volume_rows(np.ones(len(dsc)), np.ones(len(dsc)), np.ones(len(dsc)))
        for row, spread, value in zip(rows, std, dsc, strict=True):
            row |= {"mean_std": str(spread), "dsc": str(value)}
        found = decision_row(ArmScores("dwp", "ms", rows), n=3, region="core", seed=0)
        assert found is not None
        return found

    def test_referring_the_worst_gains_what_they_cost(self):
        dsc = np.array([0.1, 0.2, *np.linspace(0.6, 0.95, 8)])
        found = self.decided(1 - dsc, dsc)
        assert found["gain_std"] == pytest.approx(dsc[2:].mean() - dsc.mean())
        assert found["low_gain_std"] >= 0
        assert self.decided(dsc, dsc)["gain_std"] < 0
        assert found["gain_expected_dsc"] is None

    @given(st.lists(st.tuples(*[st.integers(0, 100)] * 2), min_size=5, max_size=12))
    def test_no_uncertainty_gains_more_than_the_truth(self, pairs: list[tuple[int, int]]):
        std, dsc = np.array(pairs).T / 100
        found = self.decided(std, dsc)
        if found["gain_std"] is not None and found["gain_most"] is not None:
            assert found["gain_std"] <= found["gain_most"] + 1e-12
        assert self.decided(1 - dsc, dsc)["gain_std"] == pytest.approx(found["gain_most"])

    def test_no_mask_is_least_trusted_and_equal_certainty_gives_no_order(self):
        dsc = np.array([0.0, 0.8, 0.8, 0.8, 0.8])
        lost = self.decided(np.array([np.nan, 0.1, 0.2, 0.3, 0.4]), dsc)
        assert lost["gain_std"] == pytest.approx(0.16)
        assert self.decided(np.zeros(5), dsc)["gain_std"] is None

    def test_nobody_referred_gains_nothing(self):
        found = referral_gain([0.1, 0.9, 0.4], [True] * 3, ["a", "b", "c"], seed=0)
        assert (found.mean, found.low, found.high) == pytest.approx((0, 0, 0))

    def test_the_expected_dsc_is_the_true_one_of_a_network_that_is_right(self):
        draw = np.random.default_rng(0)
        chance = draw.beta(0.2, 0.2, 20_000)
        truth = draw.random(20_000) < chance
        assert expected_dice(chance, chance > 0.5) == pytest.approx(
            dice(chance > 0.5, truth), abs=0.01
        )
        assert expected_dice(np.zeros(4), np.zeros(4, dtype=bool)) == 1.0
        assert expected_dice(np.full(4, 0.3), np.zeros(4, dtype=bool)) == 0.0


class TestPairs:
    def test_every_pair_is_there_twice_with_opposite_signs_and_one_correction(self):
        draw = [arm(name, grid(0.5, 0.1, seed)) for seed, name in enumerate(("ri", "pr", "dwp"))]
        rows = paired_rows(draw, n=2, region="core", seed=0)
        by_pair = {(r["method"], r["against"]): r for r in rows}
        assert len(rows) == len(by_pair) == 6
        for (one, other), row in by_pair.items():
            back = by_pair[other, one]
            assert row["difference_dsc"] == pytest.approx(-back["difference_dsc"])
            assert (row["low"], row["high"]) == pytest.approx((-back["high"], -back["low"]))
            assert row["p_holm"] == back["p_holm"]
        once = [by_pair[pair] for pair in (("ri", "pr"), ("ri", "dwp"), ("pr", "dwp"))]
        assert [r["p_holm"] for r in once] == holm([float(r["p_wilcoxon"]) for r in once])

    def test_pairs_agree_in_subset_and_seed_and_lost_cells_are_left_out(self):
        whole, lost = grid(0.5), {k: v + 0.1 for k, v in grid(0.5).items() if k[:2] != ("1", "1")}
        (row, _) = paired_rows([arm("dwp", lost), arm("pr", whole)], n=2, region="core", seed=0)
        assert row["difference_dsc"] == pytest.approx(0.1)
        assert (row["n_pairs"], row["n_cases"], row["n_subjects"]) == (36, 12, 12)

    def test_thresholds_have_no_seed_and_source_networks_no_subset(self):
        tuned = {("0", "0", f"c{i}"): 0.2 for i in range(12)}
        tuned |= {("1", "0", f"c{i}"): 0.4 for i in range(12)}
        member = {("none", s, f"c{i}"): 0.1 + 0.2 * int(s) for s in "01" for i in range(12)}
        trained = {k: 0.5 + 0.1 * int(k[1]) for k in grid(0)}
        arms = [arm("threshold", tuned), arm("zero_shot", member, "ms"), arm("pr", trained, "ms")]
        arms = [replace(one, members=2) for one in arms]
        found = {
            (r["method"], r["against"]): r["difference_dsc"]
            for r in paired_rows(arms, n=2, region="core", seed=0)
        }
        assert found["pr", "threshold"] == pytest.approx(0.55 - 0.3)
        assert found["pr", "zero_shot"] == pytest.approx(0.55 - 0.2)
        # A threshold has no seed, so all source networks count, not that of seed 0 alone.
        assert found["threshold", "zero_shot"] == pytest.approx(0.3 - 0.2)
        (first, *rest) = rank_rows(arms, n=2, region="core")
        assert (first["method"], first["mean_rank"], first["n_subjects"]) == ("pr", 1.0, 12)
        assert [row["n_arms"] for row in rest] == [3, 3]

    @pytest.mark.parametrize("members", [1, 2, 3])
    def test_a_seed_is_held_against_the_network_it_started_from(self, members: int):
        seeds, draw = range(5), np.random.default_rng(0)
        start = {m: {f"c{i}": float(draw.random()) for i in range(4)} for m in range(members)}
        source = {("none", str(m), case): v for m, of in start.items() for case, v in of.items()}
        trained = {
            (subset, str(s), case): value + 0.1
            for subset in "01"
            for s in seeds
            for case, value in start[s % members].items()
        }
        arms = [arm("zero_shot", source, "ms"), arm("pr", trained, "ms")]
        arms = [replace(one, members=members) for one in arms]
        rows = {r["method"]: r for r in paired_rows(arms, n=2, region="core", seed=0)}
        assert rows["pr"]["difference_dsc"] == pytest.approx(0.1)
        # Like is compared with like, so that nothing spreads.
        assert rows["pr"]["sd_dsc"] == pytest.approx(0, abs=1e-12)
        assert rows["pr"]["n_pairs"] == 4 * 2 * len(seeds)

    def test_ranks_use_what_all_arms_were_scored_on(self):
        # Subset 1 alone would turn the order round, and one arm lost it.
        one = {k: 0.9 if k[0] == "0" else 0.0 for k in grid(0)}
        two = {k: 0.5 for k in grid(0) if k[0] == "0"}
        rows = rank_rows([arm("pr", one), arm("dwp", two)], n=2, region="core")
        assert [row["method"] for row in rows] == ["pr", "dwp"]
        assert rows[0]["n_places"] == 24

    def test_calibration_is_paired_too(self):
        one, two = arm("pr", grid(0.5), nll_nats=0.3), arm("dwp", grid(0.5), nll_nats=0.1)
        row, back = paired_rows([one, two], n=2, region="core", seed=0)
        assert row["difference_nll_nats"] == pytest.approx(0.2)
        assert back["low_nll_nats"] == pytest.approx(-0.2)
        assert row["difference_ece"] is None
