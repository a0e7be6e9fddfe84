"""Files that are either there and whole, or not there at all.

Whatever is written goes to a temporary name in the same folder, is flushed to the disk, and takes
its final name in one step. A killed run therefore leaves no half-written mask that looks finished.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from medseg.errors import ConfigError, MedsegError, ScanFileError

MISSING = "n/a"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends well, and vanishes
    otherwise.

    The folder is made when it does not exist. The temporary name keeps the suffixes, so that
    libraries which choose a format by name choose the same one.

    Parameters
    ----------
    path : path
        The final name; a file that has it already is replaced.

    Yields
    ------
    Path
        A name in the same folder that nobody else uses. The block must create this file.

    Raises
    ------
    ScanFileError
        The folder cannot be made or written to, the disk is full, or ``path`` is a folder.
    """
    final = Path(path)
    temporary = final.with_name(f".{secrets.token_hex(6)}.part-{final.name}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, final)  # noqa: PTH105 - the call that is atomic by contract
        _flush(final.parent)
    except OSError as error:
        if isinstance(error, MedsegError):
            raise
        raise ScanFileError(
            f"{final} could not be written: {error.strerror or error}.",
            hint="Choose an output folder that you may write to and that has space left.",
        ) from error
    finally:
        if final.parent.is_dir():
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until the file, or the folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_inside(out: str | Path, given: str | Path) -> None:
    """Refuse an output folder that is the input or lies in it: the next run would read it.

    Raises
    ------
    ConfigError
        It is, also through a link.
    """
    if Path(out).resolve().is_relative_to(Path(given).resolve()):
        raise ConfigError(
            f"Results must not lie among what they are made from, but the output {out} is "
            f"the input {given}, or inside the input.",
            hint="Choose another output folder.",
        )


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, obj: object) -> None:
    """Write ``obj`` as JSON atomically; numbers that are not finite become ``null``.

    Mappings, sequences, sets, paths, numpy numbers and arrays are understood.
    """
    write_text(path, json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: object) -> object:
    """Return ``value`` in the types that JSON has."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [_plain(item) for item in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_table(
    path: str | Path,
    rows: Sequence[Mapping[str, object]],
    *,
    columns: Sequence[str] | None = None,
) -> None:
    """Write rows as tab-separated values, atomically.

    Parameters
    ----------
    path : path
        Ends in ``.tsv`` by custom.
    rows : sequence of mapping from column to value
        Floats are written with six significant digits; what is missing, None or NaN as ``n/a``.
    columns : sequence of str, optional
        Their order; by default the order in which the rows first name them. An empty table needs it
        to have a header.
    """
    names = (
        list(columns) if columns is not None else list({key: None for row in rows for key in row})
    )
    lines = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(lines)
    write_text(path, text.getvalue())


def _cell(value: object) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, float):
        return f"{value:.6g}"
    # A tab or line break inside a value would move every later column.
    return " ".join(str(value).split()) or MISSING


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a tab-separated table as text.

    Raises
    ------
    ScanFileError
        The file is missing or cannot be read as UTF-8 text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScanFileError(
            f"The table {path} could not be read: {error}.",
            hint="Check the path and its permissions.",
        ) from error
    return [dict(row) for row in csv.DictReader(io.StringIO(text), delimiter="\t")]


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of the file's bytes in hexadecimal.

    Raises
    ------
    ScanFileError
        The file is missing or cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ScanFileError(
            f"{path} could not be read: {error.strerror or error}.",
            hint="Check the path and its permissions.",
        ) from error
