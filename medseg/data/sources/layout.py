"""Finding cases on disk: which folder is a case, who the subject is, what each file holds.

Nothing here opens a file; names alone decide.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import DataError

LABEL = "label"
BRAIN = "brain"

#: Last words of file names, lower case, and the modality they stand for.
MODALITY_WORDS = {
    "flair": "flair", "t2f": "flair",
    "t1": "t1", "t1w": "t1", "t1n": "t1",
    "t1c": "t1c", "t1ce": "t1c", "t1gd": "t1c", "t1post": "t1c", "t1wks": "t1c", "gado": "t1c",
    "t2": "t2", "t2w": "t2",
}  # fmt: skip
BRAIN_WORDS = {"brainmask": BRAIN}
#: A mask of what changed between two visits is not a mask of the lesions.
_MISLEADING_WORDS = {"change"}

_VISIT = r"(?:t|ses-?|visit-?|time-?|tp)\d+"
_VISIT_FOLDER = re.compile(rf"{_VISIT}|\d+", re.IGNORECASE)
_VISIT_ENDING = re.compile(rf"[_-]{_VISIT}$", re.IGNORECASE)
#: BraTS 2023 on: BraTS-GLI-<subject>-<visit>; 2017-2019: Brats18_<site>_<subject>_<visit>.
_BRATS_ENDINGS = (
    re.compile(r"^(BraTS-[A-Z]+-\d+)-\d+$", re.IGNORECASE),
    re.compile(r"^(Brats1[789]_.+)_\d+$", re.IGNORECASE),
)


@dataclass(frozen=True)
class CaseFiles:
    """Where the parts of one case lie.

    Parameters
    ----------
    identifier, subject : str
        Name of the case and of the person.
    images : mapping from modality name to Path
        The modalities that are there.
    label, brain : Path, optional
        Reference mask and brain mask.
    """

    identifier: str
    subject: str
    images: Mapping[str, Path]
    label: Path | None = None
    brain: Path | None = None


def check_root(root: Path) -> Path:
    """Return ``root`` when it is a folder that can be listed; DataError otherwise."""
    if not root.is_dir():
        found = "a file" if root.exists() else "not there"
        raise DataError(
            f"A data set must be a folder, but {root} is {found}.",
            hint="Set 'root' to the folder that holds the cases.",
        )
    if not os.access(root, os.R_OK | os.X_OK):
        raise DataError(
            f"A data set must be readable, but {root} is not.", hint="Ask its owner for permission."
        )
    return root


def list_files(root: Path) -> list[Path]:
    """Return every file under ``root``, sorted; linked folders are followed."""
    folders = os.walk(check_root(root), followlinks=True)
    return sorted(Path(folder, name) for folder, _, names in folders for name in names)


def is_nifti(path: Path) -> bool:
    """Return whether the name is that of a NIfTI file that is not hidden.

    Examples
    --------
    >>> is_nifti(Path("a/flair.nii.gz")), is_nifti(Path("a/._flair.nii.gz"))
    (True, False)
    """
    return path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".")


def stem_of(path: Path) -> str:
    """Return the file name without ``.nii`` or ``.nii.gz``."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def role_of(path: Path, words: Mapping[str, str]) -> str | None:
    """Return what the last known word of the file name stands for, or None.

    The last one counts, because folders' and visits' names come first (``P14_T1_FLAIR``).

    Examples
    --------
    >>> role_of(Path("P14_T1_FLAIR.nii.gz"), MODALITY_WORDS)
    'flair'
    >>> role_of(Path("VSD.Brain.XX.O.MR_T1c.54193.nii.gz"), MODALITY_WORDS)
    't1c'
    """
    stem = re.sub(r"brain[._\-]mask", "brainmask", stem_of(path).lower())
    parts = re.split(r"[._\-\s]+", stem)
    if _MISLEADING_WORDS.intersection(parts):
        return None
    return next((words[part] for part in reversed(parts) if part in words), None)


def case_folders(root: Path) -> dict[str, tuple[Path, ...]]:
    """Return the NIfTI files of each case under ``root``, by identifier, sorted.

    A case is a folder with NIfTI files. Its name is the folder's; a folder called after a visit
    (``P14/T1``, ``sub-01/ses-02``) or a bare number (``HG/0001``) takes the name above with it, a
    folder ``anat`` counts as its parent, and so does BraTS 2013's folder per file
    (``VSD.Brain...``).

    Raises
    ------
    DataError
        No NIfTI file anywhere.
    """
    files: defaultdict[tuple[str, ...], list[Path]] = defaultdict(list)
    for path in list_files(root):
        if is_nifti(path):
            files[_case_parts(path.relative_to(root))].append(path)
    if not files:
        raise DataError(
            f"A data set needs NIfTI files (.nii, .nii.gz), but {root} has none.",
            hint=_other_formats(root) or "Set 'root' to the folder that holds a folder per case.",
        )
    names = {parts: _folder_name(parts, root) for parts in files}
    seen = Counter(names.values())
    named = {
        (names[parts] if seen[names[parts]] == 1 else "_".join(parts)): tuple(paths)
        for parts, paths in files.items()
    }
    return dict(sorted(named.items()))


def _case_parts(relative: Path) -> tuple[str, ...]:
    parts = relative.parent.parts
    while parts and (parts[-1].lower() == "anat" or parts[-1].startswith("VSD.Brain")):
        parts = parts[:-1]
    return parts


def _folder_name(parts: tuple[str, ...], root: Path) -> str:
    if not parts:
        return root.resolve().name
    *above, last = parts
    return f"{above[-1]}_{last}" if above and _VISIT_FOLDER.fullmatch(last) else last


def _other_formats(root: Path) -> str:
    for path in list_files(root):
        if path.suffix.lower() in {".mha", ".mhd", ".nhdr", ".nrrd", ".dcm"}:
            return f"Convert {path.suffix} files such as {path.name} to NIfTI first."
    return ""


def subject_of(identifier: str, pattern: str | None = None) -> str:
    """Return the person behind a case: the identifier without its visit.

    Parameters
    ----------
    identifier : str
        Name of the case.
    pattern : str, optional
        A regular expression whose first group is the subject, instead of the built-in rules.

    Raises
    ------
    DataError
        The pattern does not match the identifier or has no group.

    Examples
    --------
    >>> [subject_of(name) for name in ("P14_T2", "sub-01_ses-02", "BraTS-GLI-00005-101", "pat0001")]
    ['P14', 'sub-01', 'BraTS-GLI-00005', 'pat0001']
    """
    if pattern is not None:
        found = re.search(pattern, identifier)
        if not found or not found.groups() or not found.group(1):
            raise DataError(
                f"Every case must match subject_pattern {pattern!r} with one group, but "
                f"{identifier!r} does not.",
                hint="Put the part that names the person in round brackets.",
            )
        return found.group(1)
    for ending in _BRATS_ENDINGS:
        found = ending.match(identifier)
        if found:
            return found.group(1)
    return _VISIT_ENDING.sub("", identifier) or identifier


def assign_roles(
    identifier: str, paths: Iterable[Path], words: Mapping[str, str]
) -> dict[str, Path]:
    """Return the file of each role; files that no word describes are left out.

    Returns
    -------
    dict from role to Path

    Raises
    ------
    DataError
        Two files claim one role.
    """
    roles: dict[str, Path] = {}
    for path in paths:
        role = role_of(path, words)
        if role is None:
            continue
        if role in roles:
            raise DataError(
                f"Case {identifier!r} must have one file for {role!r}, but has "
                f"{roles[role].name} and {path.name} in {path.parent}.",
                hint="Give each visit its own folder, or use the 'folder' source.",
            )
        roles[role] = path
    return roles
