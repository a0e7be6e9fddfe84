"""Compares every kind of filter prior on the phantom: nats, samples, few-shot DSC, wall time.

Each seed is an experiment of its own (configs/experiment/priors.yaml), all at once on the cores
there are. What is done already is not done again. Writes prior_table.json and prior_table.md.
"""

import argparse
import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from medseg.config.build import load_plan
from medseg.experiment.prior_table import prior_table, to_markdown
from medseg.experiment.run import run_experiment
from medseg.io.atomic import write_json, write_text

#: So small that it says nothing, but passes every stage: overrides of the configuration.
QUICK = (
    "sources.both=[{kind: phantom, settings: {disease: tumour, n_subjects: 2, spacing_mm: 8.0}}]",
    "target.settings={disease: tumour, preset: target, n_subjects: 4, spacing_mm: 8.0}",
    "arms=[{method: {method: pr}, sources: [both]},"
    "{method: {method: dwp, prior: gmm}, sources: [both]},"
    "{method: {method: dwp, prior: small_rbm}, sources: [both]},"
    "{method: {method: dwp, prior: small_rbm, init: prior}, sources: [both]}]",
    "protocol.priors.gmm={kind: gmm, model: {components: 1}}",
    "protocol.priors.small_rbm={kind: rbm, grouping: group, model: {hidden: 4, sample_sweeps: 4,"
    "contrastive: {fit: {max_steps: 5}}}}",
    "protocol.preprocess.spacing_mm=[8.0, 8.0, 8.0]",
    "protocol.patch.size=[16, 16, 16]",
    "protocol.source_training={steps: 2}",
    "protocol.target_training={steps: 2}",
    "protocol.few_shot={sizes: [2], repeats: 1, test_subjects: 2}",
    "protocol.samples=2",
    # Forests on thousands of kernels would take most of the time.
    "protocol.two_sample=100",
)


def run(seed: int, out: Path, threads: int, overrides: tuple[str, ...]) -> Path:
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s seed {seed}: %(message)s")
    command = f"medseg experiment experiment/priors {out} protocol.seed={seed}"
    changed = [*overrides, f"protocol.seed={seed}"]
    run_experiment(load_plan("experiment/priors", changed, command=command), out)
    return out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tools/prior_table", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/prior_table"), help="default: runs/prior_table")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    add("--quick", action="store_true", help="tiny data and few steps: does everything run?")
    chosen = parser.parse_args(argv)
    overrides = QUICK if chosen.quick else ()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(len(chosen.seeds), cores or 1)
    # Steps as small as the quick ones only wait for each other on several threads.
    threads = 1 if chosen.quick else max((cores or 1) // workers, 1)
    # Spawned, not forked: torch's threads do not survive a fork.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        jobs = [
            pool.submit(run, seed, chosen.out / f"seed_{seed}", threads, overrides)
            for seed in chosen.seeds
        ]
        runs = [job.result() for job in jobs]
    words = ["tools/prior_table", *(["--quick"] if chosen.quick else [])]
    table = prior_table(runs, command=" ".join([*words, "--seeds", *map(str, chosen.seeds)]))
    write_json(chosen.out / "prior_table.json", asdict(table))
    write_text(chosen.out / "prior_table.md", to_markdown(table))
    print(to_markdown(table))


if __name__ == "__main__":
    main()
