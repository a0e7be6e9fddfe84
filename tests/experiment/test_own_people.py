"""Nobody whose mask was learned from is tested on, wherever the mask came from."""

from dataclasses import replace
from pathlib import Path

import pytest

from medseg.config.build import load_plan
from medseg.data.phantom.cohort import PhantomSettings, PhantomSource
from medseg.data.source import SubsetSource
from medseg.errors import ConfigError, DataError
from medseg.experiment.crossfit import held_out_cases
from medseg.experiment.plan import ExperimentPlan
from medseg.experiment.run import run_experiment
from medseg.experiment.single import finetune_target
from medseg.experiment.sources import more_scans, train_members
from medseg.inference.model import load_model
from medseg.inference.people import seen_among
from medseg.networks.unet import UNetSettings
from medseg.training.method import MethodSettings
from medseg.training.rehearsal import RehearsalSettings

CONFIG = """
title: people
sources: {more: [{kind: phantom, settings: {disease: tumour, n_subjects: 4, spacing_mm: 8.0}}]}
scans: {more: [{kind: phantom, settings: {disease: tumour, n_subjects: 4, spacing_mm: 8.0}}]}
target: {kind: phantom, settings: {disease: tumour, preset: target, n_subjects: 2, spacing_mm: 8.0}}
arms: [{method: {method: pr}, sources: [more]}]
protocol:
  preprocess: {spacing_mm: [8.0, 8.0, 8.0]}
  patch: {size: [8, 8, 8], batch_size: 1}
  members: 1
  source_training: {steps: 2, validate_every: 1, device: cpu, precision: float32}
  target_training: {steps: 1, device: cpu, precision: float32}
  few_shot: {sizes: [1], repeats: 1}
"""


def small(in_channels: int, out_channels: int) -> UNetSettings:
    return UNetSettings(in_channels=in_channels, out_channels=out_channels, widths=(4, 4))


@pytest.fixture
def plan(tmp_path: Path) -> ExperimentPlan:
    (tmp_path / "c.yaml").write_text(CONFIG)
    return replace(load_plan(str(tmp_path / "c.yaml")), architecture=small)


def test_no_source_has_people_of_the_target(plan: ExperimentPlan, tmp_path: Path) -> None:
    (cohort,) = plan.sources["more"]
    some = SubsetSource(plan.target.source, plan.target.source.identifiers[:1])
    for source in (plan.target.source, some):
        wrong = replace(plan, sources={"more": (cohort, replace(cohort, source=source))})
        with pytest.raises(ConfigError, match=r"sources\.more has \['phantom"):
            run_experiment(wrong, tmp_path / "run")
        assert not (tmp_path / "run" / "sources").exists()


def test_no_source_has_a_mask_of_the_target_under_another_name(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    (cohort,) = plan.sources["more"]
    # Other grey values and another name, but the same heads and tumours.
    same = PhantomSource(
        PhantomSettings(
            disease="tumour", preset="target", n_subjects=2, spacing_mm=8.0, contrast="random"
        )
    )
    other = replace(cohort, source=same)
    assert same.name != plan.target.source.name
    for wrong in (
        replace(plan, sources={"more": (cohort, other)}),
        replace(
            plan,
            scans={"more": (other,)},
            arms=[replace(plan.arms[0], scans="more", objective=RehearsalSettings())],
        ),
    ):
        with pytest.raises(DataError, match="voxel for voxel"):
            run_experiment(wrong, tmp_path / f"run_{len(wrong.sources['more'])}")


def test_no_scan_with_a_mask_is_of_the_target(plan: ExperimentPlan) -> None:
    own = replace(plan, scans={"more": (plan.target,)})
    with pytest.raises(ConfigError, match=r"scans\.more has \['phantom"):
        more_scans(own, "more", labelled=True)
    assert not any(case.known.any() for case in more_scans(own, "more", labelled=False).cases)


def test_a_source_names_who_chose_among_its_steps(plan: ExperimentPlan, tmp_path: Path) -> None:
    (folder,) = train_members(plan, "more", tmp_path, key="")
    (cohort,) = plan.sources["more"]
    model, everybody = load_model(folder), set(cohort.source.subjects)
    drawn, seen = (
        set(seen_among(model.spec.training[key], everybody))
        for key in ("subjects", "seen_subjects")
    )
    assert seen == everybody
    assert drawn < everybody
    for subject in everybody:
        names = [
            i
            for i, who in zip(cohort.source.identifiers, cohort.source.subjects, strict=True)
            if who == subject
        ]
        one = replace(cohort, source=SubsetSource(cohort.source, names))
        with pytest.raises(DataError, match=subject):
            held_out_cases(model, one)


def test_a_model_names_who_it_rehearsed(plan: ExperimentPlan, tmp_path: Path) -> None:
    model = finetune_target(
        plan,
        MethodSettings(method="ri"),
        source=None,
        out=tmp_path,
        key="",
        objective=RehearsalSettings(),
        scans="more",
    )
    (scans,) = plan.scans["more"]
    everybody = {*scans.source.subjects, *plan.target.source.subjects}
    assert set(seen_among(model.spec.training["seen_subjects"], everybody)) == everybody
    for name in ("model.json", "card.md"):
        text = (tmp_path / name).read_text()
        assert not any(who in text for who in everybody)
    for cohort in (scans, plan.target):
        with pytest.raises(DataError, match="has not seen"):
            held_out_cases(model, cohort)
    others = PhantomSettings(disease="tumour", n_subjects=4, spacing_mm=8.0, seed=5)
    cohort = replace(scans, source=PhantomSource(others))
    assert len(held_out_cases(model, cohort)) == 4
    # Recorded when sessions without a number were no visits.
    model.spec.training["subjects"] = [f"{cohort.source.subjects[0]}_ses-preop"]
    with pytest.raises(DataError, match="has not seen"):
        held_out_cases(model, cohort)
