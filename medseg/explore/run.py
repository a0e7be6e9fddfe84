"""From scans, or a table, to the folder with the page."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.explore.cohort import Cohort, ExploreSettings
from medseg.explore.extract import Extracted, extract, read_patches
from medseg.explore.files import write_files
from medseg.explore.findings import find_all
from medseg.explore.items import ScanItem
from medseg.explore.page import write_page
from medseg.explore.table import group_columns, make_table, read_feature_table
from medseg.inference.provenance import git_commit, versions
from medseg.priors.kernel_set import KernelSet

log = logging.getLogger(__name__)

_MOST_PATCHES = 4000


def explore_scans(
    items: Sequence[ScanItem],
    *,
    out: Path,
    title: str,
    settings: ExploreSettings | None = None,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    kernels: KernelSet | None = None,
    command: str = "",
    on_finished: Callable[[str, str], None] | None = None,
) -> Cohort:
    """Measure scans, look at the cohort, and write ``explore.html`` with the files beside it.

    Parameters
    ----------
    items : sequence of ScanItem
        See :mod:`medseg.explore.items`.
    out : Path
        Gets ``explore.html``, ``explore.json``, ``scans.csv``, ``lesions.csv``, ``failures.tsv``
        and ``cache/``, from which the same call goes on where it stopped.
    title : str
    settings : ExploreSettings, optional
    groups : mapping of case to mapping, optional
        More of what is known of the scans' origin: scanner.
    kernels : KernelSet, optional
        Whose intrinsic dimension is wanted.
    command : str
        That does it again.
    on_finished : callable, optional
        See :func:`medseg.explore.extract.extract`.

    Raises
    ------
    DataError
        Fewer than 3 scans could be read, or none differs from the others.
    """
    start, chosen = time.perf_counter(), settings or ExploreSettings()
    extracted = extract(items, out=out, seed=chosen.seed, on_finished=on_finished)
    measured = time.perf_counter()
    origins = [
        {**known, **(groups or {}).get(name, {})}
        for name, known in zip(extracted.identifiers, extracted.groups, strict=True)
    ]
    columns = {**group_columns(origins), "grid": _grids(extracted.features)}
    table = make_table(extracted.identifiers, extracted.features, groups=columns)
    manifolds = _manifolds(extracted, kernels, seed=chosen.seed)
    findings = find_all(table, seed=chosen.seed, manifolds=manifolds)
    facts = _facts(reading=measured - start, looking=time.perf_counter() - measured)
    cohort = Cohort(title, command, findings, extracted, extracted.failures, chosen, facts)
    return _write(cohort, out)


def explore_table(
    path: Path,
    *,
    out: Path,
    title: str,
    settings: ExploreSettings | None = None,
    command: str = "",
) -> Cohort:
    """Look at a cohort that comes as a table of features, and write the page.

    Parameters are those of :func:`explore_scans`; see
    :func:`medseg.explore.table.read_feature_table` for the table.
    """
    start, chosen = time.perf_counter(), settings or ExploreSettings()
    findings = find_all(read_feature_table(path), seed=chosen.seed)
    facts = _facts(reading=0.0, looking=time.perf_counter() - start)
    return _write(Cohort(title, command, findings, None, (), chosen, facts), out)


def _write(cohort: Cohort, out: Path) -> Cohort:
    write_files(cohort, out)
    write_page(cohort, out / "explore.html")
    return cohort


def _grids(features: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """Return the voxel size of each scan in words: the one trace of a scanner in every file."""
    return tuple(
        f"{row['grid.in_plane_mm']:.3g} to {row['grid.slice_mm']:.3g} mm" for row in features
    )


def _manifolds(
    extracted: Extracted, kernels: KernelSet | None, *, seed: int
) -> dict[str, NDArray[np.floating]]:
    found = {"patches": read_patches(extracted.patches, most=_MOST_PATCHES, seed=seed)}
    if kernels is not None:
        for group in kernels.group_names:
            found[f"kernels, {group}"] = kernels.of_group(group).numpy()
    return {name: items for name, items in found.items() if len(items)}


def _facts(**seconds: float) -> dict[str, object]:
    return {
        "seconds": seconds,
        "versions": versions(),
        "git_commit": git_commit(),
        "finished": time.strftime("%Y-%m-%d %H:%M"),
    }
