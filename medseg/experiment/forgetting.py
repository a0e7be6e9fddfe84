"""What fine-tuning costs on the source: held-out source cases, scored before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg.data.training_set import TrainingCase
from medseg.experiment.plan import ExperimentPlan
from medseg.experiment.sources import held_out_subjects, shared_regions, training_cases
from medseg.experiment.statistics import paired_difference
from medseg.inference.ensemble import joined
from medseg.inference.posterior import Head, predict_prepared
from medseg.inference.settings import PredictSettings
from medseg.io.atomic import read_table, write_table
from medseg.metrics.overlap import dice
from medseg.training.method import Source
from medseg.training.privileged import hide

Row = dict[str, object]
_FILE = "forgetting.tsv"
_KEY = ("method", "source", "n", "region")


class Forgetting:
    """Scores networks on the held-out cases of the source that they come from.

    Parameters
    ----------
    plan : ExperimentPlan
        Its ``protocol.forgetting`` says how many subjects; 0 scores nothing.
    """

    def __init__(self, plan: ExperimentPlan) -> None:
        self._plan = plan
        self._cases: dict[str, list[tuple[TrainingCase, tuple[str, ...]]]] = {}
        self._before: dict[object, tuple[nn.Module, list[dict[str, float]]]] = {}

    def score(
        self,
        where: Row,
        network: nn.Module,
        *,
        source: Source | None,
        head: Head,
        folder: Path,
        members: int = 1,
        hidden: Sequence[int] = (),
    ) -> None:
        """Write a row per held-out case and shared region into a cell's folder.

        Parameters
        ----------
        where : dict
            The cell: method, source, n, subset and seed.
        network : Module
            After fine-tuning, with the target's regions.
        source : Source, optional
            The networks that the members started from are the one before.
        head : Head
            Of ``network``.
        folder : Path
        members : int
            Trainings behind ``network``.
        hidden : sequence of int
            Channels that the arm does without.
        """
        if self._plan.protocol.forgetting == 0 or source is None:
            return
        cases = self._held_out(str(where["source"]))
        starts = [source.member(k).network for k in range(members)]
        key = (*(id(start) for start in starts), *hidden)
        known = self._before.get(key)
        if known is None:
            theirs = Head(source.regions, head.dims, window=head.window)
            start = joined(starts)
            known = start, [self._dice(start, c, r, theirs, hidden) for c, r in cases]
            self._before[key] = known
        rows: list[Row] = []
        for (case, regions), before in zip(cases, known[1], strict=True):
            after = self._dice(network, case, regions, head, hidden)
            found = {"case": case.identifier, "subject": case.subject}
            rows += [
                {**where, **found, "region": r, "dsc_before": before[r], "dsc": after[r]}
                for r in regions
            ]
        if rows:
            folder.mkdir(parents=True, exist_ok=True)
            write_table(folder / _FILE, rows)

    def _held_out(self, name: str) -> list[tuple[TrainingCase, tuple[str, ...]]]:
        if name not in self._cases:
            plan, held = self._plan, held_out_subjects(self._plan, name)
            self._cases[name] = [
                (case, shared_regions(cohort, plan))
                for cohort in plan.sources[name]
                if held and shared_regions(cohort, plan)
                for case in training_cases(
                    cohort, plan, regions=plan.protocol.regions, allow_missing=True, only=held
                )
            ]
        return self._cases[name]

    def _dice(
        self,
        network: nn.Module,
        case: TrainingCase,
        regions: tuple[str, ...],
        head: Head,
        hidden: Sequence[int] = (),
    ) -> dict[str, float]:
        protocol = self._plan.protocol
        device = str(next(network.parameters()).device)
        settings = PredictSettings(samples=protocol.samples, seed=protocol.seed, device=device)
        image = hide(case.image[None], hidden)[0]
        found = predict_prepared(network, image, head=head, settings=settings, inside=case.brain)
        masks: Tensor = found.mask
        rows = {name: case.regions[index] for index, name in enumerate(protocol.regions.names)}
        return {
            name: dice(masks[found.names.index(name)].numpy(), torch.gt(rows[name], 0.5).numpy())
            for name in regions
        }


def write_forgetting(folders: Sequence[Path], out: Path, *, seed: int) -> None:
    """Write ``forgetting.tsv``: DSC on held-out source cases before and after, by method.

    Differences are after minus before, with a bootstrap interval over the held-out subjects. Where
    no cell was scored on its source there is no table.
    """
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for path in (folder / _FILE for folder in folders):
        for row in read_table(path) if path.is_file() else ():
            groups.setdefault(tuple(row[name] for name in _KEY), []).append(row)
    rows: list[Row] = []
    for key, members in groups.items():
        before, after = ([float(row[c]) for row in members] for c in ("dsc_before", "dsc"))
        found = paired_difference(after, before, [row["subject"] for row in members], seed=seed)
        rows.append(
            {
                **dict(zip(_KEY, key, strict=True)),
                "n_cases": len({row["case"] for row in members}),
                "n_cells": len({(row["subset"], row["seed"]) for row in members}),
                "mean_dsc_before": sum(before) / len(before),
                "mean_dsc": sum(after) / len(after),
                "difference_dsc": found.difference,
                "low": found.low,
                "high": found.high,
            }
        )
    if rows:
        write_table(out / _FILE, rows)
