"""A training that takes a blink, and a program that starts several and kills each with SIGKILL.

``python tests/training/toy.py FOLDER`` leaves one folder of checkpoints per scenario, as a power
cut would.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg.data.regions import RegionSettings
from medseg.data.training_set import AugmentSettings, PatchSampler, PatchSettings, TrainingCase
from medseg.losses.segmentation import LossSettings
from medseg.networks.unet import UNetSettings
from medseg.priors.fit import FitPriorSettings, fit_priors
from medseg.priors.harvest import harvest
from medseg.seeding import torch_generator
from medseg.training import checkpoint
from medseg.training.checkpoint import Checkpoints
from medseg.training.loop import TrainingResult, TrainingSettings, train
from medseg.training.objective import SegmentationObjective
from medseg.training.transfer import (
    MethodSettings,
    Source,
    TrainingPlan,
    finetune,
    new_network,
    train_from_scratch,
)
from medseg.variational.elbo import ElboSettings

STEPS, EVERY = 9, 3
#: Scenario to the number of the batch at which the process dies: each is past a checkpoint, though
#: batches are prepared two ahead.
KILLED_AT = {
    "plain": 7,
    "fresh head": 5,
    "l2sp": 5,
    "gaussian": 7,
    "dwp": 5,
    "validated": 7,
    # Dies with the tensors of step 6 on the disk and the JSON still that of step 3.
    "while saving": STEPS,
}


def regions(*names: str) -> RegionSettings:
    """Return sigmoid regions, by default the two of the toy."""
    return RegionSettings(mode="regions", names=names or ("core", "whole"))


def cases(n: int = 2, *, n_regions: int = 2, seed: int = 0) -> list[TrainingCase]:
    """Return noise with bright balls; region 0 is the inner half of region 1."""
    axis = torch.arange(10.0) - 4.5
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    made = []
    for number in range(n):
        noise = torch_generator(seed, "toy case", number)
        radii = (1.6, 3.2)[-n_regions:]
        target = torch.stack([(distance < radius + 0.3 * number).float() for radius in radii])
        image = 0.3 * torch.randn(2, 10, 10, 10, generator=noise) + 2 * target.sum(0)
        made.append(
            TrainingCase(
                identifier=f"case{number}",
                subject=f"subject{number}",
                image=image,
                present=torch.ones(2, dtype=torch.bool),
                target=target,
                known=torch.ones(n_regions, dtype=torch.bool),
                brain=torch.ones(10, 10, 10, dtype=torch.bool),
            )
        )
    return made


def training(**changes: object) -> TrainingSettings:
    """Return settings of a few steps on the CPU."""
    base = TrainingSettings(
        steps=STEPS,
        learning_rate=1e-2,
        warm_up_steps=2,
        log_every=2,
        device="cpu",
        precision="float32",
    )
    return replace(base, **changes)


def plan(*, seed: int = 1, names: tuple[str, ...] = ("core", "whole"), **changes: object):
    """Return the plan of the toy; ``changes`` go to the training settings."""
    return TrainingPlan(
        architecture=UNetSettings(
            in_channels=2,
            out_channels=len(names),
            widths=(4, 8),
            encoder_convs=1,
            decoder_convs=1,
            bias=True,
        ),
        regions=regions(*names),
        patch=PatchSettings(size=(8, 8, 8), batch_size=2),
        augment=AugmentSettings(elastic=0.0, resolution=0.0),
        loss=LossSettings(),
        training=training(**changes),
        seed=seed,
    )


def source(*, with_prior: bool = True) -> Source:
    """Return two untrained source networks with the prior over their filters."""
    networks = [new_network(plan().architecture, seed=seed) for seed in (5, 6)]
    kernels = harvest(networks)
    priors = None
    if with_prior:
        small = {"latent": 2, "hidden": (8,), "fit": {"max_steps": 5}}
        options = FitPriorSettings(grouping="conditioned", model=small, min_kernels=2)
        priors = fit_priors(kernels, options, seed=3)
    return Source(network=networks[0], regions=regions(), kernels=kernels, priors=priors)


def sampler(of_plan: TrainingPlan) -> PatchSampler:
    """Return the batches of a plan."""
    return PatchSampler(cases(), patch=of_plan.patch, augment=of_plan.augment, seed=of_plan.seed)


def smallness(network: nn.Module) -> float:
    """Return a score that is best at the start: the weights of the toy only grow."""
    return -float(sum(p.detach().double().abs().sum() for p in network.parameters()))


def run_scenario(name: str, checkpoints: Checkpoints | None) -> tuple[nn.Module, TrainingResult]:
    """Run one of the scenarios to its end, or until something kills it."""
    method = MethodSettings(
        method=name if name in ("l2sp", "gaussian", "dwp") else "pr",
        elbo=ElboSettings(kl_fraction=0.3, warm_up_steps=4),
    )
    if name == "validated":
        made = plan(validate_every=2, patience=3)
        network = new_network(made.architecture, seed=made.seed)
        objective = SegmentationObjective(mode="regions", settings=made.loss, network=network)
        result = train(
            network,
            objective,
            sampler(made),
            settings=made.training,
            checkpoints=checkpoints,
            validate=smallness,
        )
        return network, result
    if name in ("plain", "while saving"):
        return train_from_scratch(cases(), plan(), checkpoints=checkpoints)
    names = ("whole", "new") if name == "fresh head" else ("whole", "core")
    return finetune(
        cases(),
        plan(names=names),
        method,
        source=source(with_prior=name == "dwp"),
        checkpoints=checkpoints,
    )


def checkpoints_in(folder: Path, scenario: str, **changes: object) -> Checkpoints:
    """Return where a scenario keeps its state."""
    made = Checkpoints(folder=folder / scenario, key=scenario, every_steps=EVERY)
    return replace(made, **changes)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a network's state."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(scenario: str) -> None:
    """Make this process die in the middle of a training."""
    ask, save = PatchSampler.batch, checkpoint.write_json
    written: list[Path] = []

    def batch(self: PatchSampler, step: int):
        if step == KILLED_AT[scenario]:
            _die()
        return ask(self, step)

    def write_json(path: Path, obj: object) -> None:
        if scenario == "while saving" and written:
            (path.parent / ".0.part-checkpoint-9.safetensors").write_bytes(b"half")
            _die()
        written.append(path)
        save(path, obj)

    PatchSampler.batch = batch
    checkpoint.write_json = write_json


def main(folder: Path) -> None:
    """Run each scenario in a process of its own, and write how each ended."""
    torch.set_num_threads(1)
    for scenario in KILLED_AT:
        child = os.fork()
        if child == 0:
            _arm(scenario)
            run_scenario(scenario, checkpoints_in(folder, scenario))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        (folder / f"{scenario}.exit").write_text(str(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
