"""Which files of a case are read for a model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.batch.cases import find_cases
from medseg.errors import GeometryError, ScanFileError
from medseg.geometry import Grid
from medseg.io.nifti import write_scan
from medseg.scan import Scan

GRID = Grid((6, 7, 5), np.diag([2.0, 2.0, 2.0, 1.0]))
OTHER = Grid((5, 5, 5), np.eye(4))


def _write(path: Path, grid: Grid = GRID) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).normal(9, 1, grid.shape).astype(np.float32)
    write_scan(path, Scan(torch.from_numpy(noise), grid))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A case whose T2 lies elsewhere, whose T1 is damaged, and that has two T1c."""
    _write(tmp_path / "p1" / "flair.nii.gz")
    _write(tmp_path / "p1" / "t2.nii.gz", OTHER)
    (tmp_path / "p1" / "t1.nii.gz").write_bytes(b"not a scan")
    for name in ("a_t1c.nii.gz", "b_t1c.nii.gz"):
        _write(tmp_path / "p1" / name, OTHER)
    return tmp_path


def test_what_the_model_does_not_use_is_not_read(folder: Path) -> None:
    seen: list[Grid] = []
    [(identifier, load)] = find_cases(folder, channels=["flair"], check=seen.extend)
    case = load()
    assert (identifier, case.identifier) == ("p1", "p1")
    assert list(case.scans) == ["flair"]
    assert [grid.shape for grid in seen] == [GRID.shape]


@pytest.mark.parametrize(("channel", "error"), [("t1", ScanFileError), ("t2", GeometryError)])
def test_what_it_uses_must_be_sound(folder: Path, channel: str, error: type[Exception]) -> None:
    [(_, load)] = find_cases(folder, channels=["flair", channel])
    with pytest.raises(error):
        load()


def test_a_case_without_any_channel_tells_what_it_has(tmp_path: Path) -> None:
    _write(tmp_path / "p1" / "t2.nii.gz")
    [(_, load)] = find_cases(tmp_path, channels=["flair"])
    assert list(load().scans) == ["t2"]
