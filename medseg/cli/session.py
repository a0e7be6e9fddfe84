"""Messages to stderr, a log file beside the results, and exit codes.

====  ==============================================================================
code  meaning
====  ==============================================================================
0     all done, or done already
1     unforeseen error
2     wrong usage or configuration
3     finished, but some scans failed
4     nothing usable in the input
130   interrupted (SIGINT); 143 terminated (SIGTERM)
====  ==============================================================================
"""

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click
import typer

from medseg.errors import ConfigError, DataError, MedsegError

log = logging.getLogger("medseg")


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
    signal.signal(signal.SIGTERM, _terminate)
    try:
        result = app(args=list(argv), standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        log.error("interrupted; the same command goes on where it stopped")
        return 130
    except _Terminated:
        log.error("terminated; the same command goes on where it stopped")
        return 143
    except MedsegError as error:
        log.error("%s", error, exc_info=SESSION.debug)
        if isinstance(error, ConfigError):
            return 2
        return 4 if isinstance(error, DataError) else 1
    except Exception as error:
        log.error(
            "unforeseen %s: %s%s",
            type(error).__name__,
            error,
            "" if SESSION.debug else " (medseg --debug shows the traceback)",
            exc_info=SESSION.debug,
        )
        return 1
    return result if isinstance(result, int) else 0


def _log_to_stderr() -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    root.addHandler(handler)
    root.setLevel(logging.WARNING)


def begin(out: Path | None = None) -> None:
    """Set how much is shown, and keep everything in ``OUT/medseg.log``."""
    shown = logging.DEBUG if SESSION.debug else logging.INFO
    log.setLevel(logging.DEBUG)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING if SESSION.quiet else shown)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        keep = logging.FileHandler(out / "medseg.log", encoding="utf-8")
        keep.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        keep.setLevel(logging.DEBUG)
        log.addHandler(keep)
