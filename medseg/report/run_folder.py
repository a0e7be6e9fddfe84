"""Read a run folder into plain records; say what is absent instead of failing on it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from medseg.errors import DataError
from medseg.io.atomic import read_table
from medseg.report.arms import Arm

logger = logging.getLogger(__name__)

_READING_ERRORS = (OSError, ValueError, KeyError, SafetensorError)


@dataclass(frozen=True)
class Score:
    """Metrics of one region of one case in one cell (one training subset and seed)."""

    arm: Arm
    n: int
    subset: str
    seed: str
    case: str
    region: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """Means of one arm over cells and cases; DSC with its bootstrap 95 % interval."""

    arm: Arm
    n: int
    region: str
    n_cases: int
    n_cells: int
    mean: float
    low: float
    high: float
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """DSC of one arm minus that of another on the same cases, with its 95 % interval."""

    arm: Arm
    n: int
    region: str
    against: str
    mean: float
    low: float
    high: float
    p: float
    n_cases: int
    p_holm: float = math.nan
    against_source: str = ""
    detectable: float = math.nan


@dataclass(frozen=True)
class Rank:
    """Mean rank of one arm over subjects among all arms of that region and n; 1 is best."""

    arm: Arm
    n: int
    region: str
    mean_rank: float
    critical_difference: float
    p_friedman: float
    n_subjects: int
    mean_dsc: float = math.nan


@dataclass(frozen=True)
class Example:
    """One predicted case: arrays of the prepared grid, and what is known about them."""

    name: str
    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Priors:
    """Held-out nats and kernels of the priors fitted to one source."""

    source: str
    held_out: Sequence[Mapping[str, str]]
    kernels: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """Everything a report may say.

    ``unread`` names the files that could not be read, and why; ``failures`` the cells that failed.
    """

    folder: Path
    info: Mapping[str, Any]
    scores: Sequence[Score]
    summary: Sequence[Summary]
    paired: Sequence[Difference]
    reliability: Sequence[Mapping[str, str]]
    priors: Sequence[Priors]
    histories: Mapping[str, Mapping[str, np.ndarray]]
    examples: Sequence[Example]
    unread: Mapping[str, str]
    failures: Mapping[str, str] = field(default_factory=dict)
    ranks: Sequence[Rank] = ()
    power: Sequence[Mapping[str, str]] = ()
    decisions: Sequence[Mapping[str, str]] = ()

    @property
    def regions(self) -> tuple[str, ...]:
        """Regions in the order of the run, then those found in the scores only."""
        named = [str(name) for name in self.info.get("regions") or []]
        found = dict.fromkeys(score.region for score in self.scores)
        return tuple(dict.fromkeys([name for name in named if name in found] + list(found)))


def as_number(text: str | None) -> float:
    """Return the number in a table cell, NaN for "n/a", nothing or words."""
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _as_count(text: str | None) -> int:
    value = as_number(text)
    return int(value) if math.isfinite(value) else 0


def _arm(row: Mapping[str, str]) -> Arm:
    return Arm(row.get("method", "n/a"), row.get("source", "none") or "none")


def _score(row: Mapping[str, str]) -> Score:
    keys = ("method", "source", "n", "subset", "seed", "case", "region")
    return Score(
        _arm(row),
        _as_count(row.get("n")),
        row.get("subset", ""),
        row.get("seed", ""),
        row.get("case", ""),
        row.get("region", ""),
        {key: as_number(text) for key, text in row.items() if key not in keys},
    )


def _summary(row: Mapping[str, str]) -> Summary:
    # A mean may stand under its metric's own name or under mean_<name>.
    others = {key.removeprefix("mean_"): as_number(text) for key, text in row.items()}
    return Summary(
        _arm(row),
        _as_count(row.get("n")),
        row.get("region", ""),
        _as_count(row.get("n_cases")),
        _as_count(row.get("n_cells")),
        as_number(row.get("mean_dsc")),
        as_number(row.get("low_dsc")),
        as_number(row.get("high_dsc")),
        others,
    )


def _difference(row: Mapping[str, str]) -> Difference:
    return Difference(
        _arm(row),
        _as_count(row.get("n")),
        row.get("region", ""),
        row.get("against", ""),
        as_number(row.get("difference_dsc")),
        as_number(row.get("low")),
        as_number(row.get("high")),
        as_number(row.get("p_wilcoxon")),
        _as_count(row.get("n_cases")),
        as_number(row.get("p_holm")),
        row.get("against_source", ""),
        as_number(row.get("detectable_dsc")),
    )


def _rank(row: Mapping[str, str]) -> Rank:
    return Rank(
        _arm(row),
        _as_count(row.get("n")),
        row.get("region", ""),
        as_number(row.get("mean_rank")),
        as_number(row.get("critical_difference")),
        as_number(row.get("p_friedman")),
        _as_count(row.get("n_subjects")),
        as_number(row.get("mean_dsc")),
    )


class _Reader:
    """Reads optional files; remembers which ones could not be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unread: dict[str, str] = {}

    def _failed(self, path: Path, error: Exception) -> None:
        name = path.relative_to(self.folder).as_posix()
        logger.warning("%s could not be read: %s", path, error)
        self.unread[name] = f"{name} could not be read ({type(error).__name__})."

    def table(self, path: Path) -> list[dict[str, str]]:
        if not path.is_file():
            return []
        try:
            return read_table(path)
        except _READING_ERRORS as error:
            self._failed(path, error)
            return []

    def arrays(self, path: Path) -> dict[str, np.ndarray]:
        if not path.is_file():
            return {}
        try:
            return load_file(path)
        except _READING_ERRORS as error:
            self._failed(path, error)
            return {}

    def about(self, path: Path) -> dict[str, Any]:
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            return found if isinstance(found, dict) else {}
        except _READING_ERRORS as error:
            self._failed(path, error)
            return {}

    def history(self, path: Path) -> dict[str, np.ndarray]:
        rows = self.table(path)
        keys = rows[0].keys() if rows else ()
        return {key: np.array([as_number(row.get(key)) for row in rows]) for key in keys}


def _read_priors(reader: _Reader) -> list[Priors]:
    folders = sorted(path for path in (reader.folder / "priors").glob("*") if path.is_dir())
    return [
        Priors(
            path.name,
            reader.table(path / "held_out.tsv"),
            reader.arrays(path / "kernels.safetensors"),
        )
        for path in folders
    ]


def _read_examples(reader: _Reader) -> list[Example]:
    examples = []
    for path in sorted((reader.folder / "examples").glob("*.safetensors")):
        arrays = reader.arrays(path)
        if {"image", "truth", "probability"} <= arrays.keys():
            examples.append(Example(path.stem, arrays, reader.about(path.with_suffix(".json"))))
    return examples


def _read_info(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(
            f"A run folder must hold run.json, but {path} does not exist.",
            hint="Give the folder that the experiment or the demo wrote.",
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"run.json must be JSON, but {path} is not: {error}.", hint="Run the experiment again."
        ) from error
    if not isinstance(info, dict):
        raise DataError(
            f"run.json must hold an object, but {path} holds a {type(info).__name__}.",
            hint="Run the experiment again.",
        )
    return info


def read_run(folder: Path) -> Run:
    """Return what the run folder holds.

    Raises
    ------
    DataError
        When run.json or scores.tsv is absent, or scores.tsv has no rows.
    """
    info = _read_info(folder / "run.json")
    reader = _Reader(folder)
    scores = [_score(row) for row in reader.table(folder / "scores.tsv")]
    if not scores:
        raise DataError(
            f"A report needs at least one row of scores, but {folder / 'scores.tsv'} has none.",
            hint="Let the experiment finish one cell, then ask for the report again.",
        )
    history_files = sorted((folder / "histories").glob("*.tsv"))
    return Run(
        folder=folder,
        info=info,
        scores=scores,
        summary=[_summary(row) for row in reader.table(folder / "summary.tsv")],
        paired=[_difference(row) for row in reader.table(folder / "paired.tsv")],
        reliability=reader.table(folder / "reliability.tsv"),
        priors=_read_priors(reader),
        histories={path.stem: reader.history(path) for path in history_files},
        examples=_read_examples(reader),
        unread=reader.unread,
        ranks=[_rank(row) for row in reader.table(folder / "ranks.tsv")],
        power=reader.table(folder / "power.tsv"),
        decisions=reader.table(folder / "decisions.tsv"),
        failures={
            row.get("cell", ""): row.get("reason", "")
            for row in reader.table(folder / "failures.tsv")
        },
    )
