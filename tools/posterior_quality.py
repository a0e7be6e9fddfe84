"""Compares cheap posterior samples with brute force, on networks trained on the phantom.

For each disease a small network is trained, fine-tuned with a posterior over its weights, and seen
over new cases. Times are processor time of one thread, so that others may use the machine.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg.config.build import build_cohort
from medseg.config.schema import DataConfig
from medseg.data.regions import RegionSettings
from medseg.data.training_set import (
    AugmentSettings,
    PatchSettings,
    TrainingCase,
    make_training_case,
)
from medseg.inference.focused import uncertain_box
from medseg.inference.posterior import Head, sample_probabilities
from medseg.inference.settings import PredictSettings
from medseg.losses.segmentation import LossSettings
from medseg.metrics.calibration import (
    calibration_error,
    negative_log_likelihood_nats,
    pool_reliability,
    reliability_bins,
)
from medseg.networks.presets import unet_short_3d
from medseg.preprocess.prepare import PreprocessSettings, prepare
from medseg.training.loop import TrainingSettings
from medseg.training.transfer import (
    MethodSettings,
    Source,
    TrainingPlan,
    finetune,
    train_from_scratch,
)
from medseg.variational.convert import to_deterministic
from medseg.variational.settings import VariationalSettings

REGIONS = {"tumour": ("core", "whole"), "ms": ("lesion",)}
CHANNELS = ("flair", "t1c")
Row = dict[str, Any]


def cases(disease: str, preset: str, count: int, spacing: float, seed: int) -> list[TrainingCase]:
    settings = {"disease": disease, "preset": preset, "n_subjects": count, "spacing_mm": spacing}
    settings |= {"modalities": list(CHANNELS), "seed": seed}
    cohort = build_cohort(DataConfig(kind="phantom", settings=settings), where="study")
    steps = PreprocessSettings(spacing_mm=(spacing, spacing, spacing))
    regions = RegionSettings(names=REGIONS[disease])
    return [
        make_training_case(
            prepare(cohort.source[i], channels=CHANNELS, settings=steps),
            regions=regions,
            definition=cohort.definition,
        )
        for i in range(count)
    ]


def trained(disease: str, *, spacing: float, steps: int, seed: int) -> nn.Module:
    regions = RegionSettings(names=REGIONS[disease])
    architecture = unet_short_3d(len(CHANNELS), regions.channels)
    plan = TrainingPlan(
        architecture=architecture,
        regions=regions,
        patch=PatchSettings(size=(32, 32, 32), batch_size=2),
        augment=AugmentSettings(),
        loss=LossSettings(),
        training=TrainingSettings(steps=steps, learning_rate=4e-3),
        seed=seed,
    )
    network, _ = train_from_scratch(cases(disease, "source", 12, spacing, seed), plan)
    shorter = replace(plan, training=replace(plan.training, steps=steps // 2, learning_rate=1e-3))
    spread = VariationalSettings(estimator="weight", relative_std=0.15)
    method = MethodSettings(method="gaussian", variational=spread)
    few = cases(disease, "target", 5, spacing, seed + 1)
    return finetune(few, shorter, method, source=Source(network, regions))[0].eval()


def drawn(network: nn.Module, case: TrainingCase, **changes: Any) -> tuple[Tensor, float]:
    """Return samples (K, n, x, y, z) and the processor seconds for them."""
    head = Head(RegionSettings(names=tuple(f"r{i}" for i in range(len(case.target)))))
    settings, began = PredictSettings(device="cpu", **changes), time.process_time()
    found = list(sample_probabilities(network, case.image, head=head, settings=settings))
    return torch.stack(found), time.process_time() - began


def compared(samples: Tensor, truth: Tensor, case: TrainingCase) -> list[Row]:
    """Return a row per region: ``truth`` are the samples of brute force, the same ones first."""
    brain, rows = case.brain.bool(), []
    inside, count = brain.numpy(), len(samples)
    for region, reference in enumerate(case.target > 0.5):
        ours, theirs = samples[:, region, brain], truth[:, region, brain]
        mean = samples[:, region].mean(dim=0).clamp(0, 1).numpy()
        a, b = ours - ours.mean(dim=0), theirs[:count] - theirs[:count].mean(dim=0)
        spread = [np.asarray((one > 0.5).sum(dim=1), dtype=float) for one in (ours, theirs)]
        low, high = np.percentile(spread[0], (5, 95))
        volume = int((reference & brain).sum())
        rows.append(
            {
                "nll_nats": negative_log_likelihood_nats(mean, reference.numpy(), inside=inside),
                "bins": reliability_bins(mean, reference.numpy(), inside=inside),
                "correlation": float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-9)),
                "volume_sd": spread[0].std(),
                "volume_sd_brute": spread[1].std(),
                "width": high - low,
                "covers_truth": float(low <= volume <= high),
                "covers_brute": float(((spread[1] >= low) & (spread[1] <= high)).mean()),
            }
        )
    return rows


def studied(network: nn.Module, test: list[TrainingCase], *, brute: int) -> list[Row]:
    """Return a row per way of sampling, averaged over cases and regions."""
    found: dict[str, list[Row]] = {}
    spent: dict[str, list[float]] = {}
    plain = to_deterministic(network)
    for case in test:
        truth, seconds = drawn(network, case, samples=brute)
        mean, once = drawn(plain, case)
        ways = {"one deterministic pass": (mean, once)}
        ways |= {f"full, K = {k}": (truth[:k], seconds * k / brute) for k in (3, 5, 10, brute)}
        ways["focused, K = 10"] = drawn(network, case, samples=10, posterior="focused")
        box = [side.stop - side.start for side in uncertain_box(mean[0])]
        for name, (samples, took) in ways.items():
            rows = [
                row | {"box": np.prod(box) / mean[0, 0].numel()}
                for row in compared(samples, truth, case)
            ]
            found.setdefault(name, []).extend(rows)
            spent.setdefault(name, []).append(took / once)
    return [_summary(name, rows, spent[name]) for name, rows in found.items()]


def _summary(name: str, rows: list[Row], ratios: list[float]) -> Row:
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "bins"}
    nll_error = np.std([row["nll_nats"] for row in rows]) / len(rows) ** 0.5
    ece = calibration_error(pool_reliability([row["bins"] for row in rows]))
    row = {"way": name, "n": len(rows), "times_one_pass": float(np.mean(ratios)), **mean}
    return row | {"nll_standard_error": float(nll_error), "ece": ece}


def markdown(results: dict[str, list[Row]]) -> str:
    columns = ("times_one_pass", "nll_nats", "ece", "correlation", "volume_sd", "volume_sd_brute")
    columns += ("width", "covers_truth", "covers_brute", "box")
    lines = []
    for disease, rows in results.items():
        lines += [f"| {disease} (n = {rows[0]['n']}) | " + " | ".join(columns) + " |"]
        lines += ["|---" * (len(columns) + 1) + "|"]
        for row in rows:
            values = " | ".join(f"{row[column]:.4g}" for column in columns)
            lines.append(f"| {row['way']} | {values} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/posterior_study", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds: does everything run?")
    parser.add_argument("--out", type=Path, default=Path("runs/posterior_study"))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    spacing, steps, count, brute = (6.0, 4, 1, 12) if chosen.quick else (3.0, 300, 6, 50)
    results = {}
    for disease in ("tumour",) if chosen.quick else tuple(REGIONS):
        network = trained(disease, spacing=spacing, steps=steps, seed=chosen.seed)
        test = cases(disease, "target", 5 + count, spacing, chosen.seed + 1)[5:]
        results[disease] = studied(network, test, brute=brute)
    chosen.out.mkdir(parents=True, exist_ok=True)
    text = markdown(results)
    (chosen.out / "posterior.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (chosen.out / "posterior.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
