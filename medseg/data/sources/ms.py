"""Multiple sclerosis: a folder per patient with any of FLAIR, T1, T1c, T2 and a lesion mask.

Reads the public collections 3D-MR-MS (Ljubljana) and MSLesSeg as they come, and any folder named
alike.
"""

from pathlib import Path

from medseg.data.source import check_index
from medseg.data.sources.layout import BRAIN_WORDS, LABEL, MODALITY_WORDS
from medseg.data.sources.reading import check_cases, find_cases, read_case
from medseg.scan import Case
from medseg.settings import settings

WORDS = {
    **MODALITY_WORDS,
    **BRAIN_WORDS,
    **dict.fromkeys(("lesion", "lesions", "mask", "seg", "consensus"), LABEL),
}
CITATION = "Lesjak et al., Neuroinformatics 2017 (3D-MR-MS); MSLesSeg, figshare 27919209"


@settings
class MsSettings:
    """Where the patients are and what each must have.

    Parameters
    ----------
    root : Path
        Folder with a folder per patient, or per patient and visit.
    name, licence, citation : str
        For tables, reports and model cards.
    required : tuple of str
        Modalities every patient must have; others are used where they are.
    label_required : bool
        Refuse a patient without a mask.
    allow_empty : bool
        Accept a mask without any lesion.
    lesion_labels : tuple of int
        Values of the mask that mean lesion; all become 1.
    subject_pattern : str, optional
        Regular expression with one group that finds the person in the case's name.
    """

    root: Path
    name: str = "ms"
    licence: str = "CC BY 4.0 for 3D-MR-MS and MSLesSeg; otherwise the terms of the data set"
    citation: str = CITATION
    required: tuple[str, ...] = ()
    label_required: bool = True
    allow_empty: bool = False
    lesion_labels: tuple[int, ...] = (1,)
    subject_pattern: str | None = None


class MsSource:
    """Cases with label 1 = MS lesion; see :class:`medseg.data.source.CaseSource`.

    Raises
    ------
    DataError
        The folder is missing or holds no case, or two files of a case claim one role.
    ScanError
        A required modality or mask is missing.
    """

    def __init__(self, settings: MsSettings) -> None:
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
        """Name of each patient's, or visit's, folder."""
        return tuple(case.identifier for case in self._cases)

    @property
    def subjects(self) -> tuple[str, ...]:
        """The patient of each case."""
        return tuple(case.subject for case in self._cases)

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> Case:
        return read_case(
            self._cases[check_index(index, len(self))],
            relabel=dict.fromkeys(self._settings.lesion_labels, 1),
            allow_empty=self._settings.allow_empty,
        )
