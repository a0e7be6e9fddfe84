"""One model over many scans."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medseg.batch.ledger import Ledger, Work
from medseg.errors import DataError, MedsegError, ScanError
from medseg.inference.model import Model
from medseg.inference.outputs import case_folder, cohort_rows, write_prediction
from medseg.inference.predict import predict_prepared_case, prepare_for
from medseg.inference.provenance import (
    case_sha256,
    settings_sha256,
    settings_to_json,
    versions,
)
from medseg.inference.settings import PredictSettings
from medseg.io.atomic import write_table
from medseg.scan import Case

log = logging.getLogger(__name__)

Stage = Literal["name", "load", "prepare", "predict", "write"]
#: An identifier, and what reads the case when its turn has come.
Item = tuple[str, Callable[[], Case]]

FAILURES_NAME, COHORT_NAME = "failures.tsv", "cohort.tsv"
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
)


@dataclass(frozen=True)
class Failure:
    """One scan without a result: a row of ``failures.tsv``."""

    scan: str
    stage: Stage
    reason: str
    hint: str

    def row(self) -> dict[str, object]:
        """Return the row of the table."""
        return {
            "scan": self.scan,
            "stage": self.stage,
            "reason": self.reason,
            "hint": self.hint,
        }


@dataclass
class BatchSummary:
    """What became of each scan, by identifier."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Scans that were tried."""
        return len(self.done) + len(self.skipped) + len(self.failures)


@dataclass
class _Run:
    """What is the same for all scans of a run."""

    model: Model
    settings: PredictSettings
    out: Path
    resume: bool
    model_sha256: str
    settings_sha256: str
    ledger: Ledger
    stage: Stage = "name"


def run_batch(
    cases: Iterable[Item],
    *,
    model: Model,
    out: Path,
    settings: PredictSettings | None = None,
    resume: bool = True,
    on_finished: Callable[[str, str], None] | None = None,
) -> BatchSummary:
    """Predict every case and write its files; one that fails does not stop the others.

    Parameters
    ----------
    cases : iterable of (identifier, loader)
        A loader reads one case when it is its turn and may raise.
    model : Model
    out : Path
        Gets a folder per case, ``cohort.tsv``, ``failures.tsv`` and ``ledger/``.
    settings : PredictSettings, optional
    resume : bool
        Skip a scan whose input, model, settings and files are all as its ledger entry says.
    on_finished : callable, optional
        Called with identifier and "done", "skipped" or "failed", for a progress bar.

    Returns
    -------
    BatchSummary

    Notes
    -----
    An interruption (Ctrl-C) leaves whole files only: the scan at work is dropped, both tables are
    written for those before it, and the interruption goes on to the caller. The same call resumes.
    """
    chosen, out = settings or PredictSettings(), Path(out)
    run = _Run(
        model=model,
        settings=chosen,
        out=out,
        resume=resume,
        model_sha256=model.fingerprint(),
        settings_sha256=settings_sha256(chosen),
        ledger=Ledger(out),
    )
    summary, rows, seen = BatchSummary(), [], set[str]()
    try:
        for identifier, load in cases:
            outcome = _one(run, identifier, load, seen=seen, summary=summary, rows=rows)
            if on_finished is not None:
                on_finished(identifier, outcome)
    finally:
        write_table(out / COHORT_NAME, rows, columns=_COHORT_COLUMNS)
        failures = [failure.row() for failure in summary.failures]
        write_table(out / FAILURES_NAME, failures, columns=("scan", "stage", "reason", "hint"))
    return summary


def _one(
    run: _Run,
    identifier: str,
    load: Callable[[], Case],
    *,
    seen: set[str],
    summary: BatchSummary,
    rows: list[Mapping[str, object]],
) -> str:
    """Do one scan, file it in the summary, and return what became of it."""
    run.stage = "name"
    try:
        _check_identifier(run.out, identifier, seen)
        finished, of_case = _predict(run, identifier, load)
    except Exception as error:
        # Any error, foreseen or not, costs this scan alone; the traceback is in the log.
        log.error("%s failed at stage %s: %s", identifier, run.stage, error)
        log.debug("traceback of %s", identifier, exc_info=True)
        summary.failures.append(_failure(identifier, run.stage, error))
        return "failed"
    rows.extend(of_case)
    (summary.skipped if finished else summary.done).append(identifier)
    return "skipped" if finished else "done"


def _check_identifier(out: Path, identifier: str, seen: set[str]) -> None:
    case_folder(out, identifier)
    if identifier in seen:
        raise DataError(
            f"An identifier names one case, but {identifier!r} came twice.",
            hint="The first one was predicted; rename the other.",
        )
    seen.add(identifier)


def _predict(
    run: _Run, identifier: str, load: Callable[[], Case]
) -> tuple[bool, list[Mapping[str, object]]]:
    """Return whether the scan was finished before, and its rows of the table over cases."""
    run.stage = "load"
    case = load()
    if case.identifier != identifier:
        raise ScanError(
            f"A loader must return the case it is for, but {identifier!r} returned "
            f"{case.identifier!r}.",
            hint="Give the pairs of identifier and loader in one order.",
        )
    work = Work(case_sha256(case), run.model_sha256, run.settings_sha256)
    entry = run.ledger.finished(identifier, work=work) if run.resume else None
    if entry is not None:
        return True, list(entry.rows)
    run.ledger.forget(identifier)
    run.stage = "prepare"
    prepared = prepare_for(run.model, case)
    run.stage = "predict"
    prediction = predict_prepared_case(run.model, prepared, settings=run.settings)
    run.stage = "write"
    paths = write_prediction(prediction, run.out, provenance=_provenance(run, work))
    of_case = cohort_rows(prediction)
    run.ledger.record(identifier, work=work, outputs=list(set(paths.values())), rows=of_case)
    return False, list(of_case)


def _provenance(run: _Run, work: Work) -> dict[str, object]:
    return {
        "input_sha256": work.input_sha256,
        "model_sha256": work.model_sha256,
        "settings_sha256": work.settings_sha256,
        "settings": settings_to_json(run.settings),
        "method": run.model.spec.method,
        "versions": versions(),
    }


def _failure(identifier: str, stage: Stage, error: Exception) -> Failure:
    if isinstance(error, MedsegError):
        return Failure(identifier, stage, error.message, error.hint)
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return Failure(identifier, stage, reason, "Use smaller windows, or a coarser spacing.")
    return Failure(identifier, stage, reason, "Not foreseen: see the log for the traceback.")
