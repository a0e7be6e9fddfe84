import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medseg.errors import ModelError
from medseg.generative.storage import content_hash, read_folder, write_folder

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2])}


def test_round_trip(tmp_path: Path) -> None:
    write_folder(tmp_path / "new" / "deep", "thing", TENSORS, {"kind": "x", "list": [1, 2]})
    tensors, description = read_folder(tmp_path / "new" / "deep", "thing")
    assert description == {"kind": "x", "list": [1, 2]}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)


def test_hash_depends_on_content_and_not_on_order() -> None:
    first = content_hash(TENSORS, {"x": 1, "y": 2})
    assert first == content_hash(dict(reversed(TENSORS.items())), {"y": 2, "x": 1})
    changed: list[tuple[dict[str, Tensor], dict[str, int]]] = [
        ({**TENSORS, "a": torch.tensor([1, 3])}, {"x": 1, "y": 2}),
        ({**TENSORS, "b": TENSORS["b"].reshape(3, 2)}, {"x": 1, "y": 2}),
        (TENSORS, {"x": 1, "y": 3}),
    ]
    assert all(content_hash(*content) != first for content in changed)


@pytest.mark.parametrize("name", ["thing.safetensors", "thing.json"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, "thing", TENSORS, {})
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=name):
        read_folder(tmp_path, "thing")


@pytest.mark.parametrize("name", ["thing.safetensors", "thing.json"])
def test_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, "thing", TENSORS, {"kind": "x"})
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match="cannot be read"):
        read_folder(tmp_path, "thing")


def test_changed_description_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, "thing", TENSORS, {"scale": 1.0})
    path = tmp_path / "thing.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scale": 2.0}))
    with pytest.raises(ModelError, match="hash"):
        read_folder(tmp_path, "thing")


def test_description_that_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_folder(tmp_path, "thing", TENSORS, {"nats": float("nan")})
