"""An arm that rehearses its source and holds on to it, in a whole experiment as small as can be."""

import json
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
  generated: &scans
    - {kind: phantom, settings: {disease: tumour, n_subjects: 2, spacing_mm: 8.0}}
scans:
  generated: *scans
target: {kind: phantom, settings: {disease: tumour, preset: target, n_subjects: 2, spacing_mm: 8.0}}
arms:
  - {method: {method: pr}, sources: [generated], objective: {kind: rehearsal}, scans: generated}
  - method: {method: anchored, prior: near, elbo: {warm_up_steps: 0}}
    sources: [generated]
    objective: {kind: rehearsal, share: 0.75, looks: target}
    scans: generated
protocol:
  priors: {near: {kind: gaussian, min_kernels: 4}}
  preprocess: {spacing_mm: [8.0, 8.0, 8.0]}
  patch: {size: [12, 12, 12], batch_size: 1}
  members: 2

  source_training: {steps: 2, device: cpu, precision: float32, log_every: 1}
  target_training: {steps: 4, device: cpu, precision: float32, log_every: 1}
  few_shot: {sizes: [1], repeats: 1, test_subjects: 1}
  samples: 2
"""


def small(in_channels: int, out_channels: int) -> UNetSettings:
    return UNetSettings(in_channels=in_channels, out_channels=out_channels, widths=(8, 8))


def test_it_is_trained_and_scored(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    out = tmp_path / "run"
    run_experiment(replace(load_plan(str(path)), architecture=small), out)
    arms = {row["method"] for row in read_table(out / "summary.tsv")}
    assert {"pr_rehearsal", "anchored_near_rehearsal_looks"} <= arms
    (history,) = (out / "histories").glob("anchored_near_rehearsal_looks_*.tsv")
    told = json.loads((out / "run.json").read_text())["cohorts"]
    assert [cohort["role"] for cohort in told] == ["source", "target"], "sources are told once"
    rows = read_table(history)
    # At its source the posterior pays for its width alone; what it pays for leaving is counted.
    assert all(float(row["kl_nats"]) > 0 for row in rows)
    assert len(rows) == 4


def test_scans_must_be_named(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.replace("    scans: generated\nprotocol", "protocol"))
    with pytest.raises(ConfigError, match=r"arms\.1\.scans must name"):
        load_plan(str(path))
