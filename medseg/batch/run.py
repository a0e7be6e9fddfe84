"""One model over many scans."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from medseg.batch.cases import Loader
from medseg.batch.ledger import Ledger, Work
from medseg.batch.pipeline import PREDICT, WAIT_READ, WAIT_WRITE, Seconds, no_seconds, overlap
from medseg.batch.place import check_owner, check_place, planned_files
from medseg.batch.tables import write_tables
from medseg.errors import ConfigError, DataError, MedsegError, ScanError
from medseg.inference.decide import Decision, decide
from medseg.inference.model import Model
from medseg.inference.outputs import case_folder, cohort_rows, write_prediction
from medseg.inference.predict import Observation, Prediction, observe, prepare_for
from medseg.inference.provenance import (
    RESULTS,
    case_sha256,
    settings_sha256,
    settings_to_json,
    versions,
)
from medseg.inference.settings import PredictSettings
from medseg.inference.words import withdrawn
from medseg.preprocess.prepare import PreparedCase
from medseg.scan import Case

log = logging.getLogger(__name__)

Stage = Literal["name", "load", "prepare", "predict", "write"]
#: An identifier, and what reads the case when its turn has come.
Item = tuple[str, Callable[[], Case]]


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
    """What became of each scan, by identifier, and where the time went.

    ``seconds`` are those of the calling thread: ``total``, and of it ``predict`` (the network),
    ``wait_read`` and ``wait_write`` (all of reading, deciding and writing where nothing is read
    ahead). ``predict / total`` is the share of the time that the network had.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: Seconds = field(default_factory=no_seconds)

    @property
    def total(self) -> int:
        """Scans that were tried."""
        return len(self.done) + len(self.skipped) + len(self.failures)


@dataclass(frozen=True)
class _Finished:
    """A scan whose files are whole."""

    scan: str
    outcome: Literal["done", "skipped"]


@dataclass(frozen=True, eq=False)
class _Ready:
    """A scan that was read and prepared."""

    work: Work
    source: Path | None
    prepared: PreparedCase


@dataclass(frozen=True, eq=False)
class _Predicted:
    """A scan that waits to be written."""

    work: Work
    source: Path | None
    observation: Observation


_End = _Finished | Failure


@dataclass
class _Run:
    """What is the same for all scans of a run; no part of a scan's way raises an Exception."""

    model: Model
    settings: PredictSettings
    out: Path
    resume: bool
    model_sha256: str
    settings_sha256: str
    ledger: Ledger
    seen: set[str] = field(default_factory=set)
    #: Whether it was said that nothing is promised; once is enough.
    has_warned: bool = False

    def read(self, item: Item) -> _Ready | _End:
        """Return the scan as the network wants it, or its end: done before, or failed."""
        identifier, load = item
        source = load.source if isinstance(load, Loader) else None
        stage: Stage = "name"
        work = None
        try:
            _check_identifier(self.out, identifier, self.seen)
            regions = self.model.spec.regions.names
            check_place(identifier, source, out=self.out, regions=regions, ledger=self.ledger)
            stage = "load"
            case = _load(identifier, load)
            work = Work(case_sha256(case), self.model_sha256, self.settings_sha256, RESULTS)
            stage = "name"
            check_owner(identifier, source, work.input_sha256, out=self.out, ledger=self.ledger)
            if self.resume and self.ledger.finished(identifier, work=work) is not None:
                return _Finished(identifier, "skipped")
            stage = "prepare"
            return _Ready(work, source, prepare_for(self.model, case))
        except Exception as error:
            return self.fail(identifier, stage, error, work, source)

    def predict(self, ready: _Ready | _End) -> _Predicted | _End:
        """Return what the network says of a scan."""
        if not isinstance(ready, _Ready):
            return ready
        work, source, prepared = ready.work, ready.source, ready.prepared
        try:
            observation = observe(self.model, prepared, settings=self.settings)
            return _Predicted(work, source, observation)
        except Exception as error:
            return self.fail(prepared.identifier, "predict", error, work, source)

    def write(self, predicted: _Predicted | _End) -> _End:
        """Decide masks and lesions, write a scan's files, and only then its ledger entry."""
        if not isinstance(predicted, _Predicted):
            return predicted
        observation, work, source = predicted.observation, predicted.work, predicted.source
        identifier = observation.identifier
        stage: Stage = "predict"
        try:
            prediction = observation.conclude()
            known = self.model.calibration
            decision = None if known is None else decide(prediction, known)
            if decision is not None and decision.differing and not self.has_warned:
                self.has_warned = True
                log.warning("%s (from %s on)", withdrawn(decision), identifier)
            stage = "write"
            with self.ledger.lock(identifier):
                self._write(prediction, decision, work, source)
            return _Finished(identifier, "done")
        except Exception as error:
            return self.fail(identifier, stage, error, work, source)

    def _write(
        self, prediction: Prediction, decision: Decision | None, work: Work, source: Path | None
    ) -> None:
        identifier, ledger = prediction.identifier, self.ledger
        # Another process may have written the case since it was read.
        check_owner(identifier, source, work.input_sha256, out=self.out, ledger=ledger)
        planned = planned_files(self.out, identifier, prediction.regions)
        ledger.begin(identifier, work=work, outputs=planned, source=source)
        paths = write_prediction(
            prediction, self.out, provenance=_provenance(self, work), decision=decision
        )
        rows = cohort_rows(prediction, decision)
        # With one region two names stand for one file; the order is the same in every run.
        outputs = list(dict.fromkeys(paths.values()))
        ledger.record(identifier, work=work, outputs=outputs, rows=rows, source=source)

    def fail(
        self,
        identifier: str,
        stage: Stage,
        error: Exception,
        work: Work | None,
        source: Path | None,
    ) -> Failure:
        """Return the failure, and move away what would pass for this model's result of the scan."""
        if stage != "name":
            try:
                with self.ledger.lock(identifier):
                    self._withdraw(identifier, work, source)
            except Exception as second:
                log.warning("the earlier files of %s could not be moved: %s", identifier, second)
        return _failure(identifier, stage, error)

    def _withdraw(self, identifier: str, work: Work | None, source: Path | None) -> None:
        entry = self.ledger.read(identifier)
        if entry is None or entry.is_of_other(source, work and work.input_sha256):
            return
        # A scan that could not be read is taken for the one it was.
        wanted = work or replace(
            entry.work,
            model_sha256=self.model_sha256,
            settings_sha256=self.settings_sha256,
            results=RESULTS,
        )
        if entry.work != wanted or not entry.is_whole:
            self.ledger.withdraw(identifier)


def run_batch(
    cases: Iterable[Item],
    *,
    model: Model,
    out: Path,
    settings: PredictSettings | None = None,
    resume: bool = True,
    on_finished: Callable[[str, str], None] | None = None,
    read_ahead: int = 1,
) -> BatchSummary:
    """Predict every case and write its files; one that fails does not stop the others.

    Parameters
    ----------
    cases : iterable of (identifier, loader)
        A loader reads one case and may raise. It runs in a thread of its own, one loader at a time.
        A :class:`~medseg.batch.cases.Loader` also tells where the scans are: results of others by
        the same name are then never replaced.
    model : Model
    out : Path
        Gets a folder per case, ``cohort.tsv``, ``failures.tsv``, ``ledger/`` and, where there is
        need, ``stale/``. The tables keep the cases of earlier calls.
    settings : PredictSettings, optional
    resume : bool
        Skip a scan whose input, model, settings and files are all as its ledger entry says. Files
        that somebody changed since, and those of a scan that fails now and has others' (of another
        input, model or settings), are moved to ``stale/<case>/``.
    on_finished : callable, optional
        Called with identifier and "done", "skipped" or "failed", for a progress bar; in the calling
        thread and the order of the cases. A written case is told of when the next was predicted.
    read_ahead : int
        Cases that are read and prepared while the network works. With 1 or more, results are also
        written meanwhile: memory then holds one more prepared case each, and one more prediction.
        0 does one thing after the other. The files are the same, bit for bit.

    Returns
    -------
    BatchSummary

    Raises
    ------
    ConfigError
        ``read_ahead`` is below 0.

    Notes
    -----
    An interruption (Ctrl-C) leaves whole files only: the scan at work is dropped, the one being
    written is finished, both tables are written for those before the one at work, and the
    interruption goes on to the caller. The same call resumes.
    """
    start = time.perf_counter()
    if read_ahead < 0:
        raise ConfigError(
            f"Cases are read ahead of their turn by 0 or more, but read_ahead is {read_ahead}.",
            hint="Use 1, or 0 to do one thing after the other.",
        )
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
    summary, finished = BatchSummary(), list[str]()

    def settle(end: _End, seconds: Seconds) -> None:
        outcome = _file(end, summary, finished)
        if outcome == "done":
            log.info(
                "%s: %.1f s predicting, waited %.1f s for its reading and %.1f s for its writing",
                end.scan,
                seconds[PREDICT],
                seconds[WAIT_READ],
                seconds[WAIT_WRITE],
            )
        for share, value in seconds.items():
            summary.seconds[share] += value
        if on_finished is not None:
            on_finished(end.scan, outcome)

    try:
        overlap(
            cases,
            read=run.read,
            work=run.predict,
            write=run.write,
            settle=settle,
            read_ahead=read_ahead,
        )
    finally:
        failures = [failure.row() for failure in summary.failures]
        write_tables(out, run.ledger, finished=finished, failures=failures)
        summary.seconds["total"] = time.perf_counter() - start
        log.info("%s", _time_sheet(summary.seconds))
    return summary


def _time_sheet(seconds: Seconds) -> str:
    total = seconds["total"]
    parts = (
        f"{seconds[share]:.1f} s ({100 * seconds[share] / total:.0f} %) {words}"
        for share, words in (
            (PREDICT, "predicting"),
            (WAIT_READ, "waiting for reading"),
            (WAIT_WRITE, "waiting for writing"),
        )
    )
    return f"the batch took {total:.1f} s: {', '.join(parts)}"


def _file(end: _End, summary: BatchSummary, finished: list[str]) -> str:
    """Enter the end of a scan in the summary, and return what became of it."""
    if isinstance(end, Failure):
        summary.failures.append(end)
        return "failed"
    finished.append(end.scan)
    (summary.done if end.outcome == "done" else summary.skipped).append(end.scan)
    return end.outcome


def _check_identifier(out: Path, identifier: str, seen: set[str]) -> None:
    case_folder(out, identifier)
    if identifier in seen:
        raise DataError(
            f"An identifier names one case, but {identifier!r} came twice.",
            hint="The first one was predicted; rename the other.",
        )
    seen.add(identifier)


def _load(identifier: str, load: Callable[[], Case]) -> Case:
    case = load()
    if case.identifier != identifier:
        raise ScanError(
            f"A loader must return the case it is for, but {identifier!r} returned "
            f"{case.identifier!r}.",
            hint="Give the pairs of identifier and loader in one order.",
        )
    return case


def _provenance(run: _Run, work: Work) -> dict[str, object]:
    return {
        "input_sha256": work.input_sha256,
        "model_sha256": work.model_sha256,
        "settings_sha256": work.settings_sha256,
        "results": work.results,
        "settings": settings_to_json(run.settings),
        "method": run.model.spec.method,
        "versions": versions(),
    }


def _failure(identifier: str, stage: Stage, error: Exception) -> Failure:
    # Any error, foreseen or not, costs this scan alone; the traceback is in the log.
    log.error("%s failed at stage %s: %s", identifier, stage, error)
    log.debug("traceback of %s", identifier, exc_info=error)
    if isinstance(error, MedsegError):
        return Failure(identifier, stage, error.message, error.hint)
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return Failure(identifier, stage, reason, "Use smaller windows, or a coarser spacing.")
    return Failure(identifier, stage, reason, "Not foreseen: see the log for the traceback.")
