import json
import os

import numpy as np
import pytest

from medseg.errors import ConfigError, ScanFileError
from medseg.io.atomic import (
    atomic_path,
    file_sha256,
    read_table,
    refuse_inside,
    write_json,
    write_table,
    write_text,
)


def test_the_file_appears_whole_and_only_at_the_end(tmp_path) -> None:
    final = tmp_path / "new" / "folder" / "mask.nii.gz"
    with atomic_path(final) as temporary:
        assert temporary.parent == final.parent
        assert temporary.name.endswith("mask.nii.gz")
        temporary.write_text("whole")
        assert not final.exists()
    assert [path.name for path in final.parent.iterdir()] == ["mask.nii.gz"]
    assert final.read_text() == "whole"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_rubbish(tmp_path, error) -> None:
    final = tmp_path / "a.txt"
    final.write_text("old")

    def fail_midway() -> None:
        with atomic_path(final) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail_midway()
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_it_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    write_text(tmp_path / "a.txt", "x")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScanFileError, match=r"file/a\.txt could not be written"):
        write_text(tmp_path / "file" / "a.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ScanFileError, match="folder could not be written"):
        write_text(tmp_path / "folder", "x")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ScanFileError, match="No space left"):
        write_text(tmp_path / "b.txt", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_results_never_lie_among_the_inputs_not_even_through_links(tmp_path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "link").symlink_to(data)
    for out in (data, data / "new" / "out", tmp_path / "link" / "out", data / ".." / "data"):
        with pytest.raises(ConfigError, match="inside the input"):
            refuse_inside(out, data)
    for out in (tmp_path, tmp_path / "data2", data / ".." / "out"):
        refuse_inside(out, data)


def test_json_holds_numbers_paths_and_null_for_what_is_not_finite(tmp_path) -> None:
    path = tmp_path / "a.json"
    write_json(
        path,
        {
            "a": np.float32(0.5),
            "b": [float("nan"), np.inf],
            "c": tmp_path,
            "d": np.arange(2),
            3: {2, 1},
        },
    )
    expected = {"a": 0.5, "b": [None, None], "c": str(tmp_path), "d": [0, 1], "3": [1, 2]}
    assert json.loads(path.read_text()) == expected


def test_a_table_comes_back_as_text(tmp_path) -> None:
    path = tmp_path / "a.tsv"
    rows = [
        {"case": "a\tb\nc", "dsc": 1 / 3, "n": np.int64(2)},
        {"case": 'quote "x"', "dsc": float("nan"), "new": None},
    ]
    write_table(path, rows)
    assert path.read_text().splitlines()[0] == "case\tdsc\tn\tnew"
    assert read_table(path) == [
        {"case": "a b c", "dsc": "0.333333", "n": "2", "new": "n/a"},
        {"case": 'quote "x"', "dsc": "n/a", "n": "n/a", "new": "n/a"},
    ]


def test_an_empty_table_keeps_its_header(tmp_path) -> None:
    write_table(tmp_path / "a.tsv", [], columns=["case", "reason"])
    assert (tmp_path / "a.tsv").read_text() == "case\treason\n"
    assert read_table(tmp_path / "a.tsv") == []


def test_what_cannot_be_read_is_named(tmp_path) -> None:
    with pytest.raises(ScanFileError, match=r"none\.tsv"):
        read_table(tmp_path / "none.tsv")
    with pytest.raises(ScanFileError, match=r"none\.nii"):
        file_sha256(tmp_path / "none.nii")


def test_the_hash_is_that_of_the_bytes(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
