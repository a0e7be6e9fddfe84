"""Cells that failed: what is kept of them, so that the others go on and a reader is told."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

from medseg.experiment.cell import Cell
from medseg.io.atomic import write_table, write_text

NAME = "failures.tsv"


def note_failure(cell: Cell, out: Path, error: Exception) -> None:
    """Write ``cells/ID/failure.txt``: the error in one line, then its traceback."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    trace = "".join(traceback.format_exception(error))
    write_text(_path(cell, out), f"{reason}\n\n{trace}")


def clear_failure(cell: Cell, out: Path) -> None:
    """Forget that a cell failed, before it is tried again."""
    _path(cell, out).unlink(missing_ok=True)


def has_failed(cell: Cell, out: Path) -> bool:
    """Return whether the last try of a cell ended in an error."""
    return _path(cell, out).is_file()


def write_failures(cells: Sequence[Cell], out: Path) -> None:
    """Write ``failures.tsv`` of a run: the cells that are missing from its tables, and why."""
    rows = [
        {
            "cell": cell.identifier,
            "reason": _path(cell, out).read_text(encoding="utf-8").splitlines()[0],
        }
        for cell in cells
    ]
    write_table(out / NAME, rows, columns=("cell", "reason"))


def _path(cell: Cell, out: Path) -> Path:
    return out / "cells" / cell.identifier / "failure.txt"
