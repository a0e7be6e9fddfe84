"""What single cases said: whole or made again, and never a pickle."""

from pathlib import Path

import numpy as np
import pytest

from medseg.inference.case_store import CaseStore

KEY, OTHER = "0" * 63 + "1", "f" * 64


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    kept = CaseStore(tmp_path / "state")
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}
    kept.save(KEY, arrays, {"x": 0.1 + 0.2, "y": np.array([1.5, np.nan]), "z": None})
    return kept


def test_what_is_kept_comes_back_to_the_last_bit(store: CaseStore) -> None:
    found = store.load(KEY)
    assert found is not None
    arrays, values = found
    np.testing.assert_array_equal(arrays["a"], np.arange(6).reshape(2, 3))
    assert (arrays["a"].dtype, arrays["b"].tolist()) == (np.float32, [True, False])
    assert (values["x"], values["z"], values["y"][0]) == (0.1 + 0.2, None, 1.5)
    assert np.isnan(values["y"][1])
    assert store.load(OTHER) is None


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x80\x04K\x01."])
def test_what_is_damaged_is_made_again(
    store: CaseStore, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.folder is not None
    (store.folder / f"{KEY}.npz").write_bytes(damage)
    assert store.load(KEY) is None
    assert "made again" in caplog.text


def test_what_others_put_there_stays(store: CaseStore) -> None:
    assert store.folder is not None
    (store.folder / "mine.npz").write_text("mine")
    (store.folder / f".ab12.part-{OTHER}.npz").write_text("half")
    store.clear()
    assert [path.name for path in store.folder.iterdir()] == ["mine.npz"]
    (store.folder / "mine.npz").unlink()
    store.clear()
    assert not store.folder.exists()
    store.clear()


def test_without_a_folder_nothing_is_kept() -> None:
    nowhere = CaseStore(None)
    nowhere.save(KEY, {}, 1)
    assert nowhere.load(KEY) is None
    nowhere.clear()
