"""Any data set on disk, described by a glob pattern per modality."""

import re
from pathlib import Path

from pydantic import Field

from medseg.data.source import check_index
from medseg.data.sources.layout import CaseFiles, is_nifti, list_files, subject_of
from medseg.data.sources.reading import check_cases, read_case
from medseg.errors import ConfigError, DataError
from medseg.scan import Case
from medseg.settings import settings

_CASE = "{case}"
_WORD = re.compile(r"\{([a-z_]+)\}")


@settings
class FolderSettings:
    """Patterns relative to ``root``.

    ``{case}`` stands for the case's name; ``*``, ``?`` and ``**/`` are those of a shell. Where
    names come again (``Center_01/Patient_01``, ``Center_07/Patient_01``), any other word in braces
    belongs to the name too: ``{centre}/{case}/flair.nii.gz`` gives ``Center_01_Patient_01``.

    Parameters
    ----------
    root : Path
        Folder in which the patterns are looked for.
    images : dict of str to str
        Pattern of each modality, for example ``{"flair": "{case}/*FLAIR.nii.gz"}``.
    label, brain : str, optional
        Pattern of the reference mask and of the brain mask.
    labels : dict of int to int
        What each value of the mask becomes; others are refused. Empty: every value is kept.
    name, licence, citation : str
        For tables, reports and model cards.
    required : tuple of str
        Modalities every case must have.
    label_required, allow_empty : bool
        Refuse a case without a mask; accept a mask without any lesion.
    subject_pattern : str, optional
        Regular expression with one group that finds the person in the case's name.
    """

    root: Path
    images: dict[str, str] = Field(min_length=1)
    label: str | None = None
    brain: str | None = None
    labels: dict[int, int] = Field(default_factory=dict)
    name: str = "folder"
    licence: str = "not stated"
    citation: str = "not stated"
    required: tuple[str, ...] = ()
    label_required: bool = False
    allow_empty: bool = False
    subject_pattern: str | None = None


def pattern_to_regex(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern with ``{case}``, a group for each word in braces.

    Raises
    ------
    ConfigError
        ``{case}`` does not occur.

    Examples
    --------
    >>> pattern_to_regex("{case}/{case}_*.nii.gz").fullmatch("a1/a1_FLAIR.nii.gz")["case"]
    'a1'
    """
    if _CASE not in pattern:
        raise ConfigError(
            f"A pattern must contain {_CASE}, but it is {pattern!r}.",
            hint="Write for example '{case}/flair.nii.gz'.",
        )
    table = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    seen: set[str] = set()
    text = ""
    for part in re.split(r"(\{[a-z_]+\}|\*\*/|\*|\?)", pattern):
        word = _WORD.fullmatch(part)
        if word is None:
            text += table.get(part, re.escape(part))
        else:
            name = word.group(1)
            text += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)"
            seen.add(name)
    return re.compile(text)


def match_files(root: Path, files: list[Path], pattern: str) -> dict[str, Path]:
    """Return the file of each case that ``pattern`` describes.

    Raises
    ------
    DataError
        Two files fit one case.
    """
    regex = pattern_to_regex(pattern)
    matched: dict[str, Path] = {}
    for path in files:
        found = regex.fullmatch(path.relative_to(root).as_posix())
        if not found:
            continue
        case = "_".join(found.groups())
        if case in matched:
            raise DataError(
                f"Pattern {pattern!r} must fit one file per case, but for {case!r} it fits "
                f"{matched[case].relative_to(root)} and {path.relative_to(root)}.",
                hint="Make the pattern narrower.",
            )
        matched[case] = path
    return matched


class FolderSource:
    """Cases found by patterns; see :class:`medseg.data.source.CaseSource`.

    Raises
    ------
    ConfigError
        A pattern lacks ``{case}``, or the patterns have not the same words in braces.
    DataError
        The folder is missing, no image pattern fits any file, or one fits two files of a case.
    ScanError
        A required modality or mask is missing.
    """

    def __init__(self, settings: FolderSettings) -> None:
        self._settings = settings
        self.name = settings.name
        self.licence = settings.licence
        self.citation = settings.citation
        self._cases = _find(settings)
        check_cases(self._cases, required=settings.required, label_required=settings.label_required)

    @property
    def identifiers(self) -> tuple[str, ...]:
        """What ``{case}`` stood for."""
        return tuple(case.identifier for case in self._cases)

    @property
    def subjects(self) -> tuple[str, ...]:
        """The person behind each case."""
        return tuple(case.subject for case in self._cases)

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> Case:
        return read_case(
            self._cases[check_index(index, len(self))],
            relabel=self._settings.labels or None,
            allow_empty=self._settings.allow_empty,
        )


def _check_words(settings: FolderSettings) -> None:
    patterns = [*settings.images.values(), settings.label, settings.brain]
    words = {
        pattern: tuple(dict.fromkeys(_WORD.findall(pattern))) for pattern in patterns if pattern
    }
    if len(set(words.values())) > 1:
        raise ConfigError(
            f"All patterns must have the same words in braces in the same order, but they have "
            f"{words}.",
            hint="Only so do a scan and its mask get one name.",
        )


def _find(settings: FolderSettings) -> tuple[CaseFiles, ...]:
    _check_words(settings)
    files = [path for path in list_files(settings.root) if is_nifti(path)]
    images = {
        name: match_files(settings.root, files, pattern)
        for name, pattern in settings.images.items()
    }
    labels = match_files(settings.root, files, settings.label) if settings.label else {}
    brains = match_files(settings.root, files, settings.brain) if settings.brain else {}
    names = sorted({case for found in images.values() for case in found})
    if not names:
        raise DataError(
            f"At least one file must fit a pattern, but none of the {len(files)} NIfTI files under "
            f"{settings.root} fits {settings.images}.",
            hint=f"The first is {files[0].relative_to(settings.root)}." if files else "",
        )
    return tuple(
        CaseFiles(
            identifier=case,
            subject=subject_of(case, settings.subject_pattern),
            images={name: found[case] for name, found in images.items() if case in found},
            label=labels.get(case),
            brain=brains.get(case),
        )
        for case in names
    )
