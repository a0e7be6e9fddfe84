"""Many scans, one in memory at a time; what was measured before is not measured again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.batch.ledger import Ledger, Work
from medseg.batch.run import Failure
from medseg.batch.tables import FAILURE_COLUMNS, FAILURES_NAME
from medseg.errors import MedsegError
from medseg.explore.features import PATCH_SIDE, VERSION, Measured, measure
from medseg.explore.items import ScanItem
from medseg.inference.outputs import case_folder
from medseg.io.atomic import write_bytes, write_table
from medseg.seeding import numpy_generator

log = logging.getLogger(__name__)

CACHE = "cache"
_PATCHES, _PICTURES = "patches", "thumbnails"


@dataclass(frozen=True, eq=False)
class Extracted:
    """What was measured on a cohort.

    Parameters
    ----------
    identifiers, subjects : list of str
        Of the scans that could be read.
    groups : list of dict
        What is known of their origin.
    features : list of dict
        By name.
    lesions : list of dict
        A row per lesion, with ``scan``, the place of its scan in these lists.
    pictures : list of Path
        Thumbnails.
    failures : list of Failure
        Scans that could not be read.
    cached : int
        How many were measured in an earlier run.
    """

    identifiers: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    groups: list[Mapping[str, str]] = field(default_factory=list)
    features: list[dict[str, float]] = field(default_factory=list)
    lesions: list[dict[str, float]] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    patches: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)


def extract(
    items: Sequence[ScanItem],
    *,
    out: Path,
    seed: int = 0,
    on_finished: Callable[[str, str], None] | None = None,
) -> Extracted:
    """Measure every scan; one that cannot be read does not stop the others.

    Parameters
    ----------
    items : sequence of ScanItem
    out : Path
        Gets ``cache/`` with a small file per scan, and ``failures.tsv``. The same call after an
        interruption, or with more scans, measures what is new or changed.
    seed : int
        Of the places of patches.
    on_finished : callable, optional
        Called with identifier and "done", "skipped" or "failed".
    """
    ledger, found = Ledger(out / CACHE), Extracted()
    for item in items:
        outcome = "failed"
        try:
            case_folder(out, item.identifier)  # an identifier that names no file is refused
            work = Work(item.fingerprint, f"features {VERSION}", f"seed {seed}")
            entry = ledger.finished(item.identifier, work=work)
            outcome = "done" if entry is None else "skipped"
            if entry is None:
                _measure(item, out / CACHE, ledger=ledger, work=work, seed=seed)
                entry = ledger.finished(item.identifier, work=work)
            rows = [_numbers(row) for row in entry.rows] if entry else []
            _keep(found, item, rows, out / CACHE)
            if outcome == "skipped":
                found.cached.append(item.identifier)
        except Exception as error:
            # Any error, foreseen or not, costs this scan alone.
            outcome = "failed"
            log.debug("traceback of %s", item.identifier, exc_info=error)
            hint = error.hint if isinstance(error, MedsegError) else "See the log."
            words = error.message if isinstance(error, MedsegError) else repr(error)
            found.failures.append(Failure(item.identifier, "load", words, hint))
        if on_finished is not None:
            on_finished(item.identifier, outcome)
    rows = [failure.row() for failure in found.failures]
    write_table(out / FAILURES_NAME, rows, columns=FAILURE_COLUMNS)
    return found


def _measure(item: ScanItem, cache: Path, *, ledger: Ledger, work: Work, seed: int) -> None:
    generator = numpy_generator(seed, "explore", "patches", item.identifier)
    measured: Measured = measure(item.load(), generator=generator)
    picture, patches = _paths(cache, item.identifier)
    write_bytes(picture, measured.thumbnail)
    # Half precision: patches are in deviations, and thousands of scans have many.
    write_bytes(patches, measured.patches.astype("<f2").tobytes())
    rows = [measured.features, *measured.lesions]
    ledger.record(item.identifier, work=work, outputs=[picture, patches], rows=rows)


def _paths(cache: Path, identifier: str) -> tuple[Path, Path]:
    return cache / _PICTURES / f"{identifier}.jpg", cache / _PATCHES / f"{identifier}.f2"


def _numbers(row: Mapping[str, object]) -> dict[str, float]:
    return {
        key: float(value) if isinstance(value, int | float) else math.nan
        for key, value in row.items()
    }


def _keep(found: Extracted, item: ScanItem, rows: Sequence[dict[str, float]], cache: Path) -> None:
    picture, patches = _paths(cache, item.identifier)
    place = len(found.identifiers)
    found.identifiers.append(item.identifier)
    found.subjects.append(item.subject)
    found.groups.append(item.groups)
    found.features.append(rows[0])
    found.lesions.extend({"scan": float(place), **row} for row in rows[1:])
    found.pictures.append(picture)
    found.patches.append(patches)


def read_patches(paths: Sequence[Path], *, most: int, seed: int) -> np.ndarray:
    """Return patches of many scans, evenly drawn, (m, 5, 5, 5); at most ``most``."""
    shape = (-1, PATCH_SIDE, PATCH_SIDE, PATCH_SIDE)
    share = max(most // max(len(paths), 1), 2)
    order = numpy_generator(seed, "explore", "scans").permutation(len(paths))
    parts = [
        np.frombuffer(paths[i].read_bytes(), dtype="<f2").reshape(shape)[:share]
        for i in order[: most // share]
    ]
    found = np.concatenate(parts) if parts else np.zeros((0, *shape[1:]))
    return found.astype(np.float32)
