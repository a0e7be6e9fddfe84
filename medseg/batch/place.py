"""Where the results of a case go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.batch.cases import Item
from medseg.batch.ledger import Ledger
from medseg.errors import ConfigError, DataError
from medseg.inference.outputs import case_folder, output_paths


def planned_files(out: Path, identifier: str, regions: Sequence[str]) -> list[Path]:
    """Return every file that a prediction of these regions may write for a case.

    Raises
    ------
    ConfigError
        An identifier that cannot name a file.
    """
    names = tuple(regions)
    paths = output_paths(out, identifier, regions=names, samples=2, conformal=names)
    # With one region two names stand for one file.
    return list(dict.fromkeys(paths.values()))


def check_place(
    identifier: str, source: Path | None, *, out: Path, regions: Sequence[str], ledger: Ledger
) -> None:
    """Refuse a case whose results would lie among its scans or replace a file of somebody's own.

    Parameters
    ----------
    identifier : str
    source : Path, optional
        Where its scans are, where that is known.
    out : Path
        The output folder of all cases.
    regions : sequence of str
        Of the model.
    ledger : Ledger
        Of ``out``; knows the files that medseg wrote.

    Raises
    ------
    ConfigError
        It would.
    """
    place = case_folder(out, identifier).resolve()
    if source is not None and (place.is_relative_to(source) or source.is_relative_to(place)):
        raise ConfigError(
            f"Results must not lie among what they are made from, but those of {identifier!r} "
            f"would go to {place}, and its scans are in {source}.",
            hint="Choose another output folder.",
        )
    entry = ledger.read(identifier)
    if entry is None and ledger.path(identifier).exists():
        # Nobody knows what a damaged entry listed: what is there is set aside before it is written.
        return
    listed = set() if entry is None else {out / name for name in entry.outputs}
    for path in planned_files(out, identifier, regions):
        if path not in listed and path.exists():
            raise ConfigError(
                f"A file that medseg did not write is never replaced, but {path} is there and not "
                f"in the ledger of {out}.",
                hint="Choose another output folder, or move the file.",
            )


def check_places(items: Sequence[Item], *, out: Path, regions: Sequence[str]) -> None:
    """Check the place of every case before the first is predicted; see :func:`check_place`.

    Raises
    ------
    ConfigError
        As :func:`check_place`, for the first case that it refuses.
    """
    ledger = Ledger(out)
    for identifier, load in items:
        try:
            case_folder(out, identifier)
        except ConfigError:
            # A name that no file can have costs its own case alone, when its turn comes.
            continue
        check_place(identifier, load.source, out=out, regions=regions, ledger=ledger)


def check_owner(
    identifier: str, source: Path | None, input_sha256: str, *, out: Path, ledger: Ledger
) -> None:
    """Refuse a case whose identifier already stands for results of other scans.

    Parameters
    ----------
    identifier : str
    source : Path, optional
        Where its scans are, where that is known.
    input_sha256 : str
        The same scans at another place are no other case.
    out : Path
        The output folder of all cases.
    ledger : Ledger
        Of ``out``.

    Raises
    ------
    DataError
        Results of other scans are there.
    """
    entry = ledger.read(identifier)
    if entry is None or not entry.is_of_other(source, input_sha256):
        return
    if any((out / name).exists() for name in entry.outputs):
        raise DataError(
            f"An identifier names one case, but the results of {identifier!r} in {out} are those "
            f"of {entry.source}, and these scans are in {source}.",
            hint="Give another output folder, or rename the case.",
        )
