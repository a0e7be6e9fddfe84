"""Which prediction belongs to which reference, by their names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.batch.cases import WORDS, named_folders
from medseg.data.sources.layout import LABEL, is_nifti, role_of, stem_of
from medseg.errors import ConfigError, DataError

_LABEL_WORDS = "|".join(sorted(word for word, role in WORDS.items() if role == LABEL))
_LABEL_ENDING = re.compile(rf"[._\-\s](?:{_LABEL_WORDS})$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """A reference and its prediction.

    Parameters
    ----------
    case : str
    reference : Path
    predicted : Path, optional
        None where there is none.
    values : tuple of int
        Which labels of the prediction are scored; all but 0 when empty.
    """

    case: str
    reference: Path
    predicted: Path | None
    values: tuple[int, ...] = ()


@dataclass(frozen=True)
class Unclear:
    """A case whose reference cannot be told."""

    case: str
    error: DataError


def find_pairs(
    predictions: Path, references: Path, *, region: str | None, labels: tuple[int, ...]
) -> list[Pair | Unclear]:
    """Return a pair per reference.

    A folder of references holds a file per case, or a folder per case with one mask in it. The case
    of ``P01.nii.gz``, ``P01_mask.nii.gz`` and ``P01_seg.nii.gz`` is P01; its prediction has the
    reference's own name, or is ``P01/P01_mask.nii.gz``, ``P01_mask.nii.gz`` or ``P01.nii.gz``; of a
    region, the file that ``P01.json`` beside it names, or ``P01_<region>_mask.nii.gz``.

    Parameters
    ----------
    predictions, references : Path
        Folders, or files.
    region : str, optional
    labels : tuple of int
        See :func:`medseg.batch.evaluate.evaluate_folders`.

    Raises
    ------
    DataError
        One of the two does not exist, there is no reference, or none has a prediction.
    ConfigError
        ``labels`` without ``region`` for a prediction of medseg, whose labels number its regions;
        or a region that it does not have.
    """
    for path, role in ((predictions, "Predictions"), (references, "References")):
        if not path.exists():
            # A mistyped folder must not pass for one whose predictions are all missing.
            raise DataError(f"{role} must exist, but {path} does not.", hint="Check the path.")
    known, unclear = _references(references)
    pairs: list[Pair] = []
    for reference, cases, names in known:
        case, found = _match(predictions, cases, names, region)
        if predictions.is_file() and references.is_file():
            found = predictions
        pairs.append(_pair(case, reference, found, region, labels))
    if pairs and all(pair.predicted is None for pair in pairs):
        what = "a prediction" if region is None else f"a prediction of region {region!r}"
        raise DataError(
            f"A reference must find {what}, but none of {len(pairs)} in {references} finds one in "
            f"{predictions}; the first is of case {pairs[0].case!r}.",
            hint="Name predictions <case>.nii.gz or <case>_mask.nii.gz, or give the output folder "
            "of medseg predict.",
        )
    return [*pairs, *unclear]


#: A file, what its case may be called, and file names of its prediction.
_Reference = tuple[Path, list[str], list[str]]


def _references(root: Path) -> tuple[list[_Reference], list[Unclear]]:
    if root.is_file():
        return [(root, _cases_of(root), [root.name])], []
    files = [path for path in sorted(root.iterdir()) if path.is_file() and is_nifti(path)]
    if files:
        roles = [role_of(file, WORDS) for file in files]
        # Beside masks that say so, scans that say so are no masks.
        kept = {LABEL, None} if LABEL in roles else set(roles)
        chosen = [file for file, role in zip(files, roles, strict=True) if role in kept]
        return [(file, _cases_of(file), [file.name]) for file in chosen], []
    known: list[_Reference] = []
    unclear: list[Unclear] = []
    for case, folder in named_folders(root).items():
        try:
            mask = _mask(case, folder.paths)
        except DataError as error:
            unclear.append(Unclear(case, error))
            continue
        if mask is not None:
            known.append((mask, [case], []))
    if not known and not unclear:
        raise DataError(
            f"{root} must hold reference masks, a file per case or a folder per case, but no file "
            "name says that it is one.",
            hint="Name them <case>.nii.gz in one folder, or <case>/mask.nii.gz.",
        )
    return known, unclear


def _mask(case: str, files: Sequence[Path]) -> Path | None:
    roles = {file: role_of(file, WORDS) for file in files}
    found = [file for file, role in roles.items() if role == LABEL]
    if len(found) > 1:
        raise DataError(
            f"Case {case!r} must have one reference mask, but has "
            f"{[file.name for file in found]} in {found[0].parent}.",
            hint="Keep one, or give a folder with one mask per case.",
        )
    if not found and list(roles.values()) == [None]:
        # A file alone in its folder needs no word in its name.
        found = list(files)
    return found[0] if found else None


def _cases_of(reference: Path) -> list[str]:
    """Return the name without each of the words at its end that stand for a mask; shortest last."""
    cases = [stem_of(reference)]
    while (shorter := _LABEL_ENDING.sub("", cases[-1])) not in ("", cases[-1]):
        cases.append(shorter)
    return cases


def _match(
    predictions: Path, cases: Sequence[str], names: Sequence[str], region: str | None
) -> tuple[str, Path | None]:
    for case in cases:
        for path in _candidates(predictions, case, names, region):
            if path.is_file():
                return case, path
    return cases[-1], None


def _candidates(
    predictions: Path, case: str, names: Sequence[str], region: str | None
) -> Iterator[Path]:
    yield from (predictions / name for name in names)
    yield predictions / case / f"{case}_mask.nii.gz"
    yield from (predictions / f"{case}{ending}" for ending in ("_mask.nii.gz", ".nii.gz", ".nii"))
    if region is not None:
        yield predictions / case / f"{case}_{region}_mask.nii.gz"
        yield predictions / f"{case}_{region}_mask.nii.gz"


def _pair(
    case: str, reference: Path, found: Path | None, region: str | None, labels: tuple[int, ...]
) -> Pair:
    record = None if found is None else _record(found)
    if found is None or (record is None and region is None):
        return Pair(case, reference, found, labels)
    if record is None:
        name = stem_of(found).removesuffix("_mask").removesuffix(f"_{region}")
        own = found.with_name(f"{name}_{region}_mask.nii.gz")
        return Pair(case, reference, own if own.is_file() else None)
    files, values = record["files"], record["label_map"]["values"]
    if region is None:
        if labels:
            raise ConfigError(
                f"The labels of {found} number the regions {list(values)} and are not those of the "
                f"reference, but --labels is {','.join(map(str, labels))} without --region.",
                hint="Add --region; --labels then says which labels of the reference are it.",
            )
        return Pair(case, reference, found)
    if region not in values:
        raise ConfigError(
            f"A region must be one of {list(values)}, which {found} has, but it is {region!r}.",
            hint="Choose one of these.",
        )
    own = found.with_name(files[f"{region}/mask"])
    # With one region its mask is the map of all, where it has a number.
    chosen = (values[region],) if own.name == files["mask"] else ()
    return Pair(case, reference, own if own.is_file() else None, chosen)


def _record(predicted: Path) -> Mapping[str, Any] | None:
    """Return what medseg wrote beside a mask of its own."""
    for path in sorted(predicted.parent.glob("*.json")):
        if not predicted.name.startswith(path.stem):
            continue
        # Not every JSON file is one of ours.
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            record = json.loads(path.read_text(encoding="utf-8"))
            values = record["label_map"]["values"]
            files = record["files"]
            if predicted.name in files.values() and all(f"{name}/mask" in files for name in values):
                return record
    return None
