# ruff: noqa: E501  tables of invented numbers read better in long lines
"""A run folder of invented numbers that looks like a real one: for tests, and to look at a report.

``python tests/report/fake_run.py FOLDER`` writes the folder and its report.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.ndimage import gaussian_filter

from medseg.io.atomic import write_table
from medseg.report import write_report

REGIONS = ("core", "whole")
LEVELS = {  # core, whole at n = 0 or the largest n
    "threshold": (0.46, 0.79), "zero_shot": (0.44, 0.66), "ri": (0.45, 0.75), "pr": (0.50, 0.77),
    "prf": (0.41, 0.70), "l2sp": (0.51, 0.77), "wise": (0.60, 0.80), "gaussian": (0.56, 0.78),
    "dwp": (0.62, 0.81), "dwp_prior": (0.53, 0.77), "dwp_resampled": (0.57, 0.79),
}  # fmt: skip
METHODS = ("pr", "prf", "l2sp", "wise", "gaussian", "dwp", "dwp_prior", "dwp_resampled")


@dataclass(frozen=True)
class Plan:
    """How large the invented run is."""

    cases: tuple[str, ...] = tuple(f"tumour_{i:02d}" for i in range(8))
    sizes: tuple[int, ...] = (1, 2, 3)
    sources: tuple[str, ...] = ("ms", "generated", "both")
    methods: tuple[str, ...] = METHODS
    subsets: int = 3
    examples: int = 2
    seed: int = 0


DEFAULT_PLAN = Plan()


def _arms(plan: Plan) -> list[tuple[str, str, int]]:
    arms = [("threshold", "none", 0)] + [("zero_shot", s, 0) for s in plan.sources]
    arms += [("ri", "none", n) for n in plan.sizes]
    return arms + [(m, s, n) for m in plan.methods for s in plan.sources for n in plan.sizes]


def _score_row(rng: np.random.Generator, dsc: float, reference: float) -> dict[str, object]:
    volume = reference * float(np.exp(rng.normal(0, 0.45 * (1 - dsc))))
    spread = reference * (0.05 + 0.5 * (1 - dsc)) * float(rng.uniform(0.3, 1.2))
    sensitivity, precision = rng.uniform(0.5, 1, 2)
    return {
        "dsc": dsc, "iou": dsc / (2 - dsc), "hd95_mm": 28 * (1 - dsc) + rng.gamma(2, 1.5),
        "nsd": min(1, dsc * 0.95), "volume_error_ml": volume - reference,
        "volume_error_percent": 100 * (volume / reference - 1), "lesion_sensitivity": sensitivity,
        "lesion_precision": precision,
        "lesion_f1": 2 * sensitivity * precision / (sensitivity + precision),
        "nll_nats": 0.35 * (1 - dsc) + rng.uniform(0, 0.03), "brier": 0.12 * (1 - dsc),
        "ece": 0.09 * (1 - dsc), "volume_ml": volume, "reference_volume_ml": reference,
        "volume_low_ml": max(0, volume - spread), "volume_high_ml": volume + spread,
        "mean_std": rng.uniform(0.02, 0.1),
    }  # fmt: skip


def score_rows(plan: Plan) -> list[dict[str, object]]:
    rng = np.random.default_rng(plan.seed)
    hardness = {(c, r): rng.normal(0, 0.11) for c in plan.cases for r in REGIONS}
    volumes = {
        (c, r): rng.uniform(12, 60) * (1 + (r == "whole")) for c in plan.cases for r in REGIONS
    }
    bonus = {"none": 0.0, "ms": -0.05, "generated": 0.01, "both": 0.02}
    rows = []
    for method, source, n in _arms(plan):
        subsets = list(combinations(range(len(plan.cases)), n))[: plan.subsets] if n else [()]
        for subset in subsets:
            for index, case in enumerate(plan.cases):
                for place, region in enumerate(REGIONS):
                    if index in subset:
                        continue
                    level = LEVELS.get(method, (0.5, 0.7))[place] + bonus.get(source, 0.0)
                    level -= 0.05 * (max(plan.sizes) - n) if n else 0
                    dsc = float(
                        np.clip(level + hardness[case, region] + rng.normal(0, 0.05), 0.02, 0.96)
                    )
                    volume = float(volumes[case, region])
                    rows.append(
                        {"method": method, "source": source, "n": n, "subset": "+".join(map(str, subset)),
                         "seed": 0, "case": case, "region": region, **_score_row(rng, dsc, volume)}
                    )  # fmt: skip
    return rows


def _per_case(rows: Sequence[dict], key: str = "dsc") -> dict[str, float]:
    found = defaultdict(list)
    for row in rows:
        found[row["case"]].append(row[key])
    return {case: float(np.mean(values)) for case, values in found.items()}


def _interval(values: Sequence[float]) -> tuple[float, float]:
    draws = np.random.default_rng(1).integers(0, len(values), (500, len(values)))
    low, high = np.quantile(np.asarray(values)[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)


def summary_rows(scores: Sequence[dict]) -> list[dict[str, object]]:
    groups = defaultdict(list)
    for row in scores:
        groups[row["method"], row["source"], row["n"], row["region"]].append(row)
    table = []
    for (method, source, n, region), rows in groups.items():
        values = list(_per_case(rows).values())
        low, high = _interval(values)
        others = [
            k
            for k in rows[0]
            if k not in ("method", "source", "n", "subset", "seed", "case", "region", "dsc")
        ]
        table.append(
            {"method": method, "source": source, "n": n, "region": region, "n_cases": len(values),
             "n_cells": len({r["subset"] for r in rows}), "mean_dsc": float(np.mean(values)),
             "low_dsc": low, "high_dsc": high, **{k: float(np.mean([r[k] for r in rows])) for k in others}}
        )  # fmt: skip
    return table


def paired_rows(scores: Sequence[dict]) -> list[dict[str, object]]:
    groups = defaultdict(list)
    for row in scores:
        groups[row["method"], row["source"], row["n"], row["region"]].append(row)
    table = []
    for (method, source, n, region), rows in groups.items():
        if n == 0:
            continue
        rivals = [("threshold", "none", 0), ("zero_shot", source, 0), ("ri", "none", n)]
        rivals += [("pr", source, n), ("wise", source, n)]
        for other in rivals:
            against = other[0]
            if against == method or (*other, region) not in groups:
                continue
            one, two = _per_case(rows), _per_case(groups[(*other, region)])
            gaps = [one[c] - two[c] for c in one if c in two]
            low, high = _interval(gaps)
            table.append(
                {"method": method, "source": source, "n": n, "region": region, "against": against,
                 "difference_dsc": float(np.mean(gaps)), "low": low, "high": high,
                 "p_holm": 1.0, "p_wilcoxon": float(min(1, 0.5 / (1e-3 + abs(np.mean(gaps)) * 40))), "n_cases": len(gaps)}
            )  # fmt: skip
    return table


def _histories(folder: Path, plan: Plan) -> None:
    rng = np.random.default_rng(7)
    names = [(f"source_{s}_member{m}", False) for s in plan.sources for m in range(2)]
    n = max(plan.sizes)
    subsets = ["+".join(map(str, c)) for c in list(combinations(range(4), n))[: plan.subsets]]
    names += [
        (f"{m}_{s}_n{n}_{subset}", m.startswith(("dwp", "gauss")))
        for m in plan.methods
        for s in plan.sources
        for subset in subsets
    ]
    for name, variational in names:
        rows = []
        for step in range(0, 600, 4):
            data = 2.4e5 * np.exp(-step / 160) + 4e4 + rng.normal(0, 6e3)
            kl = 9e3 + 3e3 * (1 - np.exp(-step / 200)) + rng.normal(0, 60)
            rows.append(
                {"step": step, "data_nats": data, "kl_nats": kl if variational else "n/a",
                 "beta": 0.3 if variational else "n/a", "loss": data / 1e5, "learning_rate": 1e-3,
                 "cross_entropy_nats": data / 1e6, "dice": 0.4,
                 "validation_dsc": 0.75 * (1 - np.exp(-step / 150)) + rng.normal(0, 0.01) if step % 40 == 0 else "n/a",
                 "seconds": step * 0.2}
            )  # fmt: skip
        write_table(folder / f"{name}.tsv", rows)


def _priors(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    smooth = lambda m, s: gaussian_filter(rng.standard_t(4, (m, 3, 3, 3)), (0, s, s, s)) * 0.08  # noqa: E731
    sets = {
        "real": smooth(400, 0.6),
        "sampled_vae_layer": smooth(400, 0.65),
        "sampled_gaussian_layer": smooth(400, 0.5),
        "sampled_diagonal_layer": smooth(400, 0.0),
    }
    save_file({k: v.astype(np.float32) for k, v in sets.items()}, folder / "kernels.safetensors")
    rows = [
        {"prior": kind, "kind": kind, "grouping": grouping, "layer": layer, "sd_nats": 10.2,
         "nats_per_kernel": nats if layer == "all" else 1.0, "n_kernels": 8624 if layer == "all" else 27,
         "bound": "unnormalised" if kind == "rbm" else "exact"}
        for layer in ("all", "stem") for kind, grouping, nats in (("diagonal", "layer", 37.21), ("gaussian", "layer", 43.87), ("gaussian", "group", 42.1),
                                     ("vae", "layer", 44.02), ("vae", "group", 43.1), ("vae", "conditioned", 43.76), ("rbm", "layer", None))
    ]  # fmt: skip
    write_table(folder / "held_out.tsv", rows)


def _example(folder: Path, index: int, case: str) -> None:
    rng = np.random.default_rng(index)
    shape = (56, 64, 40)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, s) for s in shape], indexing="ij")
    head = (x / 0.85) ** 2 + (y / 0.95) ** 2 + (z / 0.9) ** 2
    wobble = gaussian_filter(rng.normal(size=shape), 4) * 6
    lesion = np.sqrt((x - 0.35) ** 2 + (y + 0.15) ** 2 + ((z - 0.1) * 0.7) ** 2) + 0.12 * wobble
    truth = np.stack([lesion < 0.22, lesion < 0.38])
    texture = gaussian_filter(rng.normal(size=shape), 1.5)
    brain = head < 1
    flair = (
        0.6 + 0.3 * texture + 0.5 * (truth[1] - 0.4 * truth[0]) - 0.35 * (np.hypot(x, y / 2) < 0.12)
    ) * brain
    t1c = (
        0.5 + 0.3 * texture + 0.9 * (truth[0] & (lesion > 0.15)) - 0.2 * (np.hypot(x, y / 2) < 0.12)
    ) * brain
    noisy = lesion + 0.10 * gaussian_filter(rng.normal(size=shape), 3) * 8 * 0.5
    probability = 1 / (1 + np.exp(np.stack([(noisy - 0.21), (noisy - 0.40)]) / 0.025)) * brain
    p = np.clip(probability, 1e-6, 1 - 1e-6)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    name = f"dwp_{case.encode().hex()[:12]}_{index}"
    arrays = {"image": np.stack([flair, t1c]), "probability": probability, "uncertainty": entropy}
    arrays = {k: np.ascontiguousarray(v, np.float32) for k, v in arrays.items()}
    save_file({**arrays, "truth": truth.astype(np.uint8)}, folder / f"{name}.safetensors")
    volumes = {r: float(t.sum() * 0.027) for r, t in zip(REGIONS, truth, strict=True)}
    about = {
        "case": case, "method": "dwp", "source": "both", "n": 3, "regions": list(REGIONS),
        "modalities": ["flair", "t1c"], "spacing_mm": [3.0, 3.0, 3.0],
        "dsc": {"core": 0.714, "whole": 0.852}, "reference_volume_ml": volumes,
        "volume_ml": {r: [v * 0.8, v * 0.93, v * 1.04] for r, v in volumes.items()},
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(about), encoding="utf-8")


def _reliability(plan: Plan) -> list[dict[str, object]]:
    rows = []
    for method, source, n in _arms(plan):
        if n not in (0, max(plan.sizes)) or method == "threshold":
            continue
        bend = {"ri": 1.9, "pr": 1.6, "zero_shot": 2.2}.get(method, 1.25)
        for region in REGIONS:
            for b in range(10):
                confidence = (b + 0.5) / 10
                rows.append(
                    {"method": method, "source": source, "n": n, "region": region, "bin": b, "confidence": confidence,
                     "accuracy": confidence**bend, "count": int(2e5 * (0.01 + abs(confidence - 0.4) ** 3))}
                )  # fmt: skip
    return rows


INFO = {
    "title": "From multiple sclerosis to tumours with three cases",
    "description": "Networks trained on MS lesions, on generated tumours and on both are moved to a handful of "
    "tumour scans by several methods; each is scored on tumours it has not seen.",
    "config": {"target": {"n": [1, 2, 3], "regions": ["core", "whole"]}, "finetune": {"steps": 600, "beta": 0.3}},
    "config_sha256": "4f1c" * 16, "seed": 20, "git_commit": "f6dc3fd0c1",
    "versions": {"medseg": "0.1.0", "python": "3.12.4", "torch": "2.13.0", "monai": "1.6.0", "numpy": "2.3.1"},
    "machine": {"cpu": "Imaginary 2-core", "cores": 2, "device": "cpu", "precision": "float32"},
    "command": "medseg experiment configs/experiment/ms_to_tumour.yaml --resume", "started": "2026-02-03 09:12 UTC",
    "seconds": {"prepare": 41.2, "source training": 812.0, "harvest and priors": 95.5, "fine-tuning": 1130.4, "scoring": 122.0},
    "cohorts": [
        {"name": "MS patients", "role": "source", "licence": "CC BY 4.0", "citation": "A. Author, 2017, https://example.org/10.1000/ms.", "n_subjects": 30, "synthetic": False, "note": "FLAIR and T1c of real patients."},
        {"name": "generated tumours", "role": "source", "licence": "Apache-2.0", "citation": "medseg phantom", "n_subjects": 96, "synthetic": True, "note": "Preset source."},
        {"name": "tumours", "role": "target", "licence": "CC BY-NC-SA 3.0", "citation": "B. Menze et al., 2015, https://doi.org/10.1109/TMI.2014.2377694", "n_subjects": 8, "synthetic": False, "note": ""},
    ],
    "statements": ["Eight target cases: read signs, not decimals.", "The presets source and target differ in anatomy, shape family, contrast and noise."],
    "regions": list(REGIONS), "modalities": ["flair", "t1c"],
}  # fmt: skip


def make_fake_run(folder: Path, plan: Plan = DEFAULT_PLAN) -> Path:
    """Write a complete run folder of invented numbers."""
    for name in ("histories", "examples", *(f"priors/{s}" for s in plan.sources)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(INFO), encoding="utf-8")
    scores = score_rows(plan)
    write_table(folder / "scores.tsv", scores)
    write_table(folder / "summary.tsv", summary_rows(scores))
    write_table(folder / "paired.tsv", paired_rows(scores))
    write_table(folder / "reliability.tsv", _reliability(plan))
    _histories(folder / "histories", plan)
    for seed, source in enumerate(plan.sources):
        _priors(folder / "priors" / source, seed)
    for index, case in enumerate(plan.cases[: plan.examples]):
        _example(folder / "examples", index, case)
    return folder


if __name__ == "__main__":
    sys.stdout.write(f"{write_report(make_fake_run(Path(sys.argv[1])))}\n")
