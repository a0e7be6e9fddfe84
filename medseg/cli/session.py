"""Messages to stderr, a log file beside the results, and exit codes.

====  ==============================================================================
code  meaning
====  ==============================================================================
0     all done, or done already
1     unforeseen error
2     wrong usage or configuration
3     finished, but some scans, or cells of an experiment, failed
4     nothing usable in the input
130   interrupted (SIGINT); 143 terminated (SIGTERM)
====  ==============================================================================
"""

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import typer

from medseg.errors import (
    ConfigError,
    DataError,
    GeometryError,
    LabelError,
    MedsegError,
    ModelError,
    PriorError,
    ScanError,
    ScanFileError,
)

if TYPE_CHECKING:
    from medseg.data.source import CaseSource

log = logging.getLogger("medseg")

#: What the user asked for in the wrong way, and what he gave that cannot be used.
_WRONG_USAGE = (ConfigError, ModelError, PriorError)
_WRONG_INPUT = (DataError, ScanError, ScanFileError, GeometryError, LabelError)
# Newer versions of typer carry their own click, so its base class is found through typer.
_UsageError = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


_GOES_ON = "the same command goes on where it stopped (an experiment: with --resume)"


@dataclass
class Session:
    """What the options before the subcommand asked for."""

    debug: bool = False
    quiet: bool = False


SESSION = Session()


class _Terminated(BaseException):
    """SIGTERM arrived: unwind as for Ctrl-C, so that files are whole and ledgers kept."""


def _terminate(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise _Terminated


def run(app: typer.Typer, argv: Sequence[str]) -> int:
    """Run ``app`` on ``argv`` and return the exit code."""
    _log_to_stderr()
    # Python hands signals to its first thread only.
    first = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if first else None
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning
            return _run(app, argv)
    finally:
        if first:
            signal.signal(signal.SIGTERM, before)
        _close_log_files()


def _run(app: typer.Typer, argv: Sequence[str]) -> int:
    try:
        result = app(args=list(argv), standalone_mode=False)
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        log.error("interrupted; %s", _GOES_ON)
        return 130
    except _Terminated:
        log.error("terminated; %s", _GOES_ON)
        return 143
    except MedsegError as error:
        log.error("%s", error, exc_info=SESSION.debug)
        if isinstance(error, _WRONG_USAGE):
            return 2
        return 4 if isinstance(error, _WRONG_INPUT) else 1
    except Exception as error:
        if isinstance(error, _UsageError):
            error.show()  # type: ignore[attr-defined]
            return 2
        log.error(
            "unforeseen %s: %s%s",
            type(error).__name__,
            error,
            "" if SESSION.debug else " (medseg --debug shows the traceback)",
            exc_info=SESSION.debug,
        )
        return 1
    return result if isinstance(result, int) else 0


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Python's warnings, that of an affine that is guessed among them, belong in the log file."""
    del file, line
    log.warning("%s: %s", category.__name__, message)
    log.debug("warned at %s:%d", filename, lineno)


def _log_to_stderr() -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    root.addHandler(handler)
    root.setLevel(logging.WARNING)


def _close_log_files() -> None:
    for handler in list(log.handlers):
        if isinstance(handler, logging.FileHandler):
            log.removeHandler(handler)
            handler.close()


def begin(out: Path | None = None, *, name: str = "medseg.log") -> None:
    """Set how much is shown, and keep everything in the log ``name`` in the folder ``out``.

    Raises
    ------
    ConfigError
        The folder cannot be made or written to.
    """
    _close_log_files()
    shown = logging.DEBUG if SESSION.debug else logging.INFO
    log.setLevel(logging.DEBUG)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING if SESSION.quiet else shown)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            keep = logging.FileHandler(out / name, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"The output must be a folder one can write to, but {out} is not: "
                f"{error.strerror or error}.",
                hint="Choose another folder.",
            ) from error
        keep.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        keep.setLevel(logging.DEBUG)
        log.addHandler(keep)


def tell_people(title: str, source: "CaseSource") -> None:
    """Tell how many cases of how many people there are, and where that may be wrong."""
    from medseg.data.sources.layout import doubtful_visits

    cases, people = len(source), len(set(source.subjects))
    log.info("%s: %d cases of %d people (%s)", title, cases, people, source.name)
    doubtful = doubtful_visits(source.subjects)
    if doubtful:
        log.warning(
            "%d cases of %d people; if %s and %s are visits of one person, say what names the "
            "person, for example target.settings.subject_pattern='^(.+?)([_-]\\d+)?$'",
            cases,
            people,
            *doubtful,
        )
