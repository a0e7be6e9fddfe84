from pathlib import Path

import pytest

from medseg.batch.ledger import Ledger, Work

WORK = Work(input_sha256="i", model_sha256="m", settings_sha256="s")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mask").write_text("1")
    Ledger(tmp_path).record("a", work=WORK, outputs=[tmp_path / "a" / "mask"], rows=[{"dsc": 0.5}])
    return tmp_path


def test_what_was_recorded_is_found_again(out: Path) -> None:
    entry = Ledger(out).finished("a", work=WORK)
    assert entry is not None
    assert list(entry.outputs) == ["a/mask"]
    assert entry.rows == [{"dsc": 0.5}]


def test_a_moved_output_folder_keeps_its_ledger(out: Path) -> None:
    moved = out.parent / "elsewhere"
    out.rename(moved)
    assert Ledger(moved).finished("a", work=WORK) is not None


@pytest.mark.parametrize("key", ["input_sha256", "model_sha256", "settings_sha256"])
def test_other_work_is_not_finished(out: Path, key: str) -> None:
    changed = Work(**{**vars(WORK), key: "x"})
    assert Ledger(out).finished("a", work=changed) is None


def test_changed_and_lost_files_are_not_finished(out: Path) -> None:
    (out / "a" / "mask").write_text("2")
    assert Ledger(out).finished("a", work=WORK) is None
    (out / "a" / "mask").unlink()
    assert Ledger(out).finished("a", work=WORK) is None


def test_forgotten_and_unknown_cases_are_not_finished(out: Path) -> None:
    ledger = Ledger(out)
    ledger.forget("a")
    ledger.forget("never seen")
    assert ledger.finished("a", work=WORK) is None
    assert ledger.finished("never seen", work=WORK) is None
