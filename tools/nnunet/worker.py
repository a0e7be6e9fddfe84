"""Runs where nnU-Net is installed: ``python -m tools.nnunet.worker JOB``.

Plans and preprocesses as nnU-Net does, trains each cell for a number of seconds instead of a number
of epochs, and keeps the probabilities of the test cases. A cell that is done is not done again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprint_dataset,
    plan_experiment_dataset,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlans.json"
#: Environment variable with the number of processes that load and augment.
LOADERS = "nnUNet_n_proc_DA"


class TimedTrainer(nnUNetTrainer):
    """nnU-Net's trainer; its polynomial learning rate runs over seconds, not over epochs."""

    keys: list[str]

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return all cases to train on; those to validate on are looked at between epochs only."""
        return list(self.keys), list(self.keys[:1])

    def plot_network_architecture(self) -> None:
        """Draw nothing."""

    def train_for(self, seconds: float) -> list[dict[str, float]]:
        """Train for so long; return a row of step, seconds and loss for every step."""
        self.on_train_start()
        self.network.train()
        rows: list[dict[str, float]] = []
        started, spent = time.perf_counter(), 0.0
        while not rows or spent < seconds:
            rate = self.initial_lr * max(1.0 - spent / seconds, 0.0) ** 0.9
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self.train_step(next(self.dataloader_train))["loss"]
            spent = time.perf_counter() - started
            rows.append({"step": len(rows) + 1, "seconds": spent, "loss": float(loss)})
        return rows


def prepare(job: dict[str, Any]) -> None:
    """Plan on the training cases of the target; preprocess all sets by that one plan."""
    # The planner sets as many threads as there are loading processes, and none is not allowed ...
    os.environ[LOADERS] = "1"
    raw, preprocessed = Path(job["raw"]), Path(job["preprocessed"])
    target, *others = job["datasets"]
    if not (preprocessed / target / PLANS).is_file():
        number = int(target.removeprefix("Dataset").split("_")[0])
        extract_fingerprint_dataset(number, num_processes=1, show_progress_bar=False)
        plan_experiment_dataset(number)
    for name in others:
        # As nnU-Net prescribes for pretraining: the target's plan also serves the source.
        folder = preprocessed / name
        folder.mkdir(parents=True, exist_ok=True)
        plans = json.loads((preprocessed / target / PLANS).read_text())
        (folder / PLANS).write_text(json.dumps(plans | {"dataset_name": name}))
        shutil.copy(preprocessed / target / "dataset_fingerprint.json", folder)
        shutil.copy(raw / name / "dataset.json", folder)
    for name in job["datasets"]:
        preprocess(raw / name, preprocessed / name)
    # ... but training loads in its own process: others would take the time that is measured.
    os.environ[LOADERS] = "0"


def preprocess(raw: Path, folder: Path) -> None:
    """Preprocess each case that is not there yet, in this process: small cases need no pool."""
    plans = PlansManager(json.loads((folder / PLANS).read_text()))
    chosen = plans.get_configuration(CONFIGURATION)
    about = json.loads((folder / "dataset.json").read_text())
    out = folder / chosen.data_identifier
    out.mkdir(parents=True, exist_ok=True)
    worker = chosen.preprocessor_class(verbose=False)
    for key, files in get_filenames_of_train_images_and_targets(str(raw), about).items():
        if not (out / f"{key}.pkl").is_file():
            worker.run_case_save(
                str(out / key), files["images"], files["label"], plans, chosen, about
            )


def make_trainer(job: dict[str, Any], name: str, keys: list[str], seed: int) -> TimedTrainer:
    folder = Path(job["preprocessed"]) / name
    plans = json.loads((folder / PLANS).read_text()) | {"continue_training": False}
    about = json.loads((folder / "dataset.json").read_text())
    np.random.seed(seed)  # noqa: NPY002 - nnU-Net draws from the global generators
    torch.manual_seed(seed)
    trainer = TimedTrainer(plans, CONFIGURATION, "all", about, torch.device(job["device"]))
    trainer.keys = keys
    trainer.initialize()
    return trainer


def pretrain(job: dict[str, Any]) -> str:
    """Train on the source, once; return nnU-Net's checkpoint."""
    source = job["source"]
    path = Path(job["results"]) / f"{source['dataset']}_{source['seconds']:.0f}s.pth"
    if not path.is_file():
        trainer = make_trainer(job, source["dataset"], source["keys"], source["seed"])
        rows = trainer.train_for(source["seconds"])
        trainer.save_checkpoint(str(path))
        path.with_suffix(".json").write_text(json.dumps(rows))
    return str(path)


def predict(trainer: TimedTrainer, images: dict[str, list[str]], out: Path) -> None:
    """Write the probabilities of every case, shape (n, x, y, z), with nnU-Net's own inference."""
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    tool = nnUNetPredictor(
        perform_everything_on_device=trainer.device.type == "cuda",
        device=trainer.device,
        allow_tqdm=False,
    )
    tool.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    reader = trainer.plans_manager.image_reader_writer_class()
    for key, files in images.items():
        image, about = reader.read_images(files)
        _, chance = tool.predict_single_npy_array(image, about, save_or_return_probabilities=True)
        # nnU-Net counts z, y, x; a softmax also has the background.
        share = np.asarray(chance, dtype=np.float32).transpose(0, 3, 2, 1)
        inside = share if trainer.label_manager.has_regions else share[1:]
        np.save(out / f"{key}.npy", inside)


def times_of(
    job: dict[str, Any], cell: dict[str, Any], rows: list[dict[str, float]]
) -> dict[str, Any]:
    """Return how long a cell was trained, for people."""
    return {
        "like": cell["like"],
        "seconds_given": cell["seconds"],
        "seconds": rows[-1]["seconds"],
        "steps": len(rows),
        "source": job["source"]["dataset"] if cell["pretrained"] else None,
        "source_seconds_given": job["source"]["seconds"] if cell["pretrained"] else None,
        "device": job["device"],
        "threads": job["threads"],
    }


def run(job: dict[str, Any]) -> None:
    prepare(job)
    for cell in job["cells"]:
        out = Path(cell["out"])
        if (out / "history.json").is_file():
            continue
        out.mkdir(parents=True, exist_ok=True)
        trainer = make_trainer(job, job["datasets"][0], cell["keys"], cell["seed"])
        if cell["pretrained"]:
            load_pretrained_weights(trainer.network, pretrain(job))
        rows = trainer.train_for(cell["seconds"])
        predict(trainer, {key: job["test"][key] for key in cell["test"]}, out)
        (out / "time.json").write_text(json.dumps(times_of(job, cell, rows), indent=1))
        # Written last: from now on the cell counts as done.
        (out / "history.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    wanted = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(wanted["threads"])
    run(wanted)
