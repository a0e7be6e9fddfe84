"""Seeds of a grid, and cells that fail: what changes, what stays, what a reader is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medseg.cli.main import main
from medseg.config.build import load_plan
from medseg.errors import ConfigError, DataError
from medseg.experiment import cell as cell_module
from medseg.experiment.cell import Cell, CellTraining
from medseg.experiment.plan import ExperimentPlan
from medseg.experiment.run import run_experiment
from medseg.inference.model import load_model
from medseg.io.atomic import read_table
from medseg.networks.unet import UNetSettings
from medseg.seeding import derive_seed

CONFIG = """
title: tiny
sources:
  generated:
    - {kind: phantom, settings: {disease: tumour, n_subjects: 2, spacing_mm: 8.0}}
target: {kind: phantom, settings: {disease: tumour, preset: target, n_subjects: 3, spacing_mm: 8.0}}
arms:
  - method: {method: ri}
  - {method: {method: pr}, sources: [generated]}
protocol:
  preprocess: {spacing_mm: [8.0, 8.0, 8.0]}
  patch: {size: [16, 16, 16], batch_size: 1}
  members: 2
  source_training: {steps: 4, device: cpu, precision: float32, log_every: 2}
  target_training: {steps: 2, device: cpu, precision: float32, log_every: 1}
  few_shot: {sizes: [1], repeats: 1}
  samples: 2
  seed: 20
"""
TABLES = ("scores.tsv", "summary.tsv", "paired.tsv", "reliability.tsv")


def small(in_channels: int, out_channels: int) -> UNetSettings:
    return UNetSettings(in_channels=in_channels, out_channels=out_channels, widths=(8, 8))


def with_few_shot(plan: ExperimentPlan, **changes: object) -> ExperimentPlan:
    few = replace(plan.protocol.few_shot, **changes)
    return replace(plan, protocol=replace(plan.protocol, few_shot=few))


def table_of(folder: Path, name: str) -> list[dict[str, str]]:
    return read_table(folder / name)


def cells_of(folder: Path) -> dict[str, bytes]:
    found = (folder / "cells").glob("*/scores.tsv")
    return {path.parent.name: path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ExperimentPlan:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return replace(load_plan(str(path)), architecture=small)


@pytest.fixture(scope="module")
def single(plan: ExperimentPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "single"
    assert run_experiment(plan, out) == ()
    return out


@pytest.fixture
def started(plan: ExperimentPlan, single: Path, tmp_path: Path) -> Path:
    """Return a run whose sources are trained and whose cells are not."""
    out = Path(shutil.copytree(single, tmp_path / "run"))
    shutil.rmtree(out / "cells")
    for name in TABLES:
        (out / name).unlink()
    return out


def failing(*methods: str) -> Callable[..., object]:
    real = cell_module.learn

    def learn(cases, plan, method, *args, **kwargs):  # type: ignore[no-untyped-def]
        if method.method in methods:
            raise RuntimeError("the loss is\nno number")
        return real(cases, plan, method, *args, **kwargs)

    return learn


def test_seed_0_is_the_run_without_seeds_and_others_differ(
    plan: ExperimentPlan, single: Path, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real, starts = cells_of(single), cell_module.learn, {}

    def watched(cases, training, method, *args, source, **kwargs):
        if source is not None:
            starts[training.seed] = source.network.state_dict()
        return real(cases, training, method, *args, source=source, **kwargs)

    monkeypatch.setattr(cell_module, "learn", watched)
    several = with_few_shot(plan, seeds=(0, 1, 2))
    run_experiment(several, started)
    after = cells_of(started)
    assert {name: after[name] for name in before} == before
    base = {name for name in before if name.startswith(("ri", "pr"))}
    zero_shot = "zero_shot_generated_n0_none"
    assert after.keys() - before.keys() == {
        *(f"{name}_s{seed}" for name in base for seed in (1, 2)),
        f"{zero_shot}_s1",
    }, "there are two members, and thresholds know no chance"
    for name in (*base, zero_shot):
        one, two = (
            [row["nll_nats"] for row in table_of(started, f"cells/{cell}/scores.tsv")]
            for cell in (name, f"{name}_s1")
        )
        assert one != two
    training, subset = CellTraining(several, started), table_of(started, "scores.tsv")[-1]["subset"]
    members = [
        load_model(started / "sources" / "generated" / f"member_{m}").network.state_dict()
        for m in (0, 1)
    ]
    for seed in (0, 1, 2):
        used = training.training_plan(Cell("pr", "generated", 1, subset, seed)).seed
        same = [
            all(torch.equal(v, starts[used][k]) for k, v in member.items()) for member in members
        ]
        assert same == [seed % 2 == 0, seed % 2 == 1]
    old = training.training_plan(Cell("pr", "generated", 1, subset)).seed
    assert old == derive_seed(20, "target", subset)


def test_seeds_are_pooled_in_the_tables(plan: ExperimentPlan, started: Path) -> None:
    run_experiment(with_few_shot(plan, seeds=(0, 1)), started)
    scores = table_of(started, "scores.tsv")
    assert {(r["method"], r["seed"]) for r in scores} == {
        ("threshold", "0"),
        *((method, seed) for method in ("zero_shot", "ri", "pr") for seed in "01"),
    }
    for row in table_of(started, "summary.tsv"):
        keys = ("method", "source", "n", "region")
        mine = [float(r["dsc"]) for r in scores if all(r[k] == row[k] for k in keys)]
        assert float(row["mean_dsc"]) == pytest.approx(sum(mine) / len(mine), abs=1e-5)
        assert row["n_cells"] == ("1" if row["method"] == "threshold" else "2")
        assert row["n_cases"] == ("3" if row["method"] == "zero_shot" else "2")


def test_a_cell_that_fails_leaves_the_others_and_is_tried_again(
    plan: ExperimentPlan, single: Path, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cell_module, "learn", failing("pr"))
        (lost,) = run_experiment(plan, started)
    assert lost.startswith("pr_generated_n1_")
    whole = cells_of(single)
    assert cells_of(started) == {name: whole[name] for name in whole if name != lost}
    trace = (started / "cells" / lost / "failure.txt").read_text()
    assert trace.startswith("RuntimeError: the loss is no number\n\nTraceback")
    assert table_of(started, "failures.tsv") == [
        {"cell": lost, "reason": "RuntimeError: the loss is no number"}
    ]
    assert {r["method"] for r in table_of(started, "summary.tsv")} == {
        "threshold",
        "zero_shot",
        "ri",
    }
    assert run_experiment(plan, started) == ()
    assert table_of(started, "failures.tsv") == []
    assert not (started / "cells" / lost / "failure.txt").exists()
    for name in TABLES:
        assert (started / name).read_bytes() == (single / name).read_bytes(), name


def test_failed_cells_are_the_exit_code_and_in_the_report(
    plan: ExperimentPlan,
    started: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("medseg.config.build.load_plan", lambda *_, **__: plan)
    with monkeypatch.context() as patch:
        patch.setattr(cell_module, "learn", failing("pr"))
        assert main(["experiment", "tiny", str(started), "--resume"]) == 3
    assert "1 cells failed" in capsys.readouterr().out
    page = (started / "report.html").read_text(encoding="utf-8")
    assert "failures.tsv" in page
    assert "the loss is no number" in page
    assert main(["experiment", "tiny", str(started), "--resume"]) == 0
    page = (started / "report.html").read_text(encoding="utf-8")
    assert "failures.tsv" not in page


def test_an_interruption_is_no_failure(
    plan: ExperimentPlan, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cell_module, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(plan, started)
    assert not list(started.glob("cells/*/failure.txt"))


def test_training_without_any_lesion_is_named(plan: ExperimentPlan, started: Path) -> None:
    empty = replace(plan.target, definition={"core": (99,), "whole": (99,)})
    # The sources stay, the target's masks are others.
    (started / "cases.tsv").unlink()
    lost = run_experiment(replace(plan, target=empty), started)
    assert {name.split("_")[0] for name in lost} == {"threshold", "ri", "pr"}
    for row in table_of(started, "failures.tsv"):
        assert "DataError: Training needs a lesion" in row["reason"]
    assert {r["method"] for r in table_of(started, "summary.tsv")} == {"zero_shot"}


def test_more_training_subjects_than_there_are_is_refused_at_once(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"1 to 3 subjects, but \[4\]"):
        run_experiment(with_few_shot(plan, sizes=(1, 4)), tmp_path / "run")
    assert not (tmp_path / "run" / "sources").exists()


def test_a_method_without_its_prior_or_source_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    for method, words in (
        ("{method: {method: dwp, prior: nobody}, sources: [generated]}", "nobody"),
        ("{method: {method: dwp}}", "sources"),
    ):
        path.write_text(CONFIG.replace("- method: {method: ri}", f"- {method}"))
        with pytest.raises(ConfigError, match=words):
            load_plan(str(path))
