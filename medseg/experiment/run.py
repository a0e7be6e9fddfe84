"""A few-shot experiment from cohorts to tables; it can be interrupted and resumed anywhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

from filelock import FileLock

from medseg.data.regions import RegionSettings
from medseg.data.splits import FewShotSubset, SplitSettings, few_shot_subsets, load_or_make_split
from medseg.data.training_set import TrainingCase
from medseg.errors import ConfigError, DataError
from medseg.experiment.cell import (
    Cell,
    CellData,
    CellTraining,
    CellWriter,
    is_done,
    run_network,
    run_threshold,
)
from medseg.experiment.cohort_check import (
    refuse_own_people,
    refuse_same_masks,
    require_same_cases,
)
from medseg.experiment.failures import clear_failure, has_failed, note_failure, write_failures
from medseg.experiment.plan import Arm, ExperimentPlan
from medseg.experiment.record import Start, plan_key
from medseg.experiment.sources import intensities_of, make_source, more_scans, training_cases
from medseg.experiment.tables import write_tables
from medseg.inference.posterior import Head
from medseg.training.objectives import MoreScans
from medseg.training.transfer import Source

log = logging.getLogger(__name__)


def run_experiment(
    plan: ExperimentPlan, out: Path, *, resume: bool = True, shard: tuple[int, int] = (0, 1)
) -> tuple[str, ...]:
    """Run every stage that is not done yet, and write the tables.

    A cell that fails is noted in its folder, and the others go on; the tables are then made of what
    there is. The next start in the same folder tries it again.

    Parameters
    ----------
    plan : ExperimentPlan
    out : Path
        The run's folder.
    resume : bool
        Go on in a folder that holds part of the same experiment.
    shard : tuple of 2 int
        ``(i, n)``: do every n-th cell from the i-th on; other processes or machines that share the
        folder do the rest. The last one to finish writes the tables.

    Returns
    -------
    tuple of str
        The cells that failed, here or in another process.

    Raises
    ------
    ConfigError
        The folder holds another experiment, or one and ``resume`` is False.
    """
    out = Path(out)
    if plan.protocol.preprocess.spacing_mm is None:
        raise ConfigError(
            "An experiment scores on one working grid, but protocol.preprocess.spacing_mm is null.",
            hint="Give a voxel size in mm.",
        )
    key = plan_key(plan)
    start = Start.of(plan, out, key, resume=resume)
    try:
        return _run(plan, out, key, start, shard=shard)
    finally:
        start.write()


def _run(
    plan: ExperimentPlan, out: Path, key: str, start: Start, *, shard: tuple[int, int]
) -> tuple[str, ...]:
    for name, cohorts in plan.sources.items():
        if name not in plan.pretraining:
            refuse_own_people(cohorts, plan, where=f"sources.{name}")
    with FileLock(out / ".splits.lock"):
        subsets, test_only = few_shot_parts(plan, out)
    with start.stage("prepare target"):
        cases = training_cases(
            plan.target, plan, regions=plan.protocol.regions, allow_missing=False
        )
    cells = list(_grid(plan, cases, subsets, test_only))
    untested = [cell.identifier for cell, data, _ in cells if not data.test]
    if untested:
        raise ConfigError(
            f"Every subset must leave subjects to test on, but {untested[:3]} leave none.",
            hint="Lower protocol.few_shot.sizes, or add subjects to the target.",
        )
    with FileLock(out / ".splits.lock"):
        require_same_cases(cases, plan.protocol.regions.names, out / "cases.tsv")
    sources = _sources(plan, out, key, start, cases)
    more = {
        arm.more: more_scans(plan, arm.scans, labelled=arm.more[1])
        for arm in plan.arms
        if arm.scans
    }
    for (name, is_labelled), scans in more.items():
        if is_labelled:
            wanted = plan.protocol.regions
            refuse_same_masks(scans.cases, scans.regions, cases, wanted, where=f"scans.{name}")
    first = {cell.method + cell.source: cell for cell, _, _ in reversed(cells)}
    mine = [entry for group in _groups(cells)[shard[0] :: shard[1]] for entry in group]
    training = CellTraining(plan, out)
    started, todo = time.perf_counter(), [entry for entry in mine if not is_done(entry[0], out)]
    for cell, _, _ in todo:
        clear_failure(cell, out)
    for number, (cell, data, arm) in enumerate(todo):
        spent = time.perf_counter() - started
        left = spent / number * (len(todo) - number) if number else float("nan")
        log.info("cell %d/%d %s (%.0f s left)", number + 1, len(todo), cell.identifier, left)
        keep = first[cell.method + cell.source] == cell
        writer = CellWriter(cell, plan, out, keep_example=keep)
        try:
            with start.stage(f"cells: {cell.method}"):
                _one(cell, data, arm, writer, plan, sources, more=more, training=training)
        except Exception as error:
            # One arm that diverges on one subset must not cost the night of all others.
            log.error("cell %s failed, the others go on: %s", cell.identifier, error)
            note_failure(cell, out, error)
    return _end([cell for cell, _, _ in cells], out, plan)


def _sources(
    plan: ExperimentPlan, out: Path, key: str, start: Start, target: Sequence[TrainingCase]
) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for name in plan.sources:
        # Another shard may be at it: then this one waits, and loads what is there.
        (out / "sources").mkdir(exist_ok=True)
        lock = FileLock(out / "sources" / f".{name}.lock")
        with start.stage("train sources, fit priors"), lock:
            sources[name] = make_source(plan, name, out, key=key, target=target)
    return sources


def _end(cells: Sequence[Cell], out: Path, plan: ExperimentPlan) -> tuple[str, ...]:
    """Write the tables when no cell is left to run; return the cells that failed."""
    done = [cell for cell in cells if is_done(cell, out)]
    failed = [cell for cell in cells if has_failed(cell, out)]
    if len(done) + len(failed) < len(cells):
        log.info("this shard is done; the tables are written when the others are")
    else:
        write_failures(failed, out)
        if done:
            protocol = plan.protocol
            write_tables(done, out, seed=protocol.seed, members=protocol.members)
    return tuple(cell.identifier for cell in failed)


def _one(
    cell: Cell,
    data: CellData,
    arm: Arm | None,
    writer: CellWriter,
    plan: ExperimentPlan,
    sources: dict[str, Source],
    *,
    more: dict[tuple[str, bool], MoreScans],
    training: CellTraining,
) -> None:
    regions, source = plan.protocol.regions, sources.get(cell.source)
    source = None if source is None else source.member(cell.seed)
    if cell.n:
        _require_lesion(data.train)
    if cell.method == "threshold":
        run_threshold(cell, data, writer, plan)
    elif arm is None and source is not None:
        channels = [source.regions.names.index(name) for name in regions.names]
        head = _head(source.regions, plan)
        run_network(source.network, data, writer, plan, channels=channels, head=head)
    elif arm is not None:
        # Before the training: what cannot be is refused at once.
        looks = None if arm.refine is None else intensities_of(data.train, plan, arm.refine)
        network, temperature = training.network(
            cell, data, arm, source=source, more=more.get(arm.more)
        )
        channels = list(range(len(regions.names)))
        head = replace(
            _head(regions, plan),
            has_share=arm.distils,
            temperature=temperature,
            intensities=looks,
        )
        hidden = [plan.protocol.channels.index(name) for name in arm.hidden_channels]
        where = asdict(cell)
        training.forgetting.score(
            where,
            network,
            source=source,
            head=head,
            folder=writer.folder,
            members=arm.method.members,
            hidden=hidden,
        )
        # Last, as its table says that the cell is done.
        run_network(network, data, writer, plan, channels=channels, head=head, hidden=hidden)


def _require_lesion(cases: Sequence[TrainingCase]) -> None:
    """Raise when no training case has a voxel of any region."""
    if not any(bool((case.regions > 0.5).any()) for case in cases):
        raise DataError(
            f"Training needs a lesion, but no mask of the subjects "
            f"{sorted({case.subject for case in cases})} has a voxel of any region.",
            hint="Check target.definition, or leave subjects without lesions out of the target.",
        )


_Entry = tuple[Cell, CellData, Arm | None]


def _groups(cells: Sequence[_Entry]) -> list[list[_Entry]]:
    """Return the cells that share a training together, so that one process has it done once."""
    groups: dict[object, list[_Entry]] = {}
    for entry in cells:
        cell, _, arm = entry
        shared = cell.method if arm is None else arm.trained_as
        groups.setdefault((cell.source, cell.subset, cell.seed, shared), []).append(entry)
    return list(groups.values())


def _head(regions: RegionSettings, plan: ExperimentPlan) -> Head:
    dims = plan.architecture(len(plan.protocol.channels), regions.channels).dims
    return Head(regions, dims, window=plan.protocol.patch.size)


def few_shot_parts(plan: ExperimentPlan, out: Path) -> tuple[Sequence[FewShotSubset], set[str]]:
    """Return the training subsets and the subjects that only ever serve as test."""
    few, seed, source = plan.protocol.few_shot, plan.protocol.seed, plan.target.source
    held = set[str]()
    if few.test_subjects:
        request = SplitSettings(seed=seed, sizes={"test": few.test_subjects}, rest="train")
        held = set(
            load_or_make_split(out / "splits.json", source, request=request).subjects_of("test")
        )
    pool = [subject for subject in source.subjects if subject not in held]
    drawn = few_shot_subsets(pool, few.sizes, seed=seed, repeats=few.repeats)
    # Two draws may meet in one subset, which then counts once: its cells are the same.
    distinct = {(subset.size, subset.subjects): subset for subset in reversed(drawn)}
    return [s for s in drawn if distinct[s.size, s.subjects] is s], held


def _grid(
    plan: ExperimentPlan,
    cases: Sequence[TrainingCase],
    subsets: Sequence[FewShotSubset],
    test_only: set[str],
) -> Iterator[_Entry]:
    subjects = sorted({case.subject for case in cases})
    tested = [case for case in cases if not test_only or case.subject in test_only]
    seeds = tuple(dict.fromkeys(plan.protocol.few_shot.seeds))
    # Seeds that meet in one member of a source test the same network.
    members = {seed % plan.protocol.members: seed for seed in reversed(seeds)}.values()
    for name, cohorts in plan.sources.items():
        known = {region for cohort in cohorts for region in cohort.definition}
        if name not in plan.pretraining and set(plan.protocol.regions.names) <= known:
            for seed in sorted(members):
                yield Cell("zero_shot", name, 0, "none", seed), CellData((), tested), None
    drawn = []
    for subset in subsets:
        label = "+".join(str(subjects.index(subject)) for subject in subset.subjects)
        train = [case for case in cases if case.subject in subset.subjects]
        data = CellData(train, [case for case in tested if case.subject not in subset.subjects])
        drawn.append((subset.size, label, data))
    # Seed by seed, so that an unfinished grid holds every subset; thresholds know no chance.
    for seed, (n, label, data) in product(seeds, drawn):
        if seed == seeds[0]:
            yield Cell("threshold", "none", n, label), data, None
        for arm in plan.arms:
            for name in arm.sources or ("none",):
                yield Cell(arm.label, name, n, label, seed), data, arm
