"""Compiled forms on the disk, each named by all that it was made from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from medseg import __version__
from medseg.io.atomic import file_sha256, write_json

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Packages whose version decides what a compiled form is, or how fast.
PACKAGES = ("torch", "openvino", "nncf", "onnxruntime", "onnx")
_SUMS = "sha256.json"


def network_sha256(network: nn.Module) -> str:
    """Return a SHA-256 over the architecture and the weights of a network.

    The architecture is the class and the plain settings of every module: a network that computes
    something else from the same weights has another hash.
    """
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        plain = {k: repr(v) for k, v in vars(module).items() if _is_plain(k, v)}
        digest.update(f"{name} {type(module).__qualname__} {sorted(plain.items())}\n".encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_plain(name: str, value: object) -> bool:
    return name != "training" and isinstance(value, bool | int | float | str | tuple | None)


def versions() -> dict[str, str | None]:
    """Return the versions of medseg and of what engines are made with; None where absent."""
    found: dict[str, str | None] = {"medseg": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def stem(network: nn.Module, *, engine: str, precision: str) -> str:
    """Return a name for a compiled form with a SHA-256 over all that it is made from."""
    made_from = [network_sha256(network), engine, precision, versions()]
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    return f"{engine}-{precision}-{digest}"


def kept(
    cache: Path | None,
    name: str,
    *,
    build: Callable[[], T],
    write: Callable[[T, Path], object],
    read: Callable[[Path], T],
) -> T:
    """Return what is kept under ``cache / name``; where it is not, build it and keep it there.

    A folder that cannot be written to, and a form that was damaged on the disk, cost the time of
    building and nothing else.

    Parameters
    ----------
    cache : Path or None
        None keeps nothing.
    name : str
        From :func:`stem`.
    build : callable
        Makes it.
    write : callable
        Writes it into the files of an empty folder.
    read : callable
        Reads it from that folder.
    """
    folder = None if cache is None else Path(cache) / name
    if folder is not None and _is_whole(folder):
        log.debug("compiled form read from %s", folder)
        return read(folder)
    made = build()
    if folder is not None:
        try:
            _store(folder, lambda temporary: write(made, temporary))
        except (OSError, RuntimeError) as error:
            log.warning("the compiled form is not kept for the next run: %s", error)
    return made


def _is_whole(folder: Path) -> bool:
    """Return whether the files of a folder are there as they were written."""
    try:
        sums = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        damaged = [name for name, value in sums.items() if file_sha256(folder / name) != value]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError) as error:
        log.warning("the compiled form in %s is made again: %s", folder, error)
        return False
    if damaged:
        log.warning("the compiled form in %s is made again: %s changed", folder, damaged)
    return not damaged


def _store(folder: Path, write: Callable[[Path], object]) -> None:
    temporary = folder.with_name(f".{secrets.token_hex(6)}.part")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        write_json(temporary / _SUMS, {p.name: file_sha256(p) for p in temporary.iterdir()})
        # A damaged one is in the way; one that another process has just finished is as good.
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
