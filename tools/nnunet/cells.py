"""The cells of an experiment that nnU-Net is held against, and how long they took."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError
from medseg.experiment.cell import Cell
from medseg.io.atomic import read_table


@dataclass(frozen=True)
class Template:
    """A cell of the arm that is compared with.

    Parameters
    ----------
    cell : Cell
    train, test : tuple of str
        Subjects it was trained on, identifiers of the cases it was tested on.
    seconds : float
        Its training, of all members.
    """

    cell: Cell
    train: tuple[str, ...]
    test: tuple[str, ...]
    seconds: float


def made_cell(row: dict[str, str], **changes: str) -> Cell:
    """Return the cell that a row of scores belongs to."""
    given = row | changes
    values: dict[str, Any] = {
        field.name: int(given[field.name]) if field.name in ("n", "seed") else given[field.name]
        for field in dataclasses.fields(Cell)
    }
    return Cell(**values)


def cells_of(run: Path) -> Iterable[tuple[Cell, list[dict[str, str]]]]:
    """Yield every finished cell of a run with its rows."""
    for path in sorted((run / "cells").glob("*/scores.tsv")):
        rows = read_table(path)
        if rows:
            yield made_cell(rows[0]), rows


def seconds_of(run: Path, name: str) -> float:
    """Return the time of a training by the histories of its members; 0 where there are none.

    The first member's may have the plain name.
    """
    named = re.compile(rf"{re.escape(name)}(_member\d+)?")
    paths = (path for path in (run / "histories").glob("*.tsv") if named.fullmatch(path.stem))
    return sum(float(read_table(path)[-1]["seconds"]) for path in paths)


def source_seconds(run: Path, source: str) -> float:
    """Return the time that training all networks of a source took, without fitting priors.

    Raises
    ------
    ConfigError
        Nobody wrote it down.
    """
    seconds = seconds_of(run, f"source_{source}")
    if seconds <= 0:
        raise ConfigError(
            f"The time of source {source!r} is told by histories/source_{source}_member*.tsv, but "
            f"{run} has none.",
            hint="Say how long nnU-Net is pretrained: --source-seconds.",
        )
    return seconds


def source_dataset(sources: Sequence[str], name: str) -> str:
    """Return what nnU-Net calls a source: each has a number of its own.

    Examples
    --------
    >>> source_dataset(["ms", "both"], "both")
    'Dataset503_source_both'
    """
    return f"Dataset{502 + list(sources).index(name)}_source_{name}"


def templates(run: Path, like: str, source: str | None, subjects: Sequence[str]) -> list[Template]:
    """Return the cells of method ``like`` on one source.

    Raises
    ------
    ConfigError
        There is none.
    """
    found: list[Template] = []
    for cell, rows in cells_of(run):
        if cell.method != like or (source not in (None, cell.source)):
            continue
        source = cell.source
        found.append(
            Template(
                cell,
                tuple(subjects[int(number)] for number in cell.subset.split("+")),
                tuple(dict.fromkeys(row["case"] for row in rows)),
                seconds_of(run, cell.identifier),
            )
        )
    if not found:
        known = sorted({f"{cell.method} on {cell.source}" for cell, _ in cells_of(run)})
        raise ConfigError(
            f"--like {like}{f' --source {source}' if source else ''} must be an arm of {run}, but "
            f"its finished ones are {known}.",
            hint="Name another arm, or run the experiment first.",
        )
    return found
