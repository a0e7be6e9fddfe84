"""From the files of a case to a checked :class:`~medseg.scan.Case`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from medseg.data.sources.layout import (
    BRAIN,
    LABEL,
    CaseFiles,
    assign_roles,
    case_folders,
    subject_of,
)
from medseg.errors import DataError, LabelError, ScanError
from medseg.io.nifti import read_label_map, read_scan
from medseg.scan import Case, LabelMap

_log = logging.getLogger(__name__)

#: What the labels of a file become; a label without an entry is refused.
Relabel = Mapping[int, int]
#: A mask is near its maximum in most of its inside: edges that resampling made soft are 10 % of a
#: brain at 1 mm and 43 % at 6 mm. An image or a parcellation lies lower nearly everywhere.
_NEAR_MAXIMUM, _MOST_BELOW = 0.9, 0.5
#: Of the maximum; less than this is what resampling leaves of 0.
_NOTHING = 1e-4


def find_cases(
    root: Path, *, words: Mapping[str, str], subject_pattern: str | None
) -> tuple[CaseFiles, ...]:
    """Return the files of each case under ``root``, by the words in their names.

    Parameters
    ----------
    root : Path
        Folder with a folder per case.
    words : mapping
        What the last word of a file name stands for: a modality, ``"label"`` or ``"brain"``.
    subject_pattern : str, optional
        See :func:`medseg.data.sources.layout.subject_of`.

    Raises
    ------
    DataError
        No folder holds an image, or two files of a case claim one role.
    """
    cases = []
    for identifier, folder in case_folders(root).items():
        roles = assign_roles(identifier, folder.paths, words)
        images = {role: path for role, path in roles.items() if role not in {LABEL, BRAIN}}
        if not images:
            _log.warning("no image among %s: folder left out", [p.name for p in folder.paths][:5])
            continue
        subject = (
            subject_of(identifier, subject_pattern)
            if subject_pattern is not None
            else folder.subject
        )
        cases.append(
            CaseFiles(identifier, subject, images, label=roles.get(LABEL), brain=roles.get(BRAIN))
        )
    if not cases:
        raise DataError(
            f"File names must end in one of the words {sorted(words)}, but none under {root} does.",
            hint="Rename the files, or describe them with the 'folder' source.",
        )
    return tuple(cases)


def check_cases(
    cases: Iterable[CaseFiles], *, required: Sequence[str], label_required: bool
) -> None:
    """Refuse cases that lack a required modality or mask; by names only, before anything is read.

    Raises
    ------
    ScanError
        Names the case, what is missing and what is there.
    """
    for case in cases:
        missing = [name for name in required if name not in case.images]
        if missing:
            raise ScanError(
                f"Case {case.identifier!r} must have {list(required)}, but {missing} is missing; "
                f"it has {sorted(case.images)}.",
                hint="Add the scan, remove the case, or take the modality out of 'required'.",
            )
        if label_required and case.label is None:
            folder = next(iter(case.images.values())).parent
            raise ScanError(
                f"Case {case.identifier!r} must have a mask, but there is none in {folder}.",
                hint="Add the mask, remove the case, or set 'label_required' to false.",
            )


def read_case(files: CaseFiles, *, relabel: Relabel | None, allow_empty: bool) -> Case:
    """Read the files of a case and harmonise its labels.

    Parameters
    ----------
    files : CaseFiles
        Where the parts lie.
    relabel : mapping of int to int, optional
        What each label of the file becomes (0 stays 0); None keeps them all.
    allow_empty : bool
        Accept a mask without any lesion.

    Raises
    ------
    ScanFileError, ScanError, GeometryError, LabelError
        A file cannot be used, or the files do not fit together.
    """
    scans = {name: read_scan(path) for name, path in files.images.items()}
    label = brain = None
    if files.label is not None:
        label = read_label_map(files.label, allow_empty=True)
        label = harmonise(label, relabel=relabel, path=files.label, allow_empty=allow_empty)
    if files.brain is not None:
        brain = read_brain(files.brain)
    return Case(files.identifier, files.subject, scans, label=label, brain=brain)


def read_brain(path: Path) -> LabelMap:
    """Read a brain mask; masks are often stored as fractions or scaled (0.99999997): half counts.

    Raises
    ------
    ScanFileError, ScanError, GeometryError
        The file cannot be used, no voxel or every voxel is inside, or it is no mask but an image or
        a parcellation.
    """
    mask = read_scan(path)
    most = float(mask.data.max())
    inside = mask.data[mask.data > _NOTHING * most]
    below = float((inside < _NEAR_MAXIMUM * most).float().mean()) if most > 0 else 0.0
    if below > _MOST_BELOW:
        raise ScanError(
            f"{path}: a brain mask must hold one value inside the brain, but {100 * below:.0f} % "
            f"of what is not 0 lies below {_NEAR_MAXIMUM} of its maximum, {most:g}: this is an "
            "image or a parcellation.",
            hint="Binarise it (1 in the brain, 0 outside), or take it out of the folder.",
        )
    return LabelMap((mask.data > 0.5 * most).to(torch.uint8), mask.grid)


def harmonise(
    label: LabelMap, *, relabel: Relabel | None, path: Path, allow_empty: bool
) -> LabelMap:
    """Return ``label`` with every value replaced by what ``relabel`` says.

    Raises
    ------
    LabelError
        A value has no entry, or nothing but background is left.
    """
    values = [int(value) for value in label.data.unique()]
    data = label.data
    if relabel is not None:
        unexpected = [value for value in values if value != 0 and value not in relabel]
        if unexpected:
            raise LabelError(
                f"Labels must be among {[0, *sorted(relabel)]}, but {path} also has {unexpected}.",
                hint="Check that this is the lesion mask, or describe its labels in the settings.",
            )
        large = max(relabel.values(), default=0) > torch.iinfo(torch.uint8).max
        data = torch.zeros_like(label.data, dtype=torch.int32 if large else torch.uint8)
        for value in values:
            if value != 0:
                data[label.data == value] = relabel[value]
    if not allow_empty and not bool(data.any()):
        raise LabelError(
            f"A mask must have at least one labelled voxel, but {path} has none.",
            hint="Remove the case, or set 'allow_empty' to true for healthy subjects.",
        )
    return LabelMap(data, label.grid)
