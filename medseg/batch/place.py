"""Where the results of a case go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.inference.outputs import output_paths


def planned_files(out: Path, identifier: str, regions: Sequence[str]) -> list[Path]:
    """Return every file that a prediction of these regions may write for a case.

    Raises
    ------
    ConfigError
        An identifier that cannot name a file.
    """
    names = tuple(regions)
    paths = output_paths(out, identifier, regions=names, samples=2, conformal=names)
    # With one region two names stand for one file.
    return list(dict.fromkeys(paths.values()))
