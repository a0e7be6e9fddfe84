from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import get_args

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.config.build import read_experiment
from medseg.config.load import find_config, read_yaml
from medseg.io.atomic import read_table, write_table
from medseg.report import summary_table, write_report
from medseg.report.arms import LOOKS, Arm, look_of
from medseg.report.columns import best_of, number
from medseg.report.curves import groups_of
from medseg.report.plots import learning_curve
from medseg.report.run_folder import read_run
from medseg.report.statistics import bootstrap_interval, calibrations, coverages, summaries
from medseg.report.tables import held_out_table
from medseg.training.method import MethodName, MethodSettings
from medseg.training.objectives import ObjectiveSettings

#: Annotated: the union, and how its members are told apart.
OBJECTIVE = get_args(ObjectiveSettings)[0]

OKABE_ITO = {
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
    "#7F7F7F",
}  # fmt: skip


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_best_is_never_beaten(values: list[float]) -> None:
    for direction, cost in (("higher", lambda v: -v), ("lower", lambda v: v), ("zero", abs)):
        best = best_of(values, direction)
        assert best
        assert all(cost(values[i]) == min(map(cost, values)) for i in best)


@given(st.floats(-1e6, 1e6), st.integers(0, 4))
def test_number_reads_back_within_rounding(value: float, decimals: int) -> None:
    back = float(number(value, decimals).replace("−", "-"))
    assert abs(back - value) <= 0.51 * 10**-decimals


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        low, high = bootstrap_interval(list(rng.normal(0, 1, 40)), name="test")
        hits += low <= 0 <= high
    assert 85 <= hits <= 100


def test_summary_from_scores_has_the_means_of_the_saved_one(fake_run: Path, own_run: Path) -> None:
    (own_run / "summary.tsv").unlink()
    saved = {(r.arm, r.n, r.region): r for r in summaries(read_run(fake_run))}
    computed = {(r.arm, r.n, r.region): r for r in summaries(read_run(own_run))}
    assert saved.keys() == computed.keys()
    for key, row in saved.items():
        assert computed[key].mean == pytest.approx(row.mean, abs=1e-5)
        assert computed[key].n_cases == row.n_cases
        assert abs(computed[key].low - row.low) < 0.03


def test_ece_is_the_weighted_gap(own_run: Path) -> None:
    row = {"method": "ri", "source": "none", "n": 5, "region": "core"}
    points = [(0.1, 0.3, 100), (0.9, 0.8, 300), (0.5, 0.0, 0)]
    rows = [
        {**row, "bin": i, "confidence": c, "accuracy": a, "count": n}
        for i, (c, a, n) in enumerate(points)
    ]
    # Errors the other way at a smaller n do not count, or the two would cancel.
    rows += [{**row, "n": 1, "bin": 0, "confidence": 0.3, "accuracy": 0.1, "count": 100}]
    write_table(own_run / "reliability.tsv", rows)
    (curve,) = calibrations(read_run(own_run))
    assert curve.ece == pytest.approx((100 * 0.2 + 300 * 0.1) / 400)


def test_coverage_counts_intervals_that_hold_the_reference(fake_run: Path) -> None:
    rows = [
        row for row in read_table(fake_run / "scores.tsv")
        if (row["method"], row["n"], row["region"]) == ("dwp", "2", "core")
    ]  # fmt: skip
    low, high, true = (
        np.array([float(row[key]) for row in rows])
        for key in ("volume_low_ml", "volume_high_ml", "reference_volume_ml")
    )
    (found,) = [
        c
        for c in coverages(read_run(fake_run))
        if (c.arm.method, c.n, c.region) == ("dwp", 2, "core")
    ]
    assert (found.inside, found.total) == (int(((low <= true) & (true <= high)).sum()), len(rows))


def test_every_method_is_colour_blind_safe_and_unlike_the_others() -> None:
    assert {look.colour for look in LOOKS.values()} <= OKABE_ITO
    assert len({(look.colour, look.marker) for look in LOOKS.values()}) == len(LOOKS)
    assert look_of("brand_new") == look_of("brand_new")
    assert look_of("brand_new").colour in OKABE_ITO


def test_held_out_nats_are_those_over_all_layers(fake_run: Path) -> None:
    run = read_run(fake_run)
    ((_, rows),) = held_out_table(run.priors).bodies
    cells = {(row.head, row.cells[0].text): row.cells[1] for row in rows}
    assert cells["vae", "layer"].value == pytest.approx(44.02)
    assert cells["vae", "layer"].small == "± 0.11"
    assert cells["vae", "layer"].best
    assert cells["rbm", "layer"].text == "unnormalised"


def test_a_named_prior_has_words_of_its_own() -> None:
    assert look_of("dwp_gmm").short == "DWP: gmm"
    assert look_of("dwp_gmm_prior").short == "DWP: gmm, prior start"
    assert look_of("dwp_prior").short == "DWP (prior start)"
    assert look_of("anchored_near_rehearsal").short == "Anchored: near (rehearsal)"


WITHOUT_WORDS = look_of("brand_new").words


def test_every_arm_that_can_be_trained_has_words() -> None:
    kinds = [None, *(kind.__dataclass_fields__["kind"].default for kind in get_args(OBJECTIVE))]
    for method in get_args(MethodName):
        plain = LOOKS[MethodSettings(method=method).label]
        for members, kind in product((1, 5), kinds):
            label = MethodSettings(method=method, members=members).label
            look = look_of(label if kind is None else f"{label}_{kind}")
            assert (look.colour, look.rank) == (plain.colour, plain.rank)
            assert look.words.startswith(plain.words)
            assert ("×5" in look.short) == (members == 5)
            assert look.baseline == (plain.baseline and kind is None)
            assert (look.short == plain.short) == (members == 1 and kind is None)
    noisy = MethodSettings(method="resampled", noise=0.1)
    by_weight = MethodSettings(method="gaussian", prior_spread="weight", members=2)
    drawn = MethodSettings(method="dwp", prior="gmm", init="resampled", noise=0.1)
    assert [look_of(chosen.label).short for chosen in (noisy, by_weight, drawn)] == [
        "Resampled (noise)", "Gaussian prior (by weight, ×2)", "DWP: gmm, resampled start (noise)",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["semireal", "demo_full", "ms_to_tumour_real"])
def test_no_two_arms_of_a_shipped_experiment_look_alike(name: str) -> None:
    arms = read_experiment(read_yaml(find_config(name)), where=name).arms
    labels = ["threshold", "zero_shot", "nnunet", "nnunet_pretrained", *(arm.label for arm in arms)]
    looks = [look_of(label) for label in dict.fromkeys(labels)]
    assert WITHOUT_WORDS not in {look.words for look in looks}
    assert len({look.short for look in looks}) == len(looks)
    assert len({(look.colour, look.marker) for look in looks}) == len(looks)


def test_a_factor_after_nnunet_is_one_of_time() -> None:
    assert look_of("nnunet_x10_7s").short == "nnU-Net (time ×10, 7 s)"
    assert look_of("nnunet_pretrained_x0.5").short == "nnU-Net, pretrained (time ×0.5)"
    assert look_of("brand_new_x5").words == WITHOUT_WORDS


def test_a_threshold_tuned_at_each_n_is_drawn_as_a_curve(own_run: Path) -> None:
    rows = read_table(own_run / "summary.tsv")
    flat = [row for row in rows if row["method"] != "zero_shot"]
    tuned = [{**row, "n": n} for row in flat if row["method"] == "threshold" for n in ("1", "2")]
    trained = [row for row in flat if row["method"] != "threshold"]
    drawings = []
    for some in (flat, trained + tuned):
        write_table(own_run / "summary.tsv", some)
        run = read_run(own_run)
        picture = learning_curve(run, summaries(run))
        assert picture is not None
        drawings.append(str(picture.svg).count("LineCollection"))
    # A curve brings its intervals along, one set for each region; a level has none.
    assert drawings[1] == drawings[0] + 2


def test_histories_are_grouped_by_method_and_n() -> None:
    history = {"kl_nats": np.array([1.0])}
    names = [
        "source_ms_member0",
        "source_both_member1",
        "dwp_prior_both_n3_0+1+2",
        "ri_none_n3_0+1+2",
        "ri_n3_1",
    ]
    groups = groups_of(dict.fromkeys(names, history), ["both", "ms", "none"])
    found = {(g.method, g.n): sorted(g.labels.values()) for g in groups}
    assert found == {
        ("source", None): ["MS", "MS + generated"],
        ("dwp_prior", 3): ["MS + generated"],
        ("ri", 3): ["none", "none"],
    }


def test_summary_table_is_aligned_and_true(fake_run: Path) -> None:
    lines = summary_table(fake_run).splitlines()
    rows = read_table(fake_run / "summary.tsv")
    assert len(lines) == 2 + len(rows) / 2
    assert lines[0].split()[:5] == ["method", "source", "n", "cases", "cells"]
    text = "\n".join(lines)
    for row in rows:
        assert f"{float(row['mean_dsc']):.3f} [{float(row['low_dsc']):.3f}, " in text
    assert text.count("*") == 2
    column = lines[0].index("core")
    assert all(line[column].isdigit() and line[column - 1] == " " for line in lines[2:])


def test_drawing_leaves_matplotlib_as_it_was(own_run: Path) -> None:
    before = dict(mpl.rcParams)
    write_report(own_run)
    assert dict(mpl.rcParams) == before


def test_words_in_number_columns_become_nan(own_run: Path) -> None:
    rows = read_table(own_run / "scores.tsv")
    rows[0]["hd95_mm"] = "n/a"
    write_table(own_run / "scores.tsv", rows)
    score = read_run(own_run).scores[0]
    assert math.isnan(score.values["hd95_mm"])
    assert score.arm == Arm(rows[0]["method"], rows[0]["source"])
