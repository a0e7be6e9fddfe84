"""Finding cases on disk: which folder is a case, who the subject is, what each file holds.

Nothing here opens a file; names alone decide.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
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

_WORD_OF_VISIT = (
    r"(?:ses-[a-z0-9]+|t\d+|(?:ses|session|visit|time|time-?point|tp|fu|week|month|year)[-_]?\d+"
    r"|baseline|follow[-_]?up(?:[-_]?\d+)?|(?:pre|intra|post)(?:[-_]?op(?:erative)?)?(?:[-_]?\d+)?)"
)
_VISIT = re.compile(_WORD_OF_VISIT, re.IGNORECASE)
_VISIT_ENDING = re.compile(rf"(?:[_-]{_WORD_OF_VISIT})+$", re.IGNORECASE)
_DATE_TEXT = r"(?:19|20)\d\d(?:[-_.]?\d\d){0,2}"
_DATE = re.compile(_DATE_TEXT)
_NUMBER = re.compile(rf"\d+|{_DATE_TEXT}")
_NUMBERED = re.compile(rf"(.+?)[_-]({_DATE_TEXT}|\d+)")
#: ``P14``, ``patient_07``: a folder of this name holds one person, whatever lies in it.
_PERSON = re.compile(r"(?:p|pt|pat|patient|subj|subject|sub|case)[-_ ]?\d+", re.IGNORECASE)
_BIDS_FOLDERS = {"rawdata", "sourcedata"}
_BIDS_PERSON = re.compile(r"(?:^|_)sub-[^_]+", re.IGNORECASE)
#: BraTS 2023 on: BraTS-GLI-<subject>-<visit>; 2017-2019: Brats18_<site>_<subject>_<visit>.
_BRATS_ENDINGS = (
    re.compile(r"^(BraTS-[A-Z]+-\d+)-\d+$", re.IGNORECASE),
    re.compile(r"^(Brats1[789]_.+)_\d+$", re.IGNORECASE),
)


@dataclass(frozen=True)
class CaseFolder:
    """What a folder holds.

    Parameters
    ----------
    subject : str
        Name of the person.
    paths : tuple of Path
        The NIfTI files, sorted.
    """

    subject: str
    paths: tuple[Path, ...]


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


def case_folders(root: Path) -> dict[str, CaseFolder]:
    """Return the NIfTI files of each case under ``root`` and the person, by identifier, sorted.

    A case is a folder with NIfTI files. Its name is the folder's, and so is the person's but for
    an ending of a visit (see :func:`subject_of`). Below a person's folder the name starts with that
    folder's, and the person is the same in all of them. Such a folder is ``sub-...``; else one of a
    word and a number (``P14``, ``patient_07``); else one with a folder called after a visit
    (``ses-preop``, ``T1``, ``baseline``). A bare number or date takes the name above with it
    (``HG/0001``), a folder ``anat`` counts as its parent, and so does BraTS 2013's folder per file
    (``VSD.Brain...``). Names that come again are those of all folders on the way.

    Raises
    ------
    DataError
        No NIfTI file anywhere, or two folders of one name (``P14_1`` beside ``P14/1``).
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
    spans = {parts: _person_span(parts) for parts in files}
    names = {
        parts: "_".join(parts[start:]) or root.resolve().name for parts, (start, _) in spans.items()
    }
    seen = Counter(names.values())
    # Of a person any of whose cases needs the long name, so that all cases keep one subject.
    crowded = {parts[: spans[parts][1]] for parts, name in names.items() if seen[name] > 1}
    named: dict[str, CaseFolder] = {}
    for parts, paths in files.items():
        start, stop = spans[parts]
        above = _places(parts[:start]) if parts[:stop] in crowded else []
        person = "_".join([*above, *parts[start:stop]])
        if len(parts) < 2 and _VISIT.fullmatch(names[parts]):
            # The root is the person's folder, or even the visit's.
            person = root.resolve().name if parts else root.resolve().parent.name
        name = names[parts] if seen[names[parts]] == 1 else "_".join(parts)
        if name in named:
            raise DataError(
                f"Each case must have a name of its own, but {paths[0].parent} and "
                f"{named[name].paths[0].parent} are both {name!r}.",
                hint="Rename one of the folders.",
            )
        named[name] = CaseFolder(subject_of(person or name), tuple(paths))
    return dict(sorted(named.items()))


def _case_parts(relative: Path) -> tuple[str, ...]:
    parts = relative.parent.parts
    while parts and (parts[-1].lower() == "anat" or parts[-1].startswith("VSD.Brain")):
        parts = parts[:-1]
    return parts


def _person_span(parts: tuple[str, ...]) -> tuple[int, int]:
    """Return where in the path the name starts, and where its part that is the person stops."""
    last = len(parts) - 1
    for rule in (_BIDS_PERSON, _PERSON):
        found = [index for index, part in enumerate(parts) if rule.fullmatch(part)]
        if found:
            return found[0], found[0] + 1
    if last > 0 and _VISIT.fullmatch(parts[last]):
        return last - 1, last
    if last > 0 and _NUMBER.fullmatch(parts[last]):
        return last - 1, last + 1
    return max(last, 0), last + 1


def _places(above: Sequence[str]) -> list[str]:
    """Return the folders above a person's that tell him from another of that name."""
    lower = [part.lower() for part in above]
    kept = above[: lower.index("derivatives")] if "derivatives" in lower else above
    return [p for p in kept if not _VISIT.fullmatch(p) and p.lower() not in _BIDS_FOLDERS]


def _other_formats(root: Path) -> str:
    for path in list_files(root):
        if path.suffix.lower() in {".mha", ".mhd", ".nhdr", ".nrrd", ".dcm"}:
            return f"Convert {path.suffix} files such as {path.name} to NIfTI first."
    return ""


def subject_of(identifier: str, pattern: str | None = None) -> str:
    """Return the person behind a case: the identifier without its visit.

    What names a visit at the end is taken off: ``ses-preop``, ``T2``, ``tp3``, ``baseline``,
    ``follow-up`` and the like; a number alone is not, ``case_1`` and ``case_2`` may be two people.
    With ``sub-...`` in it, all behind that is.

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
    >>> [subject_of(name) for name in ("P14_T2", "sub-01_ses-preop", "BraTS-GLI-00005-101", "c_1")]
    ['P14', 'sub-01', 'BraTS-GLI-00005', 'c_1']
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
    bids = _BIDS_PERSON.search(identifier)
    name = identifier[: bids.end()] if bids else identifier
    return _VISIT_ENDING.sub("", name) or name


def doubtful_visits(subjects: Iterable[str]) -> tuple[str, str] | None:
    """Return two people whose names differ by what may be the number of a visit, or None.

    Numbers of up to two digits and dates may be; not where all people share what is before them.

    Examples
    --------
    >>> doubtful_visits(["P14_1", "P14_2", "P15_1"])
    ('P14_1', 'P14_2')
    >>> doubtful_visits(["case_1", "case_2", "case_3"]) is None
    True
    """
    people = sorted(set(subjects))
    visits: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for person in people:
        found = _NUMBERED.fullmatch(person)
        stem, number = found.groups() if found else (person, "")
        visits[stem][person] = number
    for numbers in visits.values():
        short = all(len(number) < 3 or _DATE.fullmatch(number) for number in numbers.values())
        if short and 1 < len(numbers) < len(people):
            first, second, *_ = numbers
            return first, second
    return None


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
