import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "pipelines"
PIPELINES = sorted(FOLDER.glob("*.py"))


def test_there_is_a_pipeline() -> None:
    assert PIPELINES


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_a_pipeline_is_short_and_does_nothing_when_imported(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.main)
    assert (module.__doc__ or "").strip()
    assert capsys.readouterr().out == ""
