"""The two tables of an output folder, over all its cases and not only those of the last call."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from medseg.batch.ledger import Ledger
from medseg.errors import ScanFileError
from medseg.io.atomic import read_table, write_table

log = logging.getLogger(__name__)

FAILURES_NAME, COHORT_NAME = "failures.tsv", "cohort.tsv"
FAILURE_COLUMNS = ("scan", "stage", "reason", "hint")
_COHORT_COLUMNS = (
    "case",
    "subject",
    "region",
    "volume_ml",
    "volume_low_ml",
    "volume_median_ml",
    "volume_high_ml",
    "lesions",
    "mean_std",
    "samples",
    "calibrated",
    "coverage",
    "conformal_low_ml",
    "conformal_high_ml",
    "review",
    "doubt",
    "doubt_percentile",
    "settings_that_differ",
    "reasons",
    "model",
)
_MODEL_DIGITS = 12

Row = Mapping[str, object]


def write_tables(
    out: Path, ledger: Ledger, *, finished: Sequence[str], failures: Sequence[Row]
) -> None:
    """Write ``cohort.tsv`` from the ledger, and ``failures.tsv``.

    Parameters
    ----------
    out : Path
    ledger : Ledger
        Of ``out``; the cases of earlier calls whose files are there follow those of this one.
    finished : sequence of str
        Cases of this call that have results, in the order of the rows.
    failures : sequence of mapping
        Rows of this call; those of an earlier one stay for scans that were not tried since.
    """
    # Of two processes the second sees what the first has recorded, and loses none of it.
    with ledger.lock("tables"):
        _write_cohort(out / COHORT_NAME, ledger, finished)
        _write_failures(out / FAILURES_NAME, finished, failures)


def _write_cohort(path: Path, ledger: Ledger, finished: Sequence[str]) -> None:
    entries = {entry.case: entry for entry in ledger.entries()}
    order = dict.fromkeys([*(case for case in finished if case in entries), *entries])
    rows = [
        {**row, "model": entries[case].work.model_sha256[:_MODEL_DIGITS]}
        for case in order
        for row in entries[case].rows
    ]
    if len({row["model"] for row in rows}) > 1:
        log.warning("%s has cases of several models: see its last column", path)
    write_table(path, rows, columns=_COHORT_COLUMNS)


def _write_failures(path: Path, finished: Sequence[str], failures: Sequence[Row]) -> None:
    tried = {*finished, *(row["scan"] for row in failures)}
    kept: list[Row] = []
    # There is none, or somebody else's.
    with suppress(ScanFileError):
        kept = [row for row in read_table(path) if row.get("scan", "") not in {"", *tried}]
    write_table(path, [*failures, *kept], columns=FAILURE_COLUMNS)
