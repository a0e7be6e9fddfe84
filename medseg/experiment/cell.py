"""One cell of the grid: one method, one source, one subset; trained, predicted and scored."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medseg.data.training_set import TrainingCase
from medseg.experiment.baselines import fit_thresholds, threshold_masks
from medseg.experiment.forgetting import Forgetting
from medseg.experiment.plan import Arm, ExperimentPlan
from medseg.inference.ensemble import joined
from medseg.inference.posterior import Head, PreparedPrediction, predict_prepared
from medseg.inference.settings import PredictSettings
from medseg.io.atomic import atomic_path, write_json, write_table
from medseg.metrics.calibration import reliability_bins
from medseg.metrics.evaluate import evaluate_masks
from medseg.metrics.overlap import expected_dice
from medseg.seeding import derive_seed
from medseg.training.choice import Choice, chosen_method
from medseg.training.finish import after_training
from medseg.training.learn import learn
from medseg.training.loop import TrainingResult
from medseg.training.method import MethodSettings, Source, TrainingPlan
from medseg.training.objectives import MoreScans
from medseg.training.privileged import hide

log = logging.getLogger(__name__)
Row = dict[str, object]


@dataclass(frozen=True)
class Cell:
    """Which arm on which training subjects.

    Parameters
    ----------
    method : str
        Label of the arm.
    source : str
        "none" where the arm uses none.
    n : int
        Training subjects.
    subset : str
        Their numbers in the sorted list of target subjects, joined by "+".
    seed: int
        Decides initialisation, order of patches, augmentation and the source network started from.
    """

    method: str
    source: str
    n: int
    subset: str
    seed: int = 0

    @property
    def identifier(self) -> str:
        """Folder name; seed 0 has no part in it."""
        name = f"{self.method}_{self.source}_n{self.n}_{self.subset}"
        return f"{name}_s{self.seed}" if self.seed else name


@dataclass(frozen=True, eq=False)
class CellData:
    """Training and test cases of a cell; no subject is in both."""

    train: Sequence[TrainingCase]
    test: Sequence[TrainingCase]


class CellWriter:
    """Scores cases and keeps them in the cell's folder; the table of scores is written last.

    Parameters
    ----------
    cell : Cell
    plan : ExperimentPlan
    out : Path
        The run's folder.
    keep_example : bool
        Save the first test case's volumes for the report.
    """

    def __init__(self, cell: Cell, plan: ExperimentPlan, out: Path, *, keep_example: bool) -> None:
        self.cell, self._plan, self._out = cell, plan, out
        self._rows: list[Row] = []
        self._bins: list[Row] = []
        self._keep_example = keep_example

    def add(
        self,
        case: TrainingCase,
        masks: Tensor,
        *,
        probability: Tensor | None = None,
        prediction: PreparedPrediction | None = None,
    ) -> None:
        """Score one test case, region by region."""
        spacing_mm = self._spacing_mm()
        voxel_ml = float(np.prod(spacing_mm)) / 1000.0
        for index, region in enumerate(self._plan.protocol.regions.names):
            truth = case.regions[index].numpy() > 0.5
            chance = None if probability is None else probability[index].numpy()
            scores = evaluate_masks(
                masks[index].numpy(),
                truth,
                spacing_mm=spacing_mm,
                probability=chance,
                inside=case.brain.numpy(),
            )
            row: Row = {
                "method": self.cell.method,
                "source": self.cell.source,
                "n": self.cell.n,
                "subset": self.cell.subset,
                "seed": self.cell.seed,
                "case": case.identifier,
                "subject": case.subject,
                "region": region,
                **scores,
            }
            if chance is not None:
                row["expected_dsc"] = expected_dice(chance, masks[index].numpy())
            if prediction is not None:
                interval = prediction.volume(region, voxel_volume_mm3=voxel_ml * 1000.0)
                row["volume_low_ml"] = interval.low_ml
                row["volume_high_ml"] = interval.high_ml
                row["mean_std"] = float(prediction.statistics.std[index][masks[index]].mean())
            self._rows.append(row)
            if chance is not None:
                self._add_bins(chance, truth, case, region)
        if self._keep_example and prediction is not None:
            self._save_example(case, prediction)
            self._keep_example = False

    def _spacing_mm(self) -> tuple[float, float, float]:
        spacing = self._plan.protocol.preprocess.spacing_mm
        return spacing or (1.0, 1.0, 1.0)

    def _add_bins(
        self, chance: np.ndarray, truth: np.ndarray, case: TrainingCase, region: str
    ) -> None:
        for entry in reliability_bins(chance, truth, inside=case.brain.numpy()):
            self._bins.append({"region": region, **entry})

    def _save_example(self, case: TrainingCase, prediction: PreparedPrediction) -> None:
        regions = self._plan.protocol.regions.names
        tensors = {
            "image": case.image,
            "truth": case.regions.to(torch.uint8),
            "probability": prediction.statistics.probability.float(),
            "uncertainty": prediction.statistics.entropy_nats.float(),
        }
        folder = self._out / "examples"
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / f"{self.cell.identifier}.safetensors") as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
        mine = [row for row in self._rows if row["case"] == case.identifier]
        voxel_mm3 = float(np.prod(self._spacing_mm()))
        volumes = {}
        for region in regions:
            found = prediction.volume(region, voxel_volume_mm3=voxel_mm3)
            volumes[region] = [found.low_ml, found.median_ml, found.high_ml]
        write_json(
            folder / f"{self.cell.identifier}.json",
            {
                "case": case.identifier,
                "method": self.cell.method,
                "source": self.cell.source,
                "n": self.cell.n,
                "regions": list(regions),
                "modalities": list(self._plan.protocol.channels),
                "spacing_mm": list(self._spacing_mm()),
                "dsc": {str(row["region"]): row["dsc"] for row in mine},
                "volume_ml": volumes,
                "reference_volume_ml": {
                    str(row["region"]): row["reference_volume_ml"] for row in mine
                },
            },
        )

    @property
    def folder(self) -> Path:
        """Where the cell's tables go."""
        return self._out / "cells" / self.cell.identifier

    def close(self) -> None:
        """Write the tables; from now on the cell counts as done."""
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        columns = ("region", "bin", "confidence", "accuracy", "count")
        write_table(folder / "reliability.tsv", self._bins, columns=columns)
        write_table(folder / "scores.tsv", self._rows)


def is_done(cell: Cell, out: Path) -> bool:
    """Return whether the cell's table of scores is there."""
    return (out / "cells" / cell.identifier / "scores.tsv").is_file()


def run_threshold(cell: Cell, data: CellData, writer: CellWriter, plan: ExperimentPlan) -> None:
    """Score the thresholds that are best on the training cases, one for each region they know."""
    names = plan.protocol.regions.names
    outer = names.index("whole") if "whole" in names else len(names) - 1
    inner = names.index("core") if "core" in names else 0
    bright = names.index("enhancing") if "enhancing" in names else None
    cuts = fit_thresholds(data.train, outer=outer, inner=inner, bright=bright)
    for case in data.test:
        masks = torch.zeros(case.regions.shape, dtype=torch.bool)
        found = threshold_masks(case, cuts)
        masks[inner] = torch.from_numpy(found.inner)
        if bright is not None:
            masks[bright] = torch.from_numpy(found.bright)
        # Last: where there is one region, it is the outer one.
        masks[outer] = torch.from_numpy(found.outer)
        writer.add(case, masks)
    writer.close()


def run_network(
    network: nn.Module,
    data: CellData,
    writer: CellWriter,
    plan: ExperimentPlan,
    *,
    channels: Sequence[int],
    head: Head,
    hidden: Sequence[int] = (),
) -> None:
    """Predict and score the test cases.

    ``channels`` picks the target's regions from the head; the image is shown without ``hidden``.
    Every subset, seed and case draws posterior samples of its own: with the same few draws in all
    of them their luck would pass for a property of the method.
    """
    settings = PredictSettings(samples=plan.protocol.samples, device=_device(network))
    picked = list(channels)
    for case in data.test:
        names = ("posterior", writer.cell.subset, writer.cell.seed, case.identifier)
        settings = replace(settings, seed=derive_seed(plan.protocol.seed, *names))
        image = hide(case.image[None], hidden)[0]
        whole = predict_prepared(network, image, head=head, settings=settings, inside=case.brain)
        statistics = type(whole.statistics)(
            samples=whole.statistics.samples,
            probability=whole.statistics.probability[picked],
            expected_entropy_nats=whole.statistics.expected_entropy_nats[picked],
            variance=whole.statistics.variance[picked],
        )
        prediction = PreparedPrediction(
            names=plan.protocol.regions.names,
            statistics=statistics,
            mask=whole.mask[picked],
            sample_voxels=whole.sample_voxels[:, picked],
        )
        probability = statistics.probability * case.brain
        writer.add(case, prediction.mask, probability=probability, prediction=prediction)
    writer.close()


class CellTraining:
    """Trains the networks of cells; methods that share a training have it done once.

    The batches depend on subset, seed and the number of the member alone, not on the method.

    Parameters
    ----------
    plan : ExperimentPlan
    out : Path
        The run's folder.
    """

    def __init__(self, plan: ExperimentPlan, out: Path) -> None:
        self._plan, self._out = plan, out
        self.forgetting = Forgetting(plan)
        self._key: object = None
        self._choices: dict[MethodSettings, Choice] = {}
        self._trained: list[tuple[nn.Module, TrainingResult]] = []

    def network(
        self,
        cell: Cell,
        data: CellData,
        arm: Arm,
        *,
        source: Source | None,
        more: MoreScans | None = None,
    ) -> tuple[nn.Module, float]:
        """Return network and temperature of a cell; what the last call trained is taken from it."""
        plan, channels = self.training_plan(cell), self._plan.protocol.channels
        key = (cell.source, cell.subset, cell.seed, arm.trained_as)
        if self._key != key:
            self._key, self._trained, self._choices = key, [], {}
        alone = replace(arm.method, members=1)
        if alone not in self._choices:
            self._choices[alone] = chosen_method(
                data.train,
                plan,
                alone,
                arm.objective,
                source=source,
                more=more,
                channels=channels,
            )
        choice = self._choices[alone]
        if choice.rows:
            write_table(self._out / "choices" / f"{cell.identifier}.tsv", choice.rows)
        members = []
        for number in range(arm.method.members):
            mine, start = plan.member(number), None if source is None else source.member(number)
            if number == len(self._trained):
                found = learn(
                    data.train,
                    mine,
                    choice.method.trained_as,
                    arm.objective,
                    source=start,
                    more=more,
                    channels=channels,
                )
                self._trained.append(found)
            trained, result = self._trained[number]
            name = f"{cell.identifier}_member{number}" if number else cell.identifier
            write_table(self._out / "histories" / f"{name}.tsv", result.history)
            members.append(after_training(trained, mine, choice.method, source=start))
        return joined(members), choice.temperature

    def training_plan(self, cell: Cell) -> TrainingPlan:
        """Return how the networks of a cell are trained, but for the method."""
        protocol = self._plan.protocol
        names = ("target", cell.subset, *([cell.seed] if cell.seed else []))
        return TrainingPlan(
            architecture=self._plan.architecture(len(protocol.channels), protocol.regions.channels),
            regions=protocol.regions,
            patch=protocol.patch,
            augment=protocol.augment,
            loss=protocol.loss,
            training=protocol.target_training,
            seed=derive_seed(protocol.seed, *names),
            channels=protocol.channels,
            spacing_mm=protocol.preprocess.spacing_mm or (1.0, 1.0, 1.0),
        )


def _device(network: nn.Module) -> str:
    return str(next(network.parameters()).device)
