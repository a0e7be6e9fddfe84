"""What a made FLAIR is worth to a network that segments lesions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg.data.regions import MS_LESION, RegionSettings
from medseg.data.training_set import AugmentSettings, PatchSettings, make_training_case
from medseg.inference.posterior import Head, predict_prepared
from medseg.losses.segmentation import LossSettings
from medseg.metrics.overlap import dice
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings, prepare
from medseg.scan import Case, Scan
from medseg.training.checkpoint import Checkpoints
from medseg.training.loop import TrainingSettings
from medseg.training.transfer import TrainingPlan, train_from_scratch
from tools.translation.cohorts import Cohort, Sizes
from tools.translation.images import Maker, Row

REGIONS = RegionSettings(names=("lesion",))
PREPROCESS = PreprocessSettings(spacing_mm=None)
#: Name -> channels, and chance that one is hidden in training.
SEGMENTERS = {
    "all three": (("flair", "t1", "t2"), 0.0),
    "all three, hidden at times": (("flair", "t1", "t2"), 0.3),
    "T1 and T2 alone": (("t1", "t2"), 0.0),
}


def train_segmenter(
    name: str, training: Cohort, sizes: Sizes, *, folder: Path, seed: int
) -> nn.Module:
    """Return a trained network; a training that was cut short goes on."""
    channels, hidden = SEGMENTERS[name]
    cases = [
        make_training_case(
            prepare(case, channels=channels, settings=PREPROCESS),
            regions=REGIONS,
            definition=MS_LESION,
        )
        for case in training.cases
    ]
    side = min(32, 4 * (min(training.cases[0].grid.shape) // 4))
    plan = TrainingPlan(
        architecture=UNetSettings(
            in_channels=len(channels), out_channels=1, widths=sizes.segment_widths, decoder_convs=1
        ),
        regions=REGIONS,
        patch=PatchSettings(size=(side, side, side), batch_size=2, lesion_fraction=0.7),
        augment=AugmentSettings(elastic=0.0, modality_dropout=hidden),
        loss=LossSettings(),
        training=TrainingSettings(steps=sizes.segment_steps, learning_rate=4e-3, log_every=100),
        seed=seed,
    )
    checkpoints = Checkpoints(folder=folder, key=f"{name} {plan}")
    return train_from_scratch(cases, plan, checkpoints=checkpoints)[0]


def segment_rows(
    networks: dict[str, nn.Module], makers: dict[str, Maker], test: Cohort
) -> list[Row]:
    """Return the DSC of each network with the true FLAIR, none, and each made one."""
    rows: list[Row] = []
    for case in test.cases:
        if case.label is None:
            raise ValueError(f"case {case.identifier!r} has no label")
        true = (case.label.data > 0).numpy()
        without = replace(case, scans={k: v for k, v in case.scans.items() if k != "flair"})
        given = {"true FLAIR": case, "zero-filled": without}
        for method, make in makers.items():
            # Measured in the brain, so its offset and scale do not matter.
            made = Scan(make(without), case.grid)
            given[f"{method} FLAIR"] = replace(case, scans={**case.scans, "flair": made})
        for name, network in networks.items():
            channels = SEGMENTERS[name][0]
            for what, seen in given.items():
                if "flair" not in channels and what != "zero-filled":
                    continue
                label = f"{name}: {'no FLAIR needed' if 'flair' not in channels else what}"
                found = _mask(network, seen, channels)
                rows.append(
                    {"method": label, "case": case.identifier, "dsc": dice(found.numpy(), true)}
                )
    return rows


def _mask(network: nn.Module, case: Case, channels: tuple[str, ...]) -> Tensor:
    prepared = prepare(case, channels=channels, settings=PREPROCESS, allow_missing=True)
    head = Head(REGIONS)
    with torch.no_grad():
        mask = predict_prepared(network, prepared.image, head=head).mask[0] & prepared.brain
    return prepared.to_source(mask[None].to(torch.uint8), mode="nearest")[0] > 0
