import json
from pathlib import Path

import pytest

from medseg.batch.ledger import Ledger, Work

WORK = Work(input_sha256="i", model_sha256="m", settings_sha256="s", results=1)


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


def test_other_results_are_not_finished_nor_are_those_of_entries_that_know_no_version(
    out: Path,
) -> None:
    assert Ledger(out).finished("a", work=Work("i", "m", "s", 2)) is None
    path = Ledger(out).path("a")
    values = json.loads(path.read_text())
    del values["work"]["results"], values["source"]
    path.write_text(json.dumps(values))
    assert Ledger(out).finished("a", work=WORK) is None
    assert Ledger(out).read("a") is not None


def test_withdrawn_and_unknown_cases_are_not_finished(out: Path) -> None:
    ledger = Ledger(out)
    ledger.withdraw("a")
    ledger.withdraw("never seen")
    assert ledger.finished("a", work=WORK) is None
    assert ledger.finished("never seen", work=WORK) is None


def test_what_is_withdrawn_is_kept_each_time_and_somebodys_own_file_stays(out: Path) -> None:
    for text in "12":
        (out / "a").mkdir(exist_ok=True)
        (out / "a" / "mask").write_text(text)
        Ledger(out).record("a", work=WORK, outputs=[out / "a" / "mask"], rows=[])
        Ledger(out).withdraw("a")
        assert not (out / "a").exists()
    assert [(out / "stale" / "a" / n / "mask").read_text() for n in "12"] == ["1", "2"]
    (out / "a").mkdir()
    (out / "a" / "notes").write_text("mine")
    Ledger(out).withdraw("a")
    assert (out / "a" / "notes").read_text() == "mine"


def test_what_is_being_written_is_not_finished_and_may_be_written_again(out: Path) -> None:
    ledger, mask = Ledger(out), out / "a" / "mask"
    for text in ("1", "half"):
        mask.write_text(text)
        ledger.begin("a", work=WORK, outputs=[mask, out / "a" / "map"])
        entry = ledger.read("a")
        assert entry is not None
        assert not entry.is_whole
        assert list(entry.outputs) == ["a/mask", "a/map"]
        assert ledger.finished("a", work=WORK) is None
        assert mask.read_text() == text
    assert not (out / "stale").exists()


def test_what_somebody_changed_is_set_aside_before_it_is_written_again(out: Path) -> None:
    (out / "a" / "mask").write_text("corrected by hand")
    Ledger(out).begin("a", work=WORK, outputs=[out / "a" / "mask"])
    assert not (out / "a" / "mask").exists()
    assert (out / "stale" / "a" / "1" / "mask").read_text() == "corrected by hand"


def test_whole_entries_whose_files_are_there_are_listed(out: Path) -> None:
    ledger, mask = Ledger(out), out / "a" / "mask"
    assert [entry.case for entry in ledger.entries()] == ["a"]
    ledger.record("b", work=WORK, outputs=[mask], rows=[], source=out)
    (out / "ledger" / ".c.part-x.json").write_text("{")
    (out / "ledger" / "d.json").write_text("{")
    assert [(entry.case, entry.source) for entry in ledger.entries()] == [
        ("a", None),
        ("b", str(out)),
    ]
    ledger.begin("b", work=WORK, outputs=[mask])
    assert [entry.case for entry in ledger.entries()] == ["a"]
    mask.unlink()
    assert ledger.entries() == []
