"""Features as a table that can be compared: what is constant or mostly missing is left out."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, ScanFileError
from medseg.explore.names import compared, ratio_scale

FEWEST_SCANS = 3
_IDENTIFIERS = ("case", "scan", "identifier", "id", "participant_id", "subject")
_ABSENT = {"", "n/a", "na", "nan", "none", "null", "-"}
# A value this many robust deviations away is as far as any: one broken scan must not flatten the
# map of all others.
_FARTHEST = 5.0
_LEAST_KNOWN_SHARE = 0.5

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Scans by features.

    Parameters
    ----------
    identifiers : tuple of str
        Of the n scans.
    groups : mapping of str to tuple of str
        What is known of their origin, "" where it is not: site, scanner.
    features : tuple of str
        Names of the d features that are compared.
    values : ndarray, shape (n, d)
        In the features' own units; NaN where missing.
    scores : ndarray, shape (n, d)
        The same in robust deviations from the median, missing ones 0, at most 5 off.
    everything : mapping of str to ndarray, shape (n,)
        All features, those left out included.
    constant, sparse, ignored : tuple of str
        Features left out because they are the same for all scans, because more than half of the
        scans lack them, and columns of a table that are neither numbers nor groups.
    """

    identifiers: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    features: tuple[str, ...]
    values: Matrix
    scores: Matrix
    everything: Mapping[str, NDArray[np.float64]]
    constant: tuple[str, ...]
    sparse: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.identifiers)

    def column(self, feature: str) -> NDArray[np.float64]:
        """Return the values of one feature, (n,)."""
        return self.values[:, self.features.index(feature)]

    def in_units(self, feature: str, scores: Matrix) -> Matrix:
        """Return scores of one feature, of any shape, in its own units."""
        column = self.column(feature)
        middle, deviation = robust_centre(compared(feature, column))
        scale = ratio_scale(feature, column)
        found = middle + deviation * scores
        return found if scale is None else scale * np.expm1(found)


def make_table(
    identifiers: Sequence[str],
    rows: Sequence[Mapping[str, float]],
    *,
    groups: Mapping[str, Sequence[str]],
    ignored: Sequence[str] = (),
) -> FeatureTable:
    """Return the table of scans with features by name.

    A modality that some scans lack has ``<modality>.here`` 0 there, and its features are missing.

    Raises
    ------
    DataError
        Fewer than 3 scans, or no feature that differs between them.
    """
    if len(rows) < FEWEST_SCANS:
        raise DataError(
            f"A cohort is at least {FEWEST_SCANS} scans, but {len(rows)} could be read.",
            hint="Give more scans, or mend those in failures.tsv.",
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    everything = {
        name: np.array([
            row.get(name, 0.0 if name.endswith(".here") else math.nan) for row in rows
        ], dtype=np.float64)
        for name in names
    }  # fmt: skip
    constant = tuple(name for name in names if _is_constant(everything[name]))
    varying = [name for name in names if name not in constant]
    sparse = tuple(
        name for name in varying if np.isfinite(everything[name]).mean() < _LEAST_KNOWN_SHARE
    )
    kept = tuple(name for name in varying if name not in sparse)
    if not kept:
        raise DataError(
            f"Scans must differ in at least one feature, but all {len(names)} features of the "
            f"{len(rows)} scans are the same or mostly missing.",
            hint="Check that the scans are not copies of one.",
        )
    values = np.stack([everything[name] for name in kept], 1)
    scores = np.stack([_scores(compared(name, everything[name])) for name in kept], 1)
    known = {key: tuple(column) for key, column in groups.items() if len({*column} - {""}) > 1}
    return FeatureTable(
        tuple(identifiers), known, kept, values, scores, everything, constant, sparse,
        tuple(ignored),
    )  # fmt: skip


def _is_constant(values: NDArray[np.float64]) -> bool:
    known = values[np.isfinite(values)]
    if known.size < 2:
        return True
    return float(np.ptp(known)) <= 1e-6 * max(float(np.abs(known).max()), 1e-30)


def robust_centre(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return median and deviation of the known values: from the quartiles, at least half the
    usual one.
    """
    known = values[np.isfinite(values)]
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
    return float(middle), max(float(high - low) / 1.349, 0.5 * float(known.std()), 1e-30)


def _scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    middle, deviation = robust_centre(values)
    scores = (values - middle) / deviation
    return np.clip(np.where(np.isfinite(scores), scores, 0.0), -_FARTHEST, _FARTHEST)


def group_columns(rows: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """Return what is known of each scan's origin by key, "" where it is not known."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: tuple(row.get(key, "") for row in rows) for key in keys}


def read_feature_table(path: Path) -> FeatureTable:
    """Return the table in a CSV or TSV file.

    The first column named case, scan, identifier, id, participant_id or subject (else the first)
    names the scans. Columns of numbers are features, columns of words with fewer values than
    scans are groups, others are ignored.

    Raises
    ------
    ScanFileError
        The file cannot be read.
    DataError
        It has no row, two scans of one name, or no feature.
    """
    rows = read_rows(path)
    columns = list(rows[0])
    key = next((c for c in columns if c.strip().lower() in _IDENTIFIERS), columns[0])
    names = [row[key] for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: column {key!r} must name each scan once, but {twice[:5]} stand twice.",
            hint="Give one row a scan.",
        )
    numbers = {c: _as_numbers([row[c] for row in rows]) for c in columns if c != key}
    features = {c: found for c, found in numbers.items() if found is not None}
    words = {c: [row[c].strip() for row in rows] for c, found in numbers.items() if found is None}
    groups = {c: column for c, column in words.items() if 1 < len({*column}) < len(rows)}
    if not features:
        raise DataError(
            f"{path} must have a column of numbers, but it has {columns}.",
            hint="Decimal points, and n/a where a value is missing.",
        )
    return make_table(
        names,
        [{c: features[c][i] for c in features} for i in range(len(rows))],
        groups=groups,
        ignored=[c for c in words if c not in groups],
    )


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV or TSV file; the separator is the one its first line has most.

    Raises
    ------
    ScanFileError
        It cannot be read as text.
    DataError
        It has no row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ScanFileError(
            f"The table {path} could not be read: {error}.", hint="Save it as UTF-8 text."
        ) from error
    first = text.partition("\n")[0]
    separator = max("\t,;", key=first.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=separator, restval="")
    rows = [{str(k): v or "" for k, v in row.items() if k} for row in reader]
    if not rows:
        raise DataError(f"A table needs a heading and a row per scan, but {path} has none.")
    return rows


def _as_numbers(column: Sequence[str]) -> list[float] | None:
    """Return the numbers of a column, None where a known value is not one."""
    known = [text for text in column if text.strip().lower() not in _ABSENT]
    try:
        for text in known:
            float(text)
    except ValueError:
        return None
    if not known:
        return None
    numbers = (math.nan if t.strip().lower() in _ABSENT else float(t) for t in column)
    return [number if math.isfinite(number) else math.nan for number in numbers]
