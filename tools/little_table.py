"""Measures what each way of learning with few masks is worth, beside the same budget without it.

Runs the experiment ``experiment/little`` once per seed (phantoms, pretraining and training subjects
all change with it) and compares arms case by case. Stopped and started again, it goes on. Writes
``little.json`` and ``little.md`` into the folder.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg.config.build import load_plan
from medseg.data.splits import load_split
from medseg.experiment.cell import Cell, CellTraining
from medseg.experiment.plan import ExperimentPlan
from medseg.experiment.record import plan_key
from medseg.experiment.run import run_experiment
from medseg.experiment.sources import make_source, training_cases
from medseg.experiment.statistics import paired_difference
from medseg.inference.posterior import Head, predict_prepared
from medseg.inference.provenance import git_commit, versions
from medseg.inference.settings import PredictSettings
from medseg.io.atomic import read_table, write_json, write_text
from medseg.training.distillation import DistillationSettings
from medseg.training.learn import distil
from medseg.training.transfer import finetune

log = logging.getLogger("little_table")
CONFIG = "experiment/little"
#: What it is called, the arm with it, and the arm without it: (method, source).
EFFECTS = (
    ("relative position, then fine-tuned", ("pr", "position"), ("ri", "none")),
    ("masked autoencoder, then fine-tuned", ("pr", "masked"), ("ri", "none")),
    ("co-learning autoencoder", ("ri_co_learning", "none"), ("ri", "none")),
    ("MS along, hard sharing", ("ri_hard_sharing", "none"), ("ri", "none")),
    ("MS along, soft sharing", ("ri_soft_sharing", "none"), ("ri", "none")),
    ("T1c privileged, trained teacher", ("privileged_teacher", "none"), ("without_t1c", "none")),
    ("T1c privileged, own teacher", ("privileged_self", "none"), ("without_t1c", "none")),
    ("student of a posterior", ("gaussian_distillation", "masked"), ("gaussian", "masked")),
)
#: The two pretrained sources and the scans are one list in the file, so one of them names all.
SCANS, SECOND = "sources.masked.0.settings", "scans.ms.0.settings"
QUICK = (
    "protocol.preprocess.spacing_mm=[6.0, 6.0, 6.0]",
    "protocol.patch.size=[16, 16, 16]",
    "protocol.source_training.steps=4",
    "protocol.target_training.steps=3",
    "protocol.few_shot.sizes=[1, 2]",
    "protocol.few_shot.test_subjects=2",
    "protocol.samples=2",
    "pretraining.position.side=6",
    "target.settings.n_subjects=4",
    "target.settings.spacing_mm=6.0",
    *(f"{part}.n_subjects=2" for part in (SCANS, SECOND)),
    *(f"{part}.spacing_mm=6.0" for part in (SCANS, SECOND)),
)
#: Samples of the posterior that stands for the truth about its own spread.
REFERENCE = 32
Row = dict[str, Any]


def plan_of(seed: int, *, quick: bool) -> ExperimentPlan:
    """Return the experiment of one seed: other subjects everywhere, other chance."""
    overrides = (
        f"protocol.seed={seed}",
        f"target.settings.seed={1000 + seed}",
        f"{SCANS}.seed={2000 + seed}",
        f"{SECOND}.seed={3000 + seed}",
    )
    return load_plan(CONFIG, [*overrides, *(QUICK if quick else ())])


def run_shard(out: Path, seeds: Sequence[int], quick: bool, shard: tuple[int, int]) -> None:
    """Do one worker's share of every seed, one seed after the other."""
    logging.basicConfig(level=logging.INFO, format=f"{shard[0]}: %(message)s")
    torch.set_num_threads(1)
    for seed in seeds:
        run_experiment(plan_of(seed, quick=quick), out / f"seed_{seed}", shard=shard)


def compare(out: Path, seeds: Sequence[int]) -> list[Row]:
    """Return one row per effect and number of masks, over all seeds, cases and regions."""
    scores: dict[tuple[str, str, str], dict[tuple[str, ...], Row]] = {}
    for seed in seeds:
        for row in read_table(out / f"seed_{seed}" / "scores.tsv"):
            case = str(seed), row["subset"], row["seed"], row["case"], row["region"]
            scores.setdefault((row["method"], row["source"], row["n"]), {})[case] = row
    sizes = sorted({key[2] for key in scores if key[0] == "ri"}, key=int)
    return [
        compare_arms(name, int(n), scores[*arm, n], scores[*baseline, n])
        for name, arm, baseline in EFFECTS
        for n in sizes
    ]


def compare_arms(name: str, n: int, arm: dict[Any, Row], baseline: dict[Any, Row]) -> Row:
    """Return the paired difference of two arms; intervals resample test subjects of all seeds."""
    cases = sorted(arm)
    subjects = [f"{case[0]}/{arm[case]['subject']}" for case in cases]
    with_it, without = (np.array([float(s[c]["dsc"]) for c in cases]) for s in (arm, baseline))
    found = paired_difference(with_it, without, subjects, seed=0)
    per_seed = {
        seed: float(
            np.mean([d for c, d in zip(cases, with_it - without, strict=True) if c[0] == seed])
        )
        for seed in sorted({case[0] for case in cases})
    }
    nats = [
        [float(s[c]["nll_nats"]) for c in cases if s[c]["nll_nats"] not in ("", "n/a")]
        for s in (arm, baseline)
    ]
    return {
        "effect": name,
        "n_masks": n,
        "dsc_with": float(with_it.mean()),
        "dsc_without": float(without.mean()),
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "difference_per_seed": per_seed,
        "nll_nats_with": float(np.mean(nats[0])),
        "nll_nats_without": float(np.mean(nats[1])),
        "n_test_subjects": found.n_subjects,
        "n_values": found.n_values,
    }


def pretext_progress(out: Path, seeds: Sequence[int]) -> Row:
    """Return how well the pretexts went: means over the last quarter of each log, and seeds."""

    def late(source: str, term: str) -> float:
        values = []
        for seed in seeds:
            path = out / f"seed_{seed}" / "histories" / f"source_{source}_member0.tsv"
            rows = read_table(path)
            values += [float(row[term]) for row in rows[-max(1, len(rows) // 4) :]]
        return float(np.mean(values))

    return {
        "position_cross_entropy_nats": late("position", "cross_entropy_nats"),
        "position_accuracy": late("position", "accuracy"),
        "masked_mean_squared_error": late("masked", "reconstruction"),
    }


def student_agreement(out: Path, seed: int, *, quick: bool) -> Row:
    """Return how near a student's one pass comes to its teacher's posterior, beside few samples.

    The teacher's spread over many samples is the reference; the student and the number of samples
    that the experiment takes are both measured against it, inside the brain of the test cases.
    """
    plan = plan_of(seed, quick=quick)
    protocol, folder = plan.protocol, out / f"seed_{seed}"
    held = load_split(folder / "splits.json").subjects_of("test")
    cases = training_cases(plan.target, plan, regions=protocol.regions, allow_missing=False)
    test = [case for case in cases if case.subject in held]
    train = [case for case in cases if case.subject not in held]
    arm = next(arm for arm in plan.arms if arm.distils)
    training = CellTraining(plan, folder).training_plan(
        Cell("student", "masked", len(train), "all")
    )
    source = make_source(plan, "masked", folder, key=plan_key(plan))
    teacher, _ = finetune(train, training, arm.method, source=source)
    settings = arm.objective
    if not isinstance(settings, DistillationSettings):
        raise SystemExit("no arm of the experiment distils")
    student, _ = distil(train, training, settings, teacher=teacher, checkpoints=None)

    def maps(network: nn.Module, samples: int, *, share: bool) -> tuple[Tensor, Tensor, float]:
        head = Head(protocol.regions, has_share=share, window=protocol.patch.size)
        chosen = PredictSettings(samples=samples, seed=samples, device="cpu", engine="eager")
        started = time.process_time()
        found = [predict_prepared(network, c.image, head=head, settings=chosen) for c in test]
        seconds = (time.process_time() - started) / len(test)
        mean, std = (
            torch.cat([one[:, c.brain].flatten() for one, c in zip(each, test, strict=True)])
            for each in (
                [f.statistics.probability for f in found],
                [f.statistics.std for f in found],
            )
        )
        return mean, std, seconds

    reference = maps(teacher, REFERENCE, share=False)
    rows: Row = {"seed": seed, "n_masks": len(train), "n_test_cases": len(test)}
    passes = {"student": (student, 1, True), "samples": (teacher, protocol.samples, False)}
    for name, (network, samples, share) in passes.items():
        mean, std, seconds = maps(network, samples, share=share)
        rows[name] = {
            "passes": samples,
            "mean_absolute_difference_of_mean": float((mean - reference[0]).abs().mean()),
            "mean_absolute_difference_of_std": float((std - reference[1]).abs().mean()),
            "correlation_of_std": float(torch.corrcoef(torch.stack([std, reference[1]]))[0, 1]),
            "mean_std": float(std.mean()),
            "cpu_seconds_per_case": seconds,
        }
    rows["reference"] = {"passes": REFERENCE, "mean_std": float(reference[1].mean())}
    return rows


def markdown(result: Row) -> str:
    """Return the tables as text."""
    lines = [
        f"# Learning with little (phantom, {len(result['seeds'])} seeds)",
        "",
        f"`{result['command']}`; commit {result['git_commit']}. Mean DSC over regions and test "
        "cases with the objective and without it, same masks, patches and steps; difference with "
        "the 95 % interval over test subjects, and in how many seeds it is positive.",
        "",
        "| objective | masks | DSC with | without | difference | seeds + | NLL with | without |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["effects"]:
        signs = row["difference_per_seed"].values()
        lines.append(
            f"| {row['effect']} | {row['n_masks']} | {row['dsc_with']:.3f} | "
            f"{row['dsc_without']:.3f} | {row['difference']:+.3f} [{row['low']:+.3f}, "
            f"{row['high']:+.3f}] | {sum(value > 0 for value in signs)}/{len(signs)} | "
            f"{row['nll_nats_with']:.3f} | {row['nll_nats_without']:.3f} |"
        )
    pretext = result["pretext"]
    lines += [
        "",
        "At the end of pretraining, on its own patches: relative position "
        f"{pretext['position_cross_entropy_nats']:.2f} nats and "
        f"{100 * pretext['position_accuracy']:.0f} % right (chance {np.log(26):.2f} and 4 %); "
        "hidden blocks restored with mean squared error "
        f"{pretext['masked_mean_squared_error']:.2f} (the scan's own variance is about 1).",
    ]
    student = result["student"]
    lines += [
        "",
        f"Against the mean and standard deviation over {REFERENCE} samples of the same posterior "
        f"({student['n_masks']} masks, {student['n_test_cases']} test cases, voxels of the brain):",
        "",
        "| | passes | CPU s a case | mean differs by | std differs by | std correlates |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("student", "samples"):
        one = student[name]
        lines.append(
            f"| {name} | {one['passes']} | {one['cpu_seconds_per_case']:.2f} | "
            f"{one['mean_absolute_difference_of_mean']:.4f} | "
            f"{one['mean_absolute_difference_of_std']:.4f} | {one['correlation_of_std']:.3f} |"
        )
    return "\n".join([*lines, ""])


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="tools/little_table",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="folder (default: runs/little or -quick)")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes of one thread (default 2)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny: does everything run?")
    return parser.parse_args()


def main() -> None:
    """Run what is not done yet and write the tables."""
    chosen = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = chosen.out or Path("runs") / ("little-quick" if chosen.quick else "little")
    seeds = range(1 if chosen.quick else chosen.seeds)
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    shards = [(number, chosen.workers) for number in range(chosen.workers)]
    with context.Pool(chosen.workers) as pool:
        pool.starmap(run_shard, [(out, list(seeds), chosen.quick, shard) for shard in shards])
    torch.set_num_threads(1)
    result: Row = {
        "command": f"tools/little_table --seeds {len(seeds)}" + " --quick" * chosen.quick,
        "seeds": list(seeds),
        "effects": compare(out, list(seeds)),
        "pretext": pretext_progress(out, list(seeds)),
        "student": student_agreement(out, 0, quick=chosen.quick),
        "wall_seconds_of_this_call": time.perf_counter() - started,
        "git_commit": git_commit(),
        "versions": versions(),
    }
    write_json(out / "little.json", result)
    write_text(out / "little.md", markdown(result))
    print((out / "little.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
