"""Adds nnU-Net v2 to a finished experiment: methods nnunet (from scratch) and nnunet_pretrained.

Trained on the same subsets as the arm named by --like, for the same wall time, tested on the same
cases, scored by the same code. The time of an arm is that of all its members, that of a source that
of all its networks; each cell's time.json has them. Writes cells into the experiment's folder and
its tables anew; run it again after an interruption, or after the experiment went on: what is done
stays done. Its plan (spacing, patch, intensities) is made once, of the training subjects of all
subsets together: where there are no subjects for testing alone, this includes those that a cell is
tested on, which can only favour nnU-Net. On a CPU the same time is few steps for nnU-Net's larger
network: --times 10 shows what more time brings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.data.training_set import TrainingCase
    from medseg.experiment.cell import Cell
    from medseg.experiment.plan import ExperimentPlan
    from tools.nnunet.cells import Template

ROOT = Path(__file__).resolve().parents[2]
SCRATCH, PRETRAINED = "nnunet", "nnunet_pretrained"
TARGET = "Dataset501_target"

log = logging.getLogger("tools.nnunet")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/nnunet_arm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, help="folder of a finished experiment")
    add("--like", default="pr", help="method whose subsets and times count (default: pr)")
    add("--source", help="source to pretrain on (default: the first that METHOD has)")
    add("--seconds", type=float, help="per cell, instead of the arm's own time; named _7s")
    add("--source-seconds", type=float, help="pretraining, instead of the source networks' time")
    add("--times", type=float, default=1.0, help="multiply both times; such arms are named _x2")
    add("--device", default="cpu", help="cpu (default) or cuda")
    add("--peers", type=Path, required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


def suffix_of(chosen: argparse.Namespace) -> str:
    """Return what tells an arm with another time than the compared one's apart, by name."""
    times = "" if chosen.times == 1 else f"_x{chosen.times:g}"
    return times + ("" if chosen.seconds is None else f"_{chosen.seconds:g}s")


def load_run(run: Path) -> ExperimentPlan:
    """Return the plan of a run as it was recorded."""
    from medseg.config.finished import load_finished
    from medseg.errors import ConfigError
    from medseg.experiment.record import plan_key

    plan, key = load_finished(run)
    if key != plan_key(plan):
        raise ConfigError(
            f"All cells of a run are of one version of medseg, but those of {run} are of another.",
            hint="Run the experiment again, or check out the commit that run.json names.",
        )
    if plan.protocol.regions.mode != "regions":
        raise ConfigError("nnU-Net is compared on regions, but protocol.regions.mode is 'classes'.")
    return plan


class Arm:
    """Writes nnU-Net's data, has it run, and scores what it predicts.

    Parameters
    ----------
    chosen : Namespace
        The command line.
    """

    def __init__(self, chosen: argparse.Namespace) -> None:
        from medseg.experiment.sources import training_cases
        from tools.nnunet.cells import templates
        from tools.nnunet.data import make_scheme

        self.run: Path = chosen.run.resolve()
        self.work = self.run / "nnunet"
        self.chosen = chosen
        self.plan = load_run(self.run)
        self.work.mkdir(exist_ok=True)
        protocol = self.plan.protocol
        self.names = protocol.regions.names
        self.spacing = protocol.preprocess.spacing_mm or (1.0, 1.0, 1.0)
        cases = training_cases(
            self.plan.target, self.plan, regions=protocol.regions, allow_missing=False
        )
        subjects = sorted({case.subject for case in cases})
        self.cases = {f"case_{number:04d}": case for number, case in enumerate(cases)}
        self.templates = templates(self.run, chosen.like, chosen.source, subjects)
        self.source = self.templates[0].cell.source
        self.scheme = make_scheme(self.names, self.plan.target.definition)
        self.record = json.loads((self.run / "run.json").read_text())

    def variants(self) -> list[tuple[str, str]]:
        """Return method and source of each kind of cell."""
        suffix = suffix_of(self.chosen)
        scratch = [(SCRATCH + suffix, "none")]
        if self.source == "none":
            return scratch
        return [*scratch, (PRETRAINED + suffix, self.source)]

    def job(self) -> dict[str, Any]:
        """Write the data sets and return what the worker has to do."""
        from tools.nnunet.cells import source_dataset, source_seconds

        times = self.chosen.times
        trained = {subject for template in self.templates for subject in template.train}
        tested = {case for template in self.templates for case in template.test}
        train = {key: case for key, case in self.cases.items() if case.subject in trained}
        test = {key: case for key, case in self.cases.items() if case.identifier in tested}
        self._write(TARGET, train, self.names, self.scheme)
        images = self._images(test)
        names = [TARGET]
        source: dict[str, Any] = {}
        if self.source != "none":
            dataset = source_dataset(list(self.plan.sources), self.source)
            names.append(dataset)
            given = self.chosen.source_seconds
            source = {
                "dataset": dataset,
                "keys": self._write_source(dataset),
                "seconds": times * (given or source_seconds(self.run, self.source)),
                "seed": self.plan.protocol.seed,
            }
        cells = [
            {
                "out": str(self.work / "predictions" / self._cell(template, *variant).identifier),
                "keys": [key for key, case in train.items() if case.subject in template.train],
                "test": [key for key, case in test.items() if case.identifier in template.test],
                "like": template.cell.identifier,
                "seconds": times * (self.chosen.seconds or template.seconds),
                "seed": template.cell.seed,
                "pretrained": variant[0].startswith(PRETRAINED),
            }
            for template in self.templates
            for variant in self.variants()
        ]
        folders = {name: str(self.work / name) for name in ("raw", "preprocessed", "results")}
        return {
            **folders,
            "datasets": names,
            "device": self.chosen.device,
            "threads": int(self.record["machine"]["cores"]),
            "source": source,
            "test": images,
            "cells": cells,
        }

    def _cell(self, template: Template, method: str, source: str) -> Cell:
        return dataclasses.replace(template.cell, method=method, source=source)

    def _write(
        self, name: str, cases: dict[str, TrainingCase], names: Sequence[str], scheme: Any
    ) -> None:
        from tools.nnunet.data import write_dataset

        write_dataset(
            self.work / "raw" / name,
            cases,
            names=names,
            scheme=scheme,
            channels=self.plan.protocol.channels,
            spacing_mm=self.spacing,
        )

    def _write_source(self, dataset: str) -> list[str]:
        from medseg.experiment.plan import source_regions
        from medseg.experiment.sources import training_cases
        from tools.nnunet.data import make_scheme

        labels = self.work / "raw" / dataset / "labelsTr"
        # Written last, and worth keeping: a source may take minutes to generate.
        if not (labels.parent / "dataset.json").is_file():
            cohorts = self.plan.sources[self.source]
            regions = source_regions(cohorts, self.plan.protocol.regions)
            cases = [
                case
                for cohort in cohorts
                for case in training_cases(cohort, self.plan, regions=regions, allow_missing=True)
            ]
            wanted = {name: self.plan.target.definition[name] for name in self.names}
            scheme = make_scheme(regions.names, wanted)
            named = {f"case_{number:04d}": case for number, case in enumerate(cases)}
            self._write(dataset, named, regions.names, scheme)
        return sorted(path.name.removesuffix(".nii.gz") for path in labels.glob("*.nii.gz"))

    def _images(self, test: dict[str, TrainingCase]) -> dict[str, list[str]]:
        from tools.nnunet.data import write_channels

        folder = self.work / "raw" / "test"
        return {key: write_channels(folder, key, case, self.spacing) for key, case in test.items()}

    def perform(self, job: dict[str, Any]) -> None:
        """Have the worker do what is not done yet.

        Raises
        ------
        MedsegError
            It ended before all was done; its log says why.
        """
        from medseg.errors import TrainingError

        path, words = self.work / "job.json", self.work / "worker.log"
        path.write_text(json.dumps(job), encoding="utf-8")
        # nnU-Net is told its folders by the environment: that of this process alone.
        environment = os.environ | {
            "nnUNet_raw": job["raw"],
            "nnUNet_preprocessed": job["preprocessed"],
            "nnUNet_results": job["results"],
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "false",
            "OMP_NUM_THREADS": str(job["threads"]),
        }
        Path(job["results"]).mkdir(parents=True, exist_ok=True)
        command = [str(self.chosen.peers), "-m", "tools.nnunet.worker", str(path)]
        with words.open("a", encoding="utf-8") as output:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        if done.returncode:
            tail = words.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise TrainingError(
                f"nnU-Net must end with 0, but ended with {done.returncode}: {' '.join(tail)}",
                hint=f"See {words}; what it finished is kept.",
            )

    def score(self) -> int:
        """Score the predictions as cells of the run; return how many are new."""
        from medseg.experiment.cell import CellWriter, is_done
        from medseg.io.atomic import write_table

        new = 0
        for template in self.templates:
            for variant in self.variants():
                cell = self._cell(template, *variant)
                folder = self.work / "predictions" / cell.identifier
                if is_done(cell, self.run) or not (folder / "history.json").is_file():
                    continue
                writer = CellWriter(cell, self.plan, self.run, keep_example=False)
                for path in sorted(folder.glob("*.npy")):
                    self._add(writer, path)
                rows = json.loads((folder / "history.json").read_text())
                write_table(self.run / "histories" / f"{cell.identifier}.tsv", rows)
                # Beside the scores: how long it was given, and what it made of that.
                writer.folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / "time.json", writer.folder)
                writer.close()
                new += 1
        return new

    def _add(self, writer: Any, path: Path) -> None:
        import numpy as np
        import torch

        case = self.cases[path.stem]
        order = [self.scheme.names.index(name) for name in self.names]
        chance = torch.from_numpy(np.load(path)[order]) * case.brain
        writer.add(case, chance > 0.5, probability=chance)


def main() -> None:
    chosen = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from medseg.errors import MedsegError
    from medseg.experiment.tables import write_tables
    from tools.nnunet.cells import cells_of

    try:
        arm = Arm(chosen)
        job = arm.job()
        spent = sum(cell["seconds"] for cell in job["cells"]) + job["source"].get("seconds", 0.0)
        log.info("%d cells, %.0f s of training, log: %s", len(job["cells"]), spent, arm.work)
        try:
            arm.perform(job)
        finally:
            log.info("%d new cells", arm.score())
        done = [cell for cell, _ in cells_of(arm.run)]
        protocol = arm.plan.protocol
        write_tables(done, arm.run, seed=protocol.seed, members=protocol.members)
    except MedsegError as error:
        sys.exit(f"nnunet_arm: {error}")


if __name__ == "__main__":
    main()
