"""What was done for each scan, one small file each, so that a killed run loses only one scan."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medseg.errors import ScanFileError
from medseg.io.atomic import file_sha256, write_json

log = logging.getLogger(__name__)

LEDGER_FOLDER = "ledger"


@dataclass(frozen=True)
class Work:
    """What a result depends on; equal work gives equal files.

    Parameters
    ----------
    input_sha256, model_sha256, settings_sha256 : str
    """

    input_sha256: str
    model_sha256: str
    settings_sha256: str


@dataclass(frozen=True)
class Entry:
    """One finished scan.

    Parameters
    ----------
    case : str
    work : Work
    outputs : mapping of str to str
        Files relative to the output folder, and their SHA-256.
    rows : sequence of mapping
        Its lines of the table over cases, so that the table is whole after a resumed run.
    """

    case: str
    work: Work
    outputs: Mapping[str, str]
    rows: Sequence[Mapping[str, object]]


class Ledger:
    """The entries in the folder ``ledger`` of an output folder.

    Parameters
    ----------
    out : Path
        The output folder.
    """

    def __init__(self, out: Path) -> None:
        self._out = Path(out)

    def path(self, case: str) -> Path:
        """Return the file of a case's entry."""
        return self._out / LEDGER_FOLDER / f"{case}.json"

    def record(
        self,
        case: str,
        *,
        work: Work,
        outputs: Sequence[Path],
        rows: Sequence[Mapping[str, object]],
    ) -> None:
        """Note a finished scan; its files are hashed, so write them first."""
        hashes = {path.relative_to(self._out).as_posix(): file_sha256(path) for path in outputs}
        write_json(self.path(case), asdict(Entry(case, work, hashes, list(rows))))

    def finished(self, case: str, *, work: Work) -> Entry | None:
        """Return the entry of a scan if nothing about it changed since.

        Parameters
        ----------
        case : str
        work : Work
            What would be done now.

        Returns
        -------
        Entry or None
            None when there is no readable entry, when input, model or settings differ, or when a
            file is gone or has other bytes.
        """
        entry = self._read(case)
        if entry is None or entry.work != work:
            return None
        for name, digest in entry.outputs.items():
            if _digest(self._out / name) != digest:
                log.info("%s is done again: %s is gone or was changed", case, name)
                return None
        return entry

    def forget(self, case: str) -> None:
        """Drop the entry of a scan that is about to be done again."""
        self.path(case).unlink(missing_ok=True)

    def _read(self, case: str) -> Entry | None:
        try:
            values = json.loads(self.path(case).read_text(encoding="utf-8"))
            return Entry(
                case=values["case"],
                work=Work(**values["work"]),
                outputs=dict(values["outputs"]),
                rows=list(values["rows"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            # A ledger that cannot be read costs one computation, not the run.
            log.warning("the ledger entry %s is unusable: %s", self.path(case), error)
            return None


def _digest(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except ScanFileError:
        return None
