"""What was done for each scan, one small file each, so that a killed run loses only one scan."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from filelock import FileLock

from medseg.errors import ScanFileError
from medseg.io.atomic import file_sha256, write_json

log = logging.getLogger(__name__)

LEDGER_FOLDER, STALE_FOLDER = "ledger", "stale"


@dataclass(frozen=True)
class Work:
    """What a result depends on; equal work gives equal files.

    Parameters
    ----------
    input_sha256, model_sha256, settings_sha256 : str
    results : int
        The version of what makes results of these; 0 in entries that are older than it.
    """

    input_sha256: str
    model_sha256: str
    settings_sha256: str
    results: int = 0


@dataclass(frozen=True)
class Entry:
    """One scan that is finished, or that is being written.

    Parameters
    ----------
    case : str
    work : Work
    outputs : mapping of str to str
        Files relative to the output folder, and their SHA-256; "" while they are being written.
    rows : sequence of mapping
        Its lines of the table over cases, so that the table is whole after a resumed run.
    source : str, optional
        Where its scans were; None where that was not known.
    """

    case: str
    work: Work
    outputs: Mapping[str, str]
    rows: Sequence[Mapping[str, object]]
    source: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all files were written."""
        return all(self.outputs.values())

    def is_of_other(self, source: Path | None, input_sha256: str | None) -> bool:
        """Return whether the entry is of scans elsewhere that are not known to be the same ones."""
        if self.source is None or source is None or self.source == str(source):
            return False
        return self.work.input_sha256 != input_sha256


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

    def lock(self, case: str) -> FileLock:
        """Return what keeps other processes from the files of a case while it is held."""
        path = self.path(case).with_name(f".{case}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def begin(
        self, case: str, *, work: Work, outputs: Iterable[Path], source: Path | None = None
    ) -> None:
        """Note a scan whose files are about to be written over those of its entry, if it has one.

        What is there and was changed since it was recorded is somebody's work, and set aside.

        Parameters
        ----------
        case : str
        work : Work
        outputs : iterable of Path
            All files that may be written.
        source : Path, optional
            Where the scans are.
        """
        entry = self.read(case)
        known = {} if entry is None else entry.outputs
        names = dict.fromkeys([*known, *(self._name(path) for path in outputs)], "")
        written = {name for name, digest in known.items() if digest in ("", self._digest(name))}
        self.set_aside(case, names.keys() - written)
        self._write(Entry(case, work, names, [], _text(source)))

    def record(
        self,
        case: str,
        *,
        work: Work,
        outputs: Sequence[Path],
        rows: Sequence[Mapping[str, object]],
        source: Path | None = None,
    ) -> None:
        """Note a finished scan; its files are hashed, so write them first."""
        hashes = {self._name(path): file_sha256(path) for path in outputs}
        self._write(Entry(case, work, hashes, list(rows), _text(source)))

    def entries(self) -> list[Entry]:
        """Return the finished scans whose files are there, by name; their bytes are not read."""
        paths = sorted((self._out / LEDGER_FOLDER).glob("*.json"))
        found = [self.read(p.name.removesuffix(".json")) for p in paths if p.name[0] != "."]
        return [
            entry
            for entry in found
            if entry is not None
            and entry.is_whole
            and all((self._out / name).is_file() for name in entry.outputs)
        ]

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
        entry = self.read(case)
        if entry is None or entry.work != work:
            return None
        for name, digest in entry.outputs.items():
            if self._digest(name) != digest:
                log.info("%s is done again: %s is gone or was changed", case, name)
                return None
        return entry

    def set_aside(self, case: str, names: Iterable[str]) -> None:
        """Move files to a new folder in ``stale/<case>/``, where nothing looks for results.

        Parameters
        ----------
        case : str
        names : iterable of str
            Files relative to the output folder; those that are not there are passed over.
        """
        there = [path for name in names if (path := self._out / name).is_file()]
        if not there:
            return
        folder = self._out / STALE_FOLDER / case
        place = next(new for n in count(1) if not (new := folder / str(n)).exists())
        place.mkdir(parents=True)
        for path in there:
            path.replace(place / path.name)
        # Not empty: somebody's own files lie there, too.
        with suppress(OSError):
            (self._out / case).rmdir()
        log.warning("%s: %d earlier files were moved to %s", case, len(there), place)

    def withdraw(self, case: str) -> None:
        """Set the files of a case's entry aside and drop the entry."""
        entry = self.read(case)
        if entry is not None:
            self.set_aside(case, entry.outputs)
        self.path(case).unlink(missing_ok=True)

    def read(self, case: str) -> Entry | None:
        """Return the entry of a case, finished or not; None when there is no readable one."""
        try:
            values = json.loads(self.path(case).read_text(encoding="utf-8"))
            return Entry(
                case=values["case"],
                work=Work(**values["work"]),
                outputs=dict(values["outputs"]),
                rows=list(values["rows"]),
                source=values.get("source"),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            # A ledger that cannot be read costs one computation, not the run.
            log.warning("the ledger entry %s is unusable: %s", self.path(case), error)
            return None

    def _write(self, entry: Entry) -> None:
        write_json(self.path(entry.case), asdict(entry))

    def _name(self, path: Path) -> str:
        return path.relative_to(self._out).as_posix()

    def _digest(self, name: str) -> str | None:
        try:
            return file_sha256(self._out / name)
        except ScanFileError:
            return None


def _text(source: Path | None) -> str | None:
    return None if source is None else str(source)
