"""Arms with an objective of their own in a whole experiment, as small as can be."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medseg.config.build import load_plan
from medseg.errors import ModelError
from medseg.experiment.plan import ExperimentPlan
from medseg.experiment.run import run_experiment
from medseg.experiment.single import finetune_target, load_source_model, seen_beside
from medseg.inference.model import load_model
from medseg.inference.people import seen_among
from medseg.inference.predict import predict_case
from medseg.inference.settings import PredictSettings
from medseg.io.atomic import read_table
from medseg.networks.unet import UNetSettings
from medseg.scan import Case
from medseg.training.distillation import DistillationSettings
from medseg.training.privileged import PrivilegedSettings
from medseg.training.transfer import MethodSettings

CONFIG = """
title: tiny
sources:
  masked: &scans
    - {kind: phantom, settings: {disease: tumour, n_subjects: 2, spacing_mm: 8.0}}
  position: *scans
pretraining:
  masked: {kind: masked_autoencoder, block: 2}
  position: {kind: relative_position, side: 4, gap: 0, jitter: 0}
scans:
  unlabelled: *scans
  ms: [{kind: phantom, settings: {disease: ms, n_subjects: 1, spacing_mm: 8.0}}]
target: {kind: phantom, settings: {disease: tumour, preset: target, n_subjects: 2, spacing_mm: 8.0}}
arms:
  - {method: {method: pr}, sources: [masked, position]}
  - {method: {method: ri}, objective: {kind: co_learning}, scans: unlabelled}
  - {method: {method: ri}, objective: {kind: hard_sharing}, scans: ms}
  - {method: {method: ri}, objective: {kind: privileged, channels: [t1c]}}
  - {method: {method: gaussian}, sources: [masked], objective: {kind: distillation, samples: 2}}
protocol:
  preprocess: {spacing_mm: [8.0, 8.0, 8.0]}
  patch: {size: [12, 12, 12], batch_size: 1}
  members: 1
  source_training: {steps: 2, device: cpu, precision: float32, log_every: 1}
  target_training: {steps: 2, device: cpu, precision: float32, log_every: 1}
  few_shot: {sizes: [1], repeats: 1, test_subjects: 1}
  samples: 2
"""
CPU = PredictSettings(device="cpu", precision="float32", engine="eager")


def small(in_channels: int, out_channels: int) -> UNetSettings:
    return UNetSettings(in_channels=in_channels, out_channels=out_channels, widths=(8, 8))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ExperimentPlan:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return replace(load_plan(str(path)), architecture=small)


@pytest.fixture(scope="module")
def finished(plan: ExperimentPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "arms"
    run_experiment(plan, out)
    return out


def test_every_arm_is_trained_and_scored_and_pretexts_are_not_tested_as_they_are(
    finished: Path,
) -> None:
    arms = {(row["method"], row["source"]) for row in read_table(finished / "summary.tsv")}
    assert arms == {
        ("threshold", "none"),
        ("pr", "masked"),
        ("pr", "position"),
        ("ri_co_learning", "none"),
        ("ri_hard_sharing", "none"),
        ("ri_privileged", "none"),
        ("gaussian_distillation", "masked"),
    }


def test_each_learned_by_its_own_objective(finished: Path) -> None:
    histories = {path.stem: path for path in (finished / "histories").glob("*.tsv")}
    wanted = {
        "source_masked_member0": "reconstruction",
        "source_position_member0": "accuracy",
        "ri_co_learning_none": "reconstruction",
        "ri_privileged_none": "teacher_gap",
        "gaussian_distillation_masked": "share_nats",
    }
    for start, term in wanted.items():
        name = next(name for name in histories if name.startswith(start))
        assert term in read_table(histories[name])[0], name


def test_the_record_names_the_scans_and_no_prior_is_fitted_that_nobody_asks_for(
    finished: Path,
) -> None:
    run = json.loads((finished / "run.json").read_text())
    names = [cohort["name"] for cohort in run["cohorts"]]
    assert any(name.startswith("ms: ") for name in names)
    assert not (finished / "priors").exists()


def test_a_pretext_model_is_a_source(finished: Path) -> None:
    source = load_source_model(finished / "sources" / "masked" / "member_0")
    assert source.regions.names == ("restored_flair", "restored_t1c")


def test_everyone_that_a_training_looked_at_has_been_seen(
    finished: Path, plan: ExperimentPlan
) -> None:
    # Of a bootstrap those left out, too, who served for early stopping; and scans beside.
    source = load_source_model(finished / "sources" / "masked" / "member_0")
    everyone = {who for one in plan.sources["masked"] for who in one.source.subjects}
    assert set(seen_among(source.subjects, everyone)) == everyone
    assert len(source.subjects) == len(everyone)
    name = next(iter(plan.scans))
    beside = {who for one in plan.scans[name] for who in one.source.subjects}
    assert beside
    assert set(seen_among(seen_beside(plan, name, source), everyone | beside)) == everyone | beside
    assert seen_beside(plan, "", None) == set()


def test_a_pretext_model_predicts_nothing(finished: Path, plan: ExperimentPlan) -> None:
    model = load_model(finished / "sources" / "position" / "member_0")
    with pytest.raises(ModelError, match="without any"):
        predict_case(model, plan.target.source[0], settings=CPU)


def test_a_student_is_saved_as_one(finished: Path, plan: ExperimentPlan, tmp_path: Path) -> None:
    source = load_source_model(finished / "sources" / "masked" / "member_0")
    finetune_target(
        plan,
        MethodSettings(method="gaussian"),
        source=source,
        out=tmp_path,
        key="student",
        objective=DistillationSettings(samples=2),
    )
    model = load_model(tmp_path)
    assert model.spec.has_share
    assert model.spec.variational is None
    prediction = predict_case(model, plan.target.source[0], settings=CPU)
    assert float(prediction.std[0].max()) > 0


def test_a_model_without_its_privileged_channel_takes_scans_without_it(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    model = finetune_target(
        plan,
        MethodSettings(method="ri"),
        source=None,
        out=tmp_path,
        key="privileged",
        objective=PrivilegedSettings(channels=("t1c",), teacher="self"),
    )
    case = plan.target.source[0]
    bare = Case(
        identifier=case.identifier,
        subject=case.subject,
        scans={"flair": case.scans["flair"]},
        label=case.label,
        brain=case.brain,
    )
    assert predict_case(model, bare, settings=CPU).mask.shape[0] == 2
