"""One invented run for all tests of the report; each test that changes it takes a copy."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from medseg.report import write_report


def _load_fake_run() -> ModuleType:
    # Test folders are no packages, so a neighbour is loaded by its path.
    path = Path(__file__).with_name("fake_run.py")
    spec = importlib.util.spec_from_file_location("report_fake_run", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    return _load_fake_run()


@pytest.fixture(scope="session")
def fake_run(fake: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small complete run with its report. Read it only."""
    plan = fake.Plan(sizes=(1, 2), sources=("ms",), methods=("pr", "dwp"), subsets=2, examples=1)
    folder = fake.make_fake_run(tmp_path_factory.mktemp("run"), plan)
    write_report(folder)
    return folder


@pytest.fixture
def own_run(fake_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the run that a test may change."""
    return Path(shutil.copytree(fake_run, tmp_path / "run"))
