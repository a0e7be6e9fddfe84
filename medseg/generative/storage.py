"""A fitted model in a folder: tensors in safetensors, words and numbers in JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medseg.errors import ModelError
from medseg.io.atomic import atomic_path, write_json


def write_folder(
    folder: Path, name: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Write ``<name>.safetensors`` and ``<name>.json``, which holds a hash over both."""
    flat = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic_path(folder / f"{name}.safetensors") as path:
        save_file(flat, path)
    text = {**description, "content_hash": content_hash(flat, description)}
    write_json(folder / f"{name}.json", text)


def read_folder(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description written by :func:`write_folder`.

    Raises
    ------
    ModelError
        A file is missing or damaged, or the two do not belong together.
    """
    tensor_path, text_path = folder / f"{name}.safetensors", folder / f"{name}.json"
    for path in (tensor_path, text_path):
        if not path.is_file():
            raise ModelError(
                f"{folder} must hold {path.name}, but there is no such file.",
                hint="Give the folder that was written by save.",
            )
    try:
        tensors = load_file(tensor_path)
        description = json.loads(text_path.read_text(encoding="utf-8"))
    except (SafetensorError, ValueError) as error:
        raise ModelError(
            f"{tensor_path} or {text_path.name} cannot be read: {error}.",
            hint="The file is truncated or of another format: write it again.",
        ) from error
    stored = description.pop("content_hash", None)
    found = content_hash(tensors, description)
    if stored != found:
        raise ModelError(
            f"{tensor_path} and {text_path.name} must have the hash they were saved with, "
            f"{stored}, but they "
            f"have {found}.",
            hint="One of them was changed or copied from elsewhere: write both again.",
        )
    return tensors, description


def content_hash(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """Return the SHA-256 of tensors and description; their order does not matter."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, allow_nan=False).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
