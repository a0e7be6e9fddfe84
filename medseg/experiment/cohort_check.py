"""What a cohort must be for an experiment to mean what it says: other people, and the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from medseg.data.regions import RegionSettings
from medseg.data.training_set import TrainingCase
from medseg.errors import ConfigError, DataError
from medseg.experiment.plan import Cohort, ExperimentPlan
from medseg.io.atomic import read_table, write_table

#: Smaller masks may be alike by chance.
_LEAST_VOXELS = 20
#: Shares by which counts of voxels and mean sizes of intensities may differ: machines round
#: otherwise when they resample.
_TOLERANCE = 0.01


def refuse_own_people(cohorts: Sequence[Cohort], plan: ExperimentPlan, *, where: str) -> None:
    """Raise where masks to learn from are of people of the target, some of whom are tested on.

    Parameters
    ----------
    cohorts : sequence of Cohort
    plan : ExperimentPlan
    where : str
        What they are called in the configuration.

    Raises
    ------
    ConfigError
        A data set has the name of the target and some of its people.
    """
    target = plan.target.source
    for source in (cohort.source for cohort in cohorts):
        own = sorted(set(source.subjects) & set(target.subjects)) * (source.name == target.name)
        if own:
            raise ConfigError(
                f"Masks that are learned from beside the target's must be of other people, but "
                f"{where} has {own[:3]} ({len(own)} in all) of the target {target.name!r}.",
                hint="Leave these people out, the target's own are trained on as few_shot says; or "
                "give different data sets different names.",
            )


def refuse_same_masks(
    cases: Sequence[TrainingCase],
    regions: RegionSettings,
    target: Sequence[TrainingCase],
    wanted: RegionSettings,
    *,
    where: str,
) -> None:
    """Raise where a mask to learn from is that of a target case, whatever the data sets are called.

    Parameters
    ----------
    cases : sequence of TrainingCase
        To learn from.
    regions : RegionSettings
        Theirs.
    target : sequence of TrainingCase
    wanted : RegionSettings
        The target's.
    where : str
        What the cases are called in the configuration.

    Raises
    ------
    DataError
        A region of the same name has the same voxels in both, at least 20.
    """
    own = {print_: case.identifier for case in target for print_ in _prints(case, wanted)}
    for case in cases:
        for print_ in _prints(case, regions):
            if print_ in own:
                raise DataError(
                    f"Masks that are learned from beside the target's must be of other people, but "
                    f"{print_[0]!r} of case {case.identifier!r} of {where} is voxel for voxel that "
                    f"of {own[print_]!r} of the target.",
                    hint="Leave that case out of one of the two data sets; generated cohorts of "
                    "one disease need different seeds.",
                )


def _prints(case: TrainingCase, regions: RegionSettings) -> list[tuple[str, str]]:
    """Return name and hash of each known region of a case that has voxels enough."""
    known = case.known[int(case.has_background) :].tolist()
    found = []
    for name, mask, is_known in zip(regions.names, case.regions > 0.5, known, strict=True):
        if is_known and int(mask.sum()) >= _LEAST_VOXELS:
            voxels = hashlib.sha256(str(tuple(mask.shape)).encode())
            voxels.update(mask.numpy().tobytes())
            found.append((name, voxels.hexdigest()))
    return found


def require_same_cases(cases: Sequence[TrainingCase], names: Sequence[str], path: Path) -> None:
    """Write down what the cases of a target are, or raise where others were written down.

    Cells are named by the numbers of their training subjects: with a scan more, or another mask,
    those that are done would stand for what they were not trained on.

    Parameters
    ----------
    cases : sequence of TrainingCase
    names : sequence of str
        Of their regions.
    path : Path
        Table with a row per case: subject, shape, voxels of the brain and of each region, and mean
        size of the intensities.

    Raises
    ------
    DataError
        A case is new, gone or different. Numbers may differ by a hundredth, counts by two.
    """
    rows = [_row(case, names) for case in cases]
    if not path.is_file():
        write_table(path, rows)
        return
    before = {row["case"]: row for row in read_table(path)}
    now = {str(row["case"]): {key: str(value) for key, value in row.items()} for row in rows}
    faults = [
        f"{case} is {'new' if case not in before else 'gone'}"
        for case in sorted(before.keys() ^ now.keys())
    ]
    for case in sorted(before.keys() & now.keys()):
        faults += [
            f"{key} of {case} was {old} and is {now[case].get(key)}"
            for key, old in before[case].items()
            if not _is_alike(old, now[case].get(key, ""))
        ]
    if faults:
        raise DataError(
            f"An experiment goes on with the cases that it began with, but {'; '.join(faults[:5])} "
            f"({len(faults)} differences in all, by {path}).",
            hint="Put the old cases back, or give another output folder.",
        )


def _row(case: TrainingCase, names: Sequence[str]) -> dict[str, object]:
    return {
        "case": case.identifier,
        "subject": case.subject,
        "shape": "x".join(str(length) for length in case.brain.shape),
        "brain_voxels": int(case.brain.sum()),
        **{
            f"{name}_voxels": int((mask > 0.5).sum())
            for name, mask in zip(names, case.regions, strict=True)
        },
        "mean_size": round(float(case.image.abs().mean()), 4),
    }


def _is_alike(old: str, new: str) -> bool:
    try:
        first, second = float(old), float(new)
    except ValueError:
        return old == new
    # A voxel or two of a small lesion may round either way; a mean size is far below two.
    least = 2.0 if first.is_integer() and second.is_integer() else 0.0
    return abs(first - second) <= max(least, _TOLERANCE * max(abs(first), abs(second)))
