"""What was computed of each case, kept so that an interrupted run need not compute it again."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.io.atomic import atomic_path

log = logging.getLogger(__name__)

_OURS = re.compile(r"(\.\w+\.part-)?[0-9a-f]{64}\.npz")
_VALUES = "json"


@dataclass(frozen=True)
class CaseStore:
    """Arrays and plain values under keys, one file each, never a pickle.

    Parameters
    ----------
    folder : Path, optional
        Made when something is kept; None keeps nothing.
    """

    folder: Path | None

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]], values: object) -> None:
        """Keep arrays, and values as JSON, under a key: a SHA-256 of what they come of.

        Arrays among the values become lists.
        """
        if self.folder is None:
            return
        text = np.array(json.dumps(values, default=np.ndarray.tolist))
        named: dict[str, Any] = {**arrays, _VALUES: text}
        with (
            atomic_path(self.folder / f"{key}.npz") as temporary,
            temporary.open("wb") as stream,
        ):
            np.savez(stream, **named)

    def load(self, key: str) -> tuple[dict[str, NDArray[Any]], Any] | None:
        """Return the arrays and values of a key, None where there are none that can be read."""
        path = None if self.folder is None else self.folder / f"{key}.npz"
        if path is None or not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            return arrays, json.loads(str(arrays.pop(_VALUES)))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be read and is made again: %s", path, error)
            return None

    def clear(self) -> None:
        """Remove what was kept; whatever else lies in the folder stays."""
        if self.folder is None or not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
