"""What an input path holds: a scan, the folder of a case, or a folder of cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from medseg.data.sources.brats import BratsSettings, BratsSource
from medseg.data.sources.ms import MsSettings, MsSource
from medseg.errors import DataError, MedsegError
from medseg.io.nifti import read_scan
from medseg.scan import Case

Item = tuple[str, Callable[[], Case]]
_ENDINGS = (".nii", ".nii.gz")


def find_cases(path: Path, *, channels: Sequence[str]) -> list[Item]:
    """Return identifier and loader of every case at ``path``.

    Parameters
    ----------
    path : Path
        A NIfTI file, for a model of one channel; a case folder with a file per modality; or a
        folder of such folders.
    channels : sequence of str
        Of the model.

    Raises
    ------
    DataError
        Nothing usable is there.
    """
    path = Path(path)
    if path.is_file():
        return [_single(path, channels)]
    if not path.is_dir():
        raise DataError(f"An input must exist, but {path} does not.", hint="Check the path.")
    is_case = any(file.name.endswith(_ENDINGS) for file in path.iterdir() if file.is_file())
    faults: list[str] = []
    for make in (_brats, _ms):
        try:
            source = make(path.parent if is_case else path)
            names = [name for name in source.identifiers if not is_case or name == path.name]
        except MedsegError as error:
            faults.append(error.message)
            continue
        if names:
            places = {name: number for number, name in enumerate(source.identifiers)}
            return [(name, partial(source.__getitem__, places[name])) for name in names]
    raise DataError(
        f"{path} must hold NIfTI scans named after their modality, one folder a case, but none was "
        f"found: {' '.join(faults)}",
        hint="Name files such as flair.nii.gz and t1c.nii.gz in a folder per case.",
    )


def _single(path: Path, channels: Sequence[str]) -> Item:
    if len(channels) != 1:
        raise DataError(
            f"The model needs {list(channels)}, but {path} is one file.",
            hint="Give the folder of the case, with a file per modality.",
        )
    name = path.name.removesuffix(".gz").removesuffix(".nii")

    def load() -> Case:
        return Case(identifier=name, subject=name, scans={channels[0]: read_scan(path)})

    return name, load


def _brats(root: Path) -> BratsSource:
    return BratsSource(BratsSettings(root=root, label_required=False, label_convention="1234"))


def _ms(root: Path) -> MsSource:
    return MsSource(MsSettings(root=root, label_required=False))
