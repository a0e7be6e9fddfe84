"""Gliomas under the file names and label conventions of BraTS, 2013 to 2024.

Four conventions share the numbers 1 to 4 and are told apart by looking at the whole set:

=================  =============================================================  ============
convention         labels in the file                                             set
=================  =============================================================  ============
``1234``           1 necrosis, 2 oedema, 3 non-enhancing core, 4 enhancing        2013 - 2016
``124``            1 necrosis and non-enhancing core, 2 oedema, 4 enhancing       2017 - 2021
``123``            1 necrosis, 2 oedema, 3 **enhancing**                          2023
``123rc``          as ``123``, and 4 resection cavity (not tumour: background)    2024
=================  =============================================================  ============

All become the first one.

References
----------
Menze et al. 2015, IEEE TMI 34(10), section III; Baid et al. 2021, arXiv:2107.02314; de Verdier
et al. 2024, arXiv:2405.18368 (post-treatment, resection cavity).
"""

import logging
import re
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from medseg.data.source import check_index
from medseg.data.sources.layout import BRAIN_WORDS, LABEL, MODALITY_WORDS, stem_of
from medseg.data.sources.reading import check_cases, find_cases, read_case
from medseg.errors import LabelError
from medseg.io.nifti import read_label_map
from medseg.scan import Case
from medseg.settings import settings

_log = logging.getLogger(__name__)

WORDS = {
    **MODALITY_WORDS,
    **BRAIN_WORDS,
    **dict.fromkeys(("seg", "segm", "segmentation", "label", "ot"), LABEL),
}
CITATION = "Menze et al., IEEE TMI 2015; Bakas et al., Scientific Data 2017; Baid et al., 2021"
RELABEL = {
    "1234": {1: 1, 2: 2, 3: 3, 4: 4},
    "124": {1: 1, 2: 2, 4: 4},
    "123": {1: 1, 2: 2, 3: 4},
    "123rc": {1: 1, 2: 2, 3: 4, 4: 0},
}
#: The same in words, for the log.
_MEANING = {
    "1234": "1 necrosis, 2 oedema, 3 non-enhancing core, 4 enhancing tumour",
    "124": "1 necrosis and non-enhancing core, 2 oedema, 4 enhancing tumour",
    "123": "1 necrosis, 2 oedema, 3 enhancing tumour, which becomes 4",
    "123rc": "1 necrosis, 2 oedema, 3 enhancing tumour, which becomes 4; "
    "4 resection cavity, which becomes background",
}
#: Modality words, and names of cases, that only the files of 2023 and later use. Their t2w is not
#: among them: BIDS calls any T2 so.
_RECENT_WORDS = ("t1n", "t2f")
_RECENT_CASE = re.compile(r"brats-[a-z]+-\d+-\d+", re.IGNORECASE)


def _as_text(value: Any) -> Any:
    """YAML reads an unquoted 124 as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Convention = Annotated[Literal["auto", "1234", "124", "123", "123rc"], BeforeValidator(_as_text)]


@settings
class BratsSettings:
    """Where the tumours are and what each must have.

    Parameters
    ----------
    root : Path
        Folder with a folder per case, also below HGG/LGG or HG/LG.
    name, licence, citation : str
        For tables, reports and model cards.
    label_convention : {"auto", "1234", "124", "123", "123rc"}
        What the numbers in the masks mean; "auto" reads all masks once to find out.
    required : tuple of str
        Modalities every case must have.
    label_required : bool
        Refuse a case without a mask.
    allow_empty : bool
        Accept a mask without any tumour.
    subject_pattern : str, optional
        Regular expression with one group that finds the person in the case's name.
    """

    root: Path
    name: str = "brats"
    licence: str = "CC BY-NC-SA 3.0 CH for BraTS 2013-2015; otherwise the terms of the challenge"
    citation: str = CITATION
    label_convention: Convention = "auto"
    required: tuple[str, ...] = ()
    label_required: bool = True
    allow_empty: bool = False
    subject_pattern: str | None = None


def detect_convention(values: Collection[int], *, recent_names: bool) -> str | None:
    """Return the convention of a set with the labels ``values``, or None if it cannot be told.

    Parameters
    ----------
    values : collection of int
        Every label of the whole set.
    recent_names : bool
        The files are named as in 2023 and later.

    Examples
    --------
    >>> detect_convention({0, 1, 2, 4}, recent_names=False)
    '124'
    >>> detect_convention({0, 1, 2, 3}, recent_names=False) is None
    True
    """
    found = {3, 4}.intersection(values)
    if not found:
        return "124"  # 1 and 2 mean the same everywhere
    if recent_names:
        return {frozenset({3}): "123", frozenset({3, 4}): "123rc"}.get(frozenset(found))
    return {frozenset({4}): "124", frozenset({3, 4}): "1234"}.get(frozenset(found))


def has_recent_name(path: Path) -> bool:
    """Return whether a file is named as in 2023 and later, where label 3 is enhancing tumour.

    Examples
    --------
    >>> has_recent_name(Path("BraTS-GLI-00005-101-seg.nii.gz")), has_recent_name(Path("t2f.nii"))
    (True, True)
    >>> has_recent_name(Path("BraTS2021_00000_seg.nii.gz")), has_recent_name(Path("x_T2w.nii"))
    (False, False)
    """
    stem = stem_of(path)
    return stem.lower().endswith(_RECENT_WORDS) or bool(_RECENT_CASE.match(stem))


class BratsSource:
    """Cases with labels 1 necrosis, 2 oedema, 3 non-enhancing, 4 enhancing.

    See :class:`medseg.data.source.CaseSource`.

    Raises
    ------
    DataError
        The folder is missing or holds no case, or two files of a case claim one role.
    ScanError
        A required modality or mask is missing.
    LabelError
        When the first case is read: the labels of the set fit no convention, or more than one.
    """

    def __init__(self, settings: BratsSettings) -> None:
        self._settings = settings
        self.name = settings.name
        self.licence = settings.licence
        self.citation = settings.citation
        self._cases = find_cases(
            settings.root, words=WORDS, subject_pattern=settings.subject_pattern
        )
        check_cases(self._cases, required=settings.required, label_required=settings.label_required)

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Name of each case's folder."""
        return tuple(case.identifier for case in self._cases)

    @property
    def subjects(self) -> tuple[str, ...]:
        """The patient of each case."""
        return tuple(case.subject for case in self._cases)

    @cached_property
    def label_convention(self) -> str:
        """The convention of the masks; with "auto" all of them are read, once."""
        if self._settings.label_convention != "auto":
            return self._settings.label_convention
        values: set[int] = set()
        for case in self._cases:
            if case.label is not None:
                label = read_label_map(case.label, allow_empty=True)
                values.update(int(value) for value in label.data.unique())
        recent_names = any(
            has_recent_name(path) for case in self._cases for path in case.images.values()
        )
        convention = detect_convention(values, recent_names=recent_names)
        if convention is None:
            raise LabelError(
                f"Masks must follow one label convention, but the {len(self)} cases under "
                f"{self._settings.root} have {sorted(values)}, where 3 or 4 can mean two things.",
                hint=f"Set 'label_convention' to one of {', '.join(RELABEL)}.",
            )
        _log.info(
            "label convention of %s: %s (%s); found are %s; 'label_convention' sets another",
            self.name,
            convention,
            _MEANING[convention],
            sorted(values),
        )
        return convention

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> Case:
        return read_case(
            self._cases[check_index(index, len(self))],
            relabel=RELABEL[self.label_convention],
            allow_empty=self._settings.allow_empty,
        )
