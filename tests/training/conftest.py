"""The toy training, and what is left of it after SIGKILL."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOY = Path(__file__).with_name("toy.py")


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    # Test folders are no packages, so a neighbour is loaded by its path.
    spec = importlib.util.spec_from_file_location("training_toy", TOY)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork, so no training can be killed here")
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, str(TOY), str(folder)], check=True, timeout=120)
    return folder


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> Path:
    """Return a folder with the checkpoints of every scenario, each killed half-way."""
    return Path(shutil.copytree(killed_once, tmp_path / "killed"))
