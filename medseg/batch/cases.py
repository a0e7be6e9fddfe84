"""What an input path holds: a scan, the folder of a case, or a folder of cases."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medseg.data.sources import brats, ms
from medseg.data.sources.layout import (
    BRAIN,
    LABEL,
    CaseFiles,
    CaseFolder,
    assign_roles,
    case_folders,
    role_of,
    stem_of,
    subject_of,
)
from medseg.data.sources.reading import read_case
from medseg.errors import DataError
from medseg.geometry import Grid
from medseg.io.nifti import read_grid, read_scan
from medseg.scan import Case

#: Raises where the files of a case, whose grids it gets, must not be read.
Check = Callable[[Sequence[Grid]], None]
#: Last words of file names; masks must be known to be left out.
WORDS = {**ms.WORDS, **brats.WORDS}


@dataclass(frozen=True)
class Loader:
    """Reads one case when its turn has come.

    Parameters
    ----------
    read : callable
    source : Path
        The file, or the folder of the files, without links.
    """

    read: Callable[[], Case]
    source: Path

    def __call__(self) -> Case:
        """Return the case."""
        return self.read()


Item = tuple[str, Loader]


def find_cases(path: Path, *, channels: Sequence[str], check: Check | None = None) -> list[Item]:
    """Return identifier and loader of every case at ``path``.

    Of a case, the scans of the model's channels and the brain mask are read: one that the model
    does not use may be damaged, or lie on another grid.

    Parameters
    ----------
    path : Path
        A NIfTI file, for a model of one channel; a case folder with a file per modality; or a
        folder of such folders. What is called after a visit or, a file, after a bare modality takes
        the name above with it.
    channels : sequence of str
        Of the model.
    check : callable, optional
        Called by each loader with the grids in the headers, before a voxel is read.

    Raises
    ------
    DataError
        Nothing usable is there.
    """
    path = Path(path)
    if path.is_file():
        return [_single(path, channels, check)]
    if not path.is_dir():
        raise DataError(f"An input must exist, but {path} does not.", hint="Check the path.")
    items: list[Item] = []
    for identifier, folder in named_folders(path).items():
        roles = {file: role_of(file, WORDS) for file in folder.paths}
        # Reference masks are no input: one that is odd must not cost the prediction.
        useful = [file for file, role in roles.items() if role not in (None, LABEL)]
        if any(roles[file] != BRAIN for file in useful):
            used = [file for file in useful if roles[file] in {*channels, BRAIN}]
            # Without any channel, the error that is raised later tells what else there is.
            has_channel = any(roles[file] != BRAIN for file in used)
            read = used if has_channel else useful
            source = Path(os.path.commonpath([file.resolve().parent for file in folder.paths]))
            load = partial(_load, identifier, folder.subject, read, check)
            items.append((identifier, Loader(load, source)))
    if not items:
        raise DataError(
            f"{path} must hold NIfTI scans named after their modality, one folder a case, but no "
            f"file name ends in one of {sorted(set(WORDS) - {'label', 'seg'})}.",
            hint="Name files such as flair.nii.gz and t1c.nii.gz in a folder per case.",
        )
    return items


def named_folders(root: Path) -> dict[str, CaseFolder]:
    """Return files and person of each case under ``root``, by a name that holds outside of it, too.

    As :func:`medseg.data.sources.layout.case_folders`; besides, ``root`` and the folders in it take
    the name above with them where they are called after a visit, and so does ``anat``.

    Raises
    ------
    DataError
        No NIfTI file anywhere.
    """
    folders, top = case_folders(root), root.resolve()
    named: dict[str, CaseFolder] = {}
    for identifier, folder in folders.items():
        longer = identifier
        if identifier == top.name:
            longer = _long_name(top)
        elif _is_visit(identifier):
            longer = _below(top, identifier)
        named[identifier if longer in folders else longer] = folder
    return named


def _is_visit(name: str) -> bool:
    return subject_of(f"x_{name}") == "x"


def _long_name(place: Path) -> str:
    """Return a folder's name, with those above in front that say whose visit it is."""
    if place.name.lower() == "anat":
        return _long_name(place.parent)
    return _below(place.parent, place.name) if _is_visit(place.name) else place.name


def _below(folder: Path, name: str) -> str:
    return f"{_long_name(folder)}_{name}".lstrip("_")


def _load(identifier: str, subject: str, files: Sequence[Path], check: Check | None) -> Case:
    if check is not None:
        check([read_grid(file) for file in files])
    roles = assign_roles(identifier, files, WORDS)
    brain = roles.pop(BRAIN, None)
    found = CaseFiles(identifier, subject, roles, brain=brain)
    return read_case(found, relabel=None, allow_empty=True)


def _single(path: Path, channels: Sequence[str], check: Check | None) -> Item:
    if len(channels) != 1:
        raise DataError(
            f"The model needs {list(channels)}, but {path} is one file.",
            hint="Give the folder of the case, with a file per modality.",
        )
    name = stem_of(path)
    if name.lower() in WORDS or _is_visit(name):
        name = _below(path.resolve().parent, name)

    def load() -> Case:
        if check is not None:
            check([read_grid(path)])
        return Case(identifier=name, subject=name, scans={channels[0]: read_scan(path)})

    return name, Loader(load, path.resolve())
