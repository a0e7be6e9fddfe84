"""A whole experiment, as small as can be: what it leaves behind, what it does when stopped."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from medseg.config.build import load_plan
from medseg.data.regions import RegionSettings
from medseg.errors import ConfigError, DataError
from medseg.experiment import cell as cell_module
from medseg.experiment import run as experiment_run
from medseg.experiment.baselines import fit_thresholds, threshold_masks
from medseg.experiment.plan import ExperimentPlan
from medseg.experiment.run import run_experiment
from medseg.experiment.sources import training_cases
from medseg.io.atomic import read_table
from medseg.metrics.overlap import dice
from medseg.networks.unet import UNetSettings
from medseg.report import write_report

CONFIG = """
title: tiny
sources:
  generated:
    - {kind: phantom, settings: {disease: tumour, n_subjects: 2, spacing_mm: 8.0}}
target: {kind: phantom, settings: {disease: tumour, preset: target, n_subjects: 4, spacing_mm: 8.0}}
arms:
  - method: {method: ri}
  - {method: {method: pr}, sources: [generated]}
  - {method: {method: dwp}, sources: [generated]}
  - {method: {method: wise}, sources: [generated]}
  - {method: {method: auto, folds: 2}, sources: [generated]}
protocol:
  preprocess: {spacing_mm: [8.0, 8.0, 8.0]}
  patch: {size: [16, 16, 16], batch_size: 1}
  members: 2
  source_training: {steps: 4, device: cpu, precision: float32, log_every: 2}
  target_training: {steps: 3, device: cpu, precision: float32, log_every: 1}
  prior: {kind: gaussian, min_kernels: 4}
  few_shot: {sizes: [1, 2], repeats: 2, test_subjects: 1}
  samples: 2
statements: [tiny]
"""


def small(in_channels: int, out_channels: int) -> UNetSettings:
    return UNetSettings(in_channels=in_channels, out_channels=out_channels, widths=(8, 8))


@pytest.fixture(autouse=True)
def _few_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of priors trains autoencoders; it is tested with the priors."""
    row = {"kind": "gaussian", "grouping": "layer", "nats_per_kernel": 1.0, "n_kernels": 1}
    monkeypatch.setattr(
        "medseg.experiment.sources.compare_priors", lambda kernels, *, seed: [{**row, "seed": seed}]
    )


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ExperimentPlan:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return replace(load_plan(str(path)), architecture=small)


@pytest.fixture(scope="module")
def finished(plan: ExperimentPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(
            "medseg.experiment.sources.compare_priors",
            lambda kernels, *, seed: [{"kind": "gaussian", "grouping": "layer"}],
        )
        run_experiment(plan, out)
    return out


def test_the_folder_has_every_file(finished: Path) -> None:
    for name in (
        "run.json",
        "splits.json",
        "scores.tsv",
        "summary.tsv",
        "paired.tsv",
        "ranks.tsv",
        "power.tsv",
        "decisions.tsv",
        "failures.tsv",
        "reliability.tsv",
        "priors/generated/held_out.tsv",
        "priors/generated/kernels.safetensors",
        "histories/source_generated_member0.tsv",
        "histories/source_generated_member1.tsv",
    ):
        assert (finished / name).is_file(), name
    scores = read_table(finished / "scores.tsv")
    cells = {(r["method"], r["source"], r["n"], r["subset"]) for r in scores}
    for method, source, n, subset in cells:
        if method in ("ri", "pr", "dwp"):
            history = read_table(finished / "histories" / f"{method}_{source}_n{n}_{subset}.tsv")
            assert [row["step"] for row in history] == ["1", "2", "3"]
            assert {"loss", "learning_rate", "cross_entropy_nats", "dice"} <= set(history[0])
    examples = {path.stem for path in (finished / "examples").glob("*.json")}
    assert examples == {path.stem for path in (finished / "examples").glob("*.safetensors")}
    shown = {json.loads(p.read_text())["method"] for p in (finished / "examples").glob("*.json")}
    assert shown == {"zero_shot", "ri", "pr", "dwp", "wise", "auto"}


def test_auto_keeps_what_it_chose_by(finished: Path) -> None:
    """A single subject cannot be left out, so there is no table then."""
    tables = {
        path.stem.split("_")[2]: read_table(path) for path in (finished / "choices").iterdir()
    }
    assert set(tables) == {"n2"}
    assert [float(row["share"]) for row in tables["n2"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert all(float(row["temperature"]) > 0 for row in tables["n2"])


def test_the_record_says_what_was_run(finished: Path, plan: ExperimentPlan) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert {
        "title", "description", "config", "config_sha256", "seed", "versions", "machine", "command",
        "started", "seconds", "cohorts", "git_commit", "statements", "regions", "modalities",
    } <= set(run)  # fmt: skip
    assert run["config"] == plan.config
    assert [cohort["role"] for cohort in run["cohorts"]] == ["source", "target"]
    assert all(cohort["synthetic"] and cohort["licence"] for cohort in run["cohorts"])


def test_the_grid_is_complete_and_no_subject_is_in_train_and_test(
    finished: Path, plan: ExperimentPlan
) -> None:
    scores = read_table(finished / "scores.tsv")
    subjects = sorted(plan.target.source.subjects)
    subsets = {(r["n"], r["subset"]) for r in scores if r["method"] == "ri"}
    assert len(subsets) >= 2
    for method in ("threshold", "pr", "dwp", "wise", "auto"):
        assert {(r["n"], r["subset"]) for r in scores if r["method"] == method} == subsets
    held = set(json.loads((finished / "splits.json").read_text())["parts"]["test"])
    assert len(held) == 1
    for row in scores:
        assert row["subject"] in held
        if row["method"] != "zero_shot":
            trained = {subjects[int(number)] for number in row["subset"].split("+")}
            assert len(trained) == int(row["n"])
            assert row["subject"] not in trained
    regions = {row["region"] for row in scores}
    assert regions == {"core", "whole"}
    assert len(scores) == 2 * (1 + 6 * len(subsets))


def test_every_subset_is_tested_on_all_others_without_a_held_out_part(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    few = replace(plan.protocol.few_shot, sizes=(1, 3), repeats=None, test_subjects=0)
    changed = replace(plan, protocol=replace(plan.protocol, few_shot=few))
    cases = training_cases(plan.target, plan, regions=plan.protocol.regions, allow_missing=False)
    subsets, held = experiment_run.few_shot_parts(changed, tmp_path)
    tested = 0
    for _, data, _ in experiment_run._grid(changed, cases, subsets, held):
        train, test = {c.subject for c in data.train}, {c.subject for c in data.test}
        assert not train & test
        assert len(train | test) == 4
        tested += bool(train)
    assert tested == (4 + 4) * 6


def test_paired_rows_compare_the_same_subsets(finished: Path) -> None:
    scores = read_table(finished / "scores.tsv")
    paired = read_table(finished / "paired.tsv")
    against = {(r["method"], r["against"]) for r in paired}
    assert {("pr", "ri"), ("dwp", "ri"), ("dwp", "pr"), ("ri", "threshold")} <= against
    assert {(other, method) for method, other in against} == against
    for row in paired:
        if row["method"] == "zero_shot":
            continue
        mine = table_of(scores, row["method"], row["n"], row["region"])
        n = "0" if row["against"] == "zero_shot" else row["n"]
        theirs = table_of(scores, row["against"], n, row["region"])
        if row["against"] == "zero_shot":
            theirs = {place: theirs["none", place[1]] for place in mine}
        assert set(mine) == set(theirs)
        differences = [mine[place] - theirs[place] for place in mine]
        # Subjects weigh alike; here there is one test subject.
        assert float(row["difference_dsc"]) == pytest.approx(np.mean(differences), abs=2e-5)


def table_of(scores: list, method: str, n: str, region: str) -> dict[tuple[str, str], float]:
    return {
        (row["subset"], row["case"]): float(row["dsc"])
        for row in scores
        if (row["method"], row["n"], row["region"]) == (method, n, region)
    }


def test_the_summary_can_be_computed_from_the_scores(finished: Path) -> None:
    scores = read_table(finished / "scores.tsv")
    keys = ("method", "source", "n", "region")
    summary = read_table(finished / "summary.tsv")
    assert len(summary) == len({tuple(row[key] for key in keys) for row in scores})
    for row in summary:
        mine = [r for r in scores if all(r[key] == row[key] for key in keys)]
        dsc = [float(r["dsc"]) for r in mine]
        assert float(row["mean_dsc"]) == pytest.approx(np.mean(dsc), abs=2e-5)
        assert int(row["n_cases"]) == len({r["case"] for r in mine})
        assert int(row["n_cells"]) == len({r["subset"] for r in mine})
        hd95 = np.mean([float(r["hd95_mm"]) for r in mine])
        assert float(row["mean_hd95_mm"]) == pytest.approx(hd95, rel=1e-4)


class Stopped(BaseException):
    pass


def test_a_run_that_is_stopped_and_resumed_has_the_same_scores(
    plan: ExperimentPlan, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, calls = tmp_path / "run", experiment_run._one, []

    def stop_at_the_fourth(cell, *args, **kwargs):
        calls.append(cell.identifier)
        if len(calls) == 4:
            raise Stopped
        real(cell, *args, **kwargs)

    monkeypatch.setattr(experiment_run, "_one", stop_at_the_fourth)
    with pytest.raises(Stopped):
        run_experiment(plan, out)
    assert not (out / "scores.tsv").exists()
    before = json.loads((out / "run.json").read_text())
    assert before["seconds"]
    done = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("scores.tsv")}
    assert len(done) == 3
    with pytest.raises(ConfigError, match="--resume"):
        run_experiment(plan, out, resume=False)
    run_experiment(plan, out)
    assert calls[4] == calls[3], "the interrupted cell comes first, those before it not again"
    assert {path: path.stat().st_mtime_ns for path in done} == done
    for name in ("scores.tsv", "summary.tsv", "paired.tsv", "reliability.tsv"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name
    after = json.loads((out / "run.json").read_text())
    assert after["started"] == before["started"]
    assert after["seconds"]["prepare target"] >= before["seconds"]["prepare target"]


def test_shards_share_the_work_and_agree_with_one_process(
    plan: ExperimentPlan, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, trained = cell_module.learn, []

    def counted(cases, training, method, objective, **kwargs):
        trained.append((method.method, training.seed))
        return real(cases, training, method, objective, **kwargs)

    monkeypatch.setattr(cell_module, "learn", counted)
    out = tmp_path / "run"
    run_experiment(plan, out, shard=(1, 2))
    assert not (out / "scores.tsv").exists(), "half of the cells are missing"
    assert trained, "the second shard has something to do"
    run_experiment(plan, out, shard=(0, 2))
    assert (out / "scores.tsv").read_bytes() == (finished / "scores.tsv").read_bytes()
    assert len(set(trained)) == len(trained), "wise takes the training of pr"
    assert {method for method, _ in trained} == {"ri", "pr", "dwp", "gaussian"}


def test_a_shard_waits_for_the_one_that_trains_the_sources(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (out / "sources").mkdir(parents=True)
    lock = FileLock(out / "sources" / ".generated.lock")
    with ThreadPoolExecutor(1) as pool:
        with lock:
            running = pool.submit(run_experiment, plan, out)
            with pytest.raises(TimeoutError):
                running.result(timeout=3)
            assert not (out / "sources" / "generated").exists()
        running.result()
    assert (out / "scores.tsv").is_file()


def test_a_folder_keeps_to_one_experiment(
    plan: ExperimentPlan, finished: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    before = (out / "run.json").read_bytes()
    other = replace(plan, config={**plan.config, "title": "another"})
    with pytest.raises(ConfigError, match="holds another"):
        run_experiment(other, out)
    assert (out / "run.json").read_bytes() == before


@pytest.mark.parametrize(("sizes", "error"), [((5,), DataError), ((4,), ConfigError)])
def test_sizes_that_leave_no_test_are_refused_before_any_training(
    plan: ExperimentPlan,
    tmp_path: Path,
    sizes: tuple[int, ...],
    error: type[Exception],
) -> None:
    few = replace(plan.protocol.few_shot, sizes=sizes, repeats=1, test_subjects=0)
    with pytest.raises(error):
        run_experiment(
            replace(plan, protocol=replace(plan.protocol, few_shot=few)), tmp_path / "run"
        )
    assert not (tmp_path / "run" / "sources").exists()


def test_scores_need_a_voxel_size(plan: ExperimentPlan, tmp_path: Path) -> None:
    native = replace(plan.protocol, preprocess=replace(plan.protocol.preprocess, spacing_mm=None))
    with pytest.raises(ConfigError, match="spacing_mm"):
        run_experiment(replace(plan, protocol=native), tmp_path / "run")


def test_thresholds_are_the_best_on_their_training_cases(plan: ExperimentPlan) -> None:
    regions = RegionSettings(names=("core", "whole", "enhancing"))
    cases = training_cases(plan.target, plan, regions=regions, allow_missing=False)
    learnt = next(case for case in cases if case.regions[2].any())
    cuts = fit_thresholds([learnt], outer=1, inner=0, bright=2)
    assert fit_thresholds([learnt], outer=1, inner=0) == replace(cuts, bright=cuts.inner)

    def score(name: str, channel: int, factor: float) -> float:
        moved = replace(cuts, **{name: getattr(cuts, name) * factor})
        mask = getattr(threshold_masks(learnt, moved), name)
        return dice(mask, learnt.regions[channel].numpy() > 0.5)

    for name, channel in (("outer", 1), ("inner", 0), ("bright", 2)):
        best = score(name, channel, 1.0)
        assert best > 0.2, "a tumour is bright on FLAIR, and its rim on T1c"
        assert max(score(name, channel, factor) for factor in (0.7, 1.5)) <= best + 0.05
    for case in cases:
        found = threshold_masks(case, cuts)
        assert not ((found.inner | found.bright) & ~found.outer).any()
        assert not (found.outer & ~case.brain.numpy()).any() or not case.brain.numpy().all()


def test_a_region_alone_has_the_outer_threshold(plan: ExperimentPlan, tmp_path: Path) -> None:
    alone = RegionSettings(names=("whole",))
    plan = replace(plan, protocol=replace(plan.protocol, regions=alone))
    cases = training_cases(plan.target, plan, regions=alone, allow_missing=False)
    cell = cell_module.Cell("threshold", "none", 1, "first", 0)
    data = cell_module.CellData(cases[:1], cases[1:])
    writer = cell_module.CellWriter(cell, plan, tmp_path, keep_example=False)
    cell_module.run_threshold(cell, data, writer, plan)
    cuts = fit_thresholds(cases[:1], outer=0, inner=0)
    for row, case in zip(read_table(writer.folder / "scores.tsv"), cases[1:], strict=True):
        mask = threshold_masks(case, cuts).outer
        assert float(row["dsc"]) == pytest.approx(dice(mask, case.regions[0].numpy() > 0.5))


def test_the_report_shows_the_examples(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    page = write_report(copy).read_text(encoding="utf-8")
    assert "No example predictions were saved" not in page
    assert "the axial slice with the most of each region" in page
