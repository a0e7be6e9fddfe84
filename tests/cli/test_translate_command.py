"""``medseg translate``: from a configuration to NIfTI files that say they are synthetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.cli.main import main
from medseg.config.load import shipped_configs
from medseg.config.translation import load_translation
from medseg.data.phantom.cohort import PhantomSettings, PhantomSource
from medseg.io.nifti import read_scan, write_scan

CONFIG = """
title: toy
source:
  kind: phantom
  settings: {n_subjects: 1, spacing_mm: 8.0, modalities: [flair, t1]}
translation:
  method: pix2pix
  channels: [t1]
  target: flair
  widths: [4, 8]
  patch: {size: [16, 16], batch_size: 2}
  training: {steps: 2, device: cpu}
"""


def run(*argv: object) -> int:
    return main([str(part) for part in argv])


@pytest.fixture
def translator(tmp_path: Path) -> Path:
    config = tmp_path / "toy.yaml"
    config.write_text(CONFIG)
    assert run("translate", "train", config, tmp_path / "model", "translation.seed=3") == 0
    return tmp_path / "model"


def test_a_translation_is_written_on_the_own_grid_and_marked(translator, tmp_path) -> None:
    settings = PhantomSettings(n_subjects=1, spacing_mm=(8.0, 7.0, 9.0), modalities=("t1",))
    scan = PhantomSource(settings)[0].scans["t1"]
    given = tmp_path / "in"
    for name in ("one", "two"):
        (given / name).mkdir(parents=True)
        write_scan(given / name / ("t1.nii.gz" if name == "one" else "t2.nii.gz"), scan)
    assert run("translate", "apply", translator, given, tmp_path / "out") == 3
    made = read_scan(tmp_path / "out" / "one" / "one_synthetic_flair.nii.gz")
    assert made.grid.matches(scan.grid, tolerance_mm=1e-3)
    assert float(made.data.max()) > 0
    record = json.loads((tmp_path / "out" / "one" / "one.json").read_text())
    assert record["synthetic"] is True
    assert record["made_from"] == ["t1"]
    assert record["files"] == {"flair": "one_synthetic_flair.nii.gz"}
    assert "two" in (tmp_path / "out" / "failures.tsv").read_text()
    assert not (tmp_path / "out" / "two").exists()


def test_wrong_use_is_refused(translator, tmp_path, capsys) -> None:
    given = tmp_path / "in"
    given.mkdir()
    assert run("translate", "apply", translator, given, given / "out") == 2
    assert "inside the input" in capsys.readouterr().err
    assert run("translate", "apply", tmp_path, given, tmp_path / "out") == 2
    assert run("translate", "train", tmp_path / "toy.yaml", tmp_path / "m", "translation.x=1") == 2
    assert "'x'" in (err := capsys.readouterr().err) or "translation.x" in err


@pytest.mark.parametrize("name", ["missing_flair", "scanner", "thick_slices"])
def test_shipped_configurations_are_valid(name) -> None:
    plan = load_translation(f"translation/{name}")
    assert len(plan.source) > 4
    first = (shipped_configs() / "translation" / f"{name}.yaml").read_text().splitlines()[0]
    assert first == f"# medseg translate train translation/{name} OUT"
