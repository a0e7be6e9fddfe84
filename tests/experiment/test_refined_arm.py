"""Arms held against intensities and averaged over the way back, in an experiment that is tiny."""

from dataclasses import replace
from pathlib import Path

import pytest

from medseg.config.build import load_plan
from medseg.errors import ConfigError
from medseg.experiment.run import run_experiment
from medseg.io.atomic import read_table
from medseg.networks.unet import UNetSettings

CONFIG = """
title: tiny
sources:
  generated: [{kind: phantom, settings: {disease: tumour, n_subjects: 2, spacing_mm: 8.0}}]
target: {kind: phantom, settings: {disease: tumour, preset: target, n_subjects: 3, spacing_mm: 8.0}}
arms:
  - {method: {method: wise}, sources: [generated]}
  - {method: {method: wise}, sources: [generated], refine: {components: 1}}
  - {method: {method: wise, wise_share: [0, 0.5, 1]}, sources: [generated]}
  - {method: {method: wise}, sources: [generated], refine: {share: 0}, name: unchanged}
protocol:
  preprocess: {spacing_mm: [8.0, 8.0, 8.0]}
  patch: {size: [12, 12, 12], batch_size: 1}
  members: 1
  source_training: {steps: 30, device: cpu, precision: float32, log_every: 30}
  target_training: {steps: 4, device: cpu, precision: float32, log_every: 1}
  forgetting: 1
  few_shot: {sizes: [2], repeats: 1, test_subjects: 1}
"""


def small(in_channels: int, out_channels: int) -> UNetSettings:
    return UNetSettings(in_channels=in_channels, out_channels=out_channels, widths=(8, 8))


def test_refinement_changes_predictions_and_no_training(tmp_path: Path) -> None:
    path, out = tmp_path / "tiny.yaml", tmp_path / "run"
    path.write_text(CONFIG)
    assert run_experiment(replace(load_plan(str(path)), architecture=small), out) == ()
    rows = read_table(out / "scores.tsv")
    names = ("wise", "wise_refined", "wise_back0+0.5+1", "unchanged")
    scores = {
        name: [float(row["nll_nats"]) for row in rows if row["method"] == name] for name in names
    }
    assert {len(found) for found in scores.values()} == {2}
    assert scores["wise"] != scores["wise_refined"]
    assert scores["wise"] != scores["wise_back0+0.5+1"]
    assert scores["unchanged"] == pytest.approx(scores["wise"], rel=2e-3), "in half precision"
    losses = [
        read_table(out / "histories" / f"{name}_generated_n2_{_subset(rows)}.tsv") for name in names
    ]
    assert all(loss == losses[0] for loss in losses)

    before = {
        name: [
            row["mean_dsc_before"]
            for row in read_table(out / "forgetting.tsv")
            if row["method"] == name
        ]
        for name in names
    }
    assert all(before[name] == before["wise"] for name in names), "of the source as it is"


def _subset(rows: list[dict[str, str]]) -> str:
    return next(row["subset"] for row in rows if row["method"] == "wise")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("refine: {components: 1}", "refine: {components: 0}", r"arms\.1\.refine\.components"),
        ("[0, 0.5, 1]", "[0, 1.5]", r"arms\.2\.method\.wise_share"),
        ("[0, 0.5, 1]", "[]", r"arms\.2\.method\.wise_share"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, before: str, after: str, words: str) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.replace(before, after))
    with pytest.raises(ConfigError, match=words):
        load_plan(str(path))
