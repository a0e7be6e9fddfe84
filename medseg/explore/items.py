"""Which scans there are to look at: found by name, read only when their turn comes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from medseg.data.source import CaseSource
from medseg.data.sources import brats, ms
from medseg.data.sources.layout import (
    BRAIN,
    LABEL,
    CaseFiles,
    CaseFolder,
    assign_roles,
    case_folders,
    is_nifti,
    list_files,
    subject_of,
)
from medseg.data.sources.reading import read_case
from medseg.errors import DataError
from medseg.io.nifti import read_label_map, read_scan
from medseg.scan import Case, LabelMap

log = logging.getLogger(__name__)

_WORDS = {**ms.WORDS, **brats.WORDS}
_MASK, _PROBABILITY, _UNCERTAINTY = "_mask.nii.gz", "_prob.nii.gz", "_uncertainty.nii.gz"


@dataclass(frozen=True)
class ScanItem:
    """One scan to look at.

    Parameters
    ----------
    identifier, subject : str
        Name of the case and of the person.
    load : callable
        Reads the case; may raise.
    fingerprint : str
        Changes when the case does.
    groups : mapping of str to str
        What is known of its origin: site, scanner.
    """

    identifier: str
    subject: str
    load: Callable[[], Case]
    fingerprint: str
    groups: Mapping[str, str] = field(default_factory=dict)


def items_of_folder(root: Path, *, predictions: Path | None = None) -> list[ScanItem]:
    """Return the cases of a folder: every folder with scans, of any kind, with or without mask.

    Files are told apart by the words in their names. Cases that lie in folders by site get the
    outermost folder as their site, unless that is a folder per person.

    Parameters
    ----------
    root : Path
        Folder of cases.
    predictions : Path, optional
        Output folder of ``medseg predict``: its masks take the place of those in ``root``.

    Raises
    ------
    DataError
        No folder holds a scan.
    """
    items = [
        _folder_item(root, identifier, folder, predictions)
        for identifier, folder in case_folders(root).items()
    ]
    found = [item for item in items if item is not None]
    if not found:
        raise DataError(
            f"{root} must hold scans whose file names end in one of {sorted(_WORDS)}, but it holds "
            "none.",
            hint="Rename the files, or describe them in a YAML with kind: folder.",
        )
    return _without_personal_sites(found)


def _folder_item(
    root: Path, identifier: str, folder: CaseFolder, predictions: Path | None
) -> ScanItem | None:
    paths, mask = folder.paths, None
    if predictions is not None:
        mask = predictions / identifier / f"{identifier}{_MASK}"
    read = [*paths, mask] if mask is not None and mask.is_file() else list(paths)
    parts = paths[0].relative_to(root).parts
    item = ScanItem(
        identifier=identifier,
        subject=folder.subject,
        load=partial(_load_files, identifier, folder, mask),
        fingerprint=fingerprint(read),
        groups={"site": parts[0]} if len(parts) > 2 else {},
    )
    try:
        roles = assign_roles(identifier, paths, _WORDS)
    except DataError:
        return item  # told of when it is read
    if set(roles) <= {LABEL, BRAIN}:
        log.warning("no scan among %s: folder left out", [path.name for path in paths][:5])
        return None
    return item


def _load_files(identifier: str, folder: CaseFolder, mask: Path | None) -> Case:
    roles = assign_roles(identifier, folder.paths, _WORDS)
    label, brain = roles.pop(LABEL, None), roles.pop(BRAIN, None)
    if not roles:
        raise DataError(f"Case {identifier!r} must have a scan, but has a mask only.")
    if mask is not None:
        label = mask if mask.is_file() else None
    files = CaseFiles(identifier, folder.subject, roles, label=label, brain=brain)
    return read_case(files, relabel=None, allow_empty=True)


def _without_personal_sites(items: Sequence[ScanItem]) -> list[ScanItem]:
    """Drop sites where each is one person: folders by patient and visit, not by hospital."""
    people = {(item.groups["site"], item.subject) for item in items if "site" in item.groups}
    per_site = Counter(site for site, _ in people)
    by_site = len(per_site) > 1 and max(per_site.values()) > 1
    return [item if by_site else replace(item, groups={}) for item in items]


def items_of_source(
    source: CaseSource, *, made_from: object, root: Path | None = None
) -> list[ScanItem]:
    """Return the cases of a data set, their site being its name.

    Parameters
    ----------
    source : CaseSource
    made_from : object
        Settings of the data set, as JSON.
    root : Path, optional
        Where its files are: when one changes, all its cases are read again.
    """
    files = fingerprint(list_files(root)) if root is not None else ""
    text = json.dumps([made_from, files], sort_keys=True, default=str)
    origin = hashlib.sha256(text.encode()).hexdigest()
    return [
        ScanItem(
            identifier=identifier,
            subject=subject,
            load=partial(source.__getitem__, index),
            fingerprint=f"{origin} {index}",
            groups={"site": source.name},
        )
        for index, (identifier, subject) in enumerate(
            zip(source.identifiers, source.subjects, strict=True)
        )
    ]


def are_predictions(root: Path) -> bool:
    """Return whether a folder is the output of ``medseg predict``."""
    return any(path.with_name(f"{_case_of(path)}.json").is_file() for path in _masks(root))


def items_of_predictions(root: Path) -> list[ScanItem]:
    """Return predictions as cases: the probability and uncertainty maps as scans, and the mask."""
    items = []
    for mask in _masks(root):
        case = _case_of(mask)
        maps = [p for p in sorted(mask.parent.iterdir()) if _map_name(p, case) is not None]
        if maps:
            load = partial(_load_prediction, case, mask, maps)
            items.append(ScanItem(case, subject_of(case), load, fingerprint([mask, *maps])))
    if not items:
        raise DataError(
            f"{root} must hold predictions with their probability maps, but it holds none.",
            hint="Give the output folder of medseg predict.",
        )
    return items


def _masks(root: Path) -> list[Path]:
    found = sorted(root.glob(f"*/*{_MASK}"))
    return [path for path in found if is_nifti(path) and _case_of(path) == path.parent.name]


def _case_of(mask: Path) -> str:
    return mask.name.removesuffix(_MASK)


def _map_name(path: Path, case: str) -> str | None:
    """Return ``"core probability"`` for ``<case>_core_prob.nii.gz``, and None for other files."""
    for ending, words in ((_PROBABILITY, "probability"), (_UNCERTAINTY, "uncertainty")):
        if path.name.startswith(case) and path.name.endswith(ending):
            region = path.name[len(case) : -len(ending)].strip("_")
            return f"{region} {words}".strip()
    return None


def _load_prediction(case: str, mask: Path, maps: Sequence[Path]) -> Case:
    scans = {_map_name(path, case) or path.name: read_scan(path) for path in maps}
    first = next(iter(scans.values()))
    # Predictions know no brain; where any map is above 0 the network looked.
    looked = torch.stack([scan.data > 0 for scan in scans.values()]).any(0)
    looked = looked if bool(looked.any()) else torch.ones_like(looked)
    return Case(
        case,
        subject_of(case),
        scans,
        label=read_label_map(mask, allow_empty=True),
        brain=LabelMap(looked.to(torch.uint8), first.grid),
    )


def fingerprint(paths: Iterable[Path]) -> str:
    """Return a SHA-256 of names, sizes and times of files; no content is read."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        about = path.stat()
        digest.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()
