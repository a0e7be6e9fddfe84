"""The table of priors says what the runs it was made of say, and the tool makes it from nothing."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.experiment.prior_table import PriorTable, prior_table, to_markdown
from medseg.io.atomic import write_json, write_table
from medseg.priors.compare import REAL
from tools.prior_table import main

ARMS = ("pr", "dwp_gmm", "dwp_rbm", "dwp_rbm_prior")


def run_folder(folder: Path, *, seed: int, arms: tuple[str, ...] = ARMS) -> Path:
    """Write what an experiment with two priors leaves behind; DSC of pr is 0.6 everywhere."""
    rng = np.random.default_rng(seed)
    scores = [
        {
            "method": arm, "source": "s", "n": 5, "subset": "0+1", "seed": 0, "region": region,
            "subject": f"p{case}", "case": f"p{case}",
            "dsc": 0.6 if arm == "pr" else rng.uniform(0.5, 0.9),
        }
        for arm in arms
        for region in ("core", "whole")
        for case in range(3)
    ]  # fmt: skip
    write_table(folder / "scores.tsv", scores)
    test = {"two_sample_forest": 0.6, "two_sample_forest_sd": 0.02, "two_sample_n": 90}
    held_out = [
        {
            "prior": name, "layer": layer, "bound": bound, "nats_per_kernel": nats,
            "n_kernels": 100, "fit_seconds": 2.0 + seed, "two_sample_logistic": 0.5 + seed / 10,
            "two_sample_logistic_sd": 0.01, **(test if layer == "all" else {"two_sample_n": None}),
        }
        for layer in ("all", "conv")
        for name, nats, bound in (
            ("gmm", 40.0 + seed, "exact"),
            ("rbm", math.nan, "unnormalised"),
            (REAL, math.nan, "unnormalised"),
        )
    ]  # fmt: skip
    write_table(folder / "priors" / "s" / "held_out.tsv", held_out)
    seconds = {"sources": 60.0, **{f"cells: {arm}": 4.0 for arm in arms}}
    write_json(folder / "run.json", {"seed": seed, "seconds": seconds})
    return folder


@pytest.fixture
def table(tmp_path: Path) -> PriorTable:
    runs = [run_folder(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    return prior_table(runs, command="make it")


def test_numbers_are_those_of_the_runs(table: PriorTable) -> None:
    rows = {row.name: row for row in table.rows}
    assert list(rows) == ["no prior (pr)", "gmm", "rbm", REAL]
    gmm, rbm, real = rows["gmm"], rows["rbm"], rows[REAL]
    assert (gmm.nats, gmm.nats_sd) == (40.5, pytest.approx(0.5**0.5))
    assert (rbm.nats, rbm.normalised, real.normalised) == (None, False, None)
    assert gmm.logistic == pytest.approx(0.55)
    assert (gmm.fit_seconds, real.fit_seconds) == (2.5, None)
    assert (gmm.prior_start, real.source_start) == (None, None)
    assert (table.seeds, table.n_train, table.n_cases) == ([0, 1], 5, 3)
    assert (table.n_kernels, table.n_two_sample, table.seconds) == (100, 90, 2 * (60 + 4 * 4.0))


def test_differences_are_paired_with_plain_fine_tuning(table: PriorTable) -> None:
    rows = {row.name: row for row in table.rows}
    for row in (rows["gmm"], rows["rbm"]):
        assert row.source_start is not None
        gap = row.source_start.against_pr
        assert gap.difference == pytest.approx(row.source_start.dsc - 0.6)
        assert gap.low < gap.difference < gap.high
        # Two regions in two runs, but the subjects of both runs are the same people.
        assert (gap.n_values, gap.n_subjects) == (12, 3)
        assert row.source_start.seconds == 4.0
    assert rows["no prior (pr)"].source_start.against_pr.difference == 0  # type: ignore[union-attr]


def test_markdown_has_every_row_and_says_what_is_unnormalised(table: PriorTable) -> None:
    text = to_markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(table.rows)
    cells = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines[2:]}
    assert cells == {"no prior (pr)": "", "gmm": "40.50 ± 0.71", "rbm": "unnormalised", REAL: ""}
    assert "`make it`" in text
    assert "Seeds 0, 1" in text


def test_runs_that_hold_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold scores.tsv"):
        prior_table([tmp_path])
    with pytest.raises(DataError, match="arm pr and priors"):
        prior_table([run_folder(tmp_path / "a", seed=0, arms=("dwp_gmm",))])
    with pytest.raises(DataError, match="given 0 runs"):
        prior_table([])


@pytest.mark.slow
def test_the_tool_makes_the_table_from_nothing(tmp_path: Path) -> None:
    main(["--quick", "--seeds", "0", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "prior_table.json").read_text())
    names = [row["name"] for row in found["rows"]]
    assert names == ["no prior (pr)", "gmm", "small_rbm", REAL]
    gmm, rbm = found["rows"][1:3]
    assert math.isfinite(gmm["nats"])
    assert rbm["nats"] is None
    assert rbm["prior_start"] is not None
    assert "unnormalised" in (tmp_path / "prior_table.md").read_text()
