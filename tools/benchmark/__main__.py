"""Measures medseg beside MONAI and nnU-Net with the same weights on this machine.

Every contender runs in a process of its own, one after the other, with all cores. Weights and cases
are made once and kept in the folder; measurements never are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.benchmark import plan, report
from tools.benchmark.plan import FULL, QUICK, Scale, Task

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "tumour_brats2013"
SECTIONS = ("inference", "scaling", "training")


def cores() -> int:
    """Return the cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a small network and volume: does everything run?")
    add("--out", type=Path, help="folder of the results (default: runs/bench or runs/bench-quick)")
    add("--repeats", type=int, default=1, help="timed calls of each medseg contender (default: 1)")
    add("--weights", type=Path, help="model folder of a plain unet_3d instead of training one")
    add("--real", type=int, default=1, help="real tumours to predict, where present (default: 1)")
    add(
        "--all-windows",
        action="store_true",
        help="run every window of the two dearest peers (MONAI uncropped, nnU-Net with mirroring)\n"
        "and not one times their number, as all cost the same",
    )
    add("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="parts to measure")
    add("--threads", type=int, default=cores(), help="default: all cores")
    add(
        "--shared",
        action="store_true",
        help="others use this machine: one thread, and its processor time instead of the clock's",
    )
    add("--limit", type=int, default=1200, help="seconds a contender may take (default: 1200)")
    add("--peers", type=Path, required=True, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.shared:
        chosen.threads = 1
    return chosen


class Bench:
    """One run: a folder, the two interpreters, and what was measured so far."""

    def __init__(self, chosen: argparse.Namespace, scale: Scale) -> None:
        self.chosen = chosen
        name = "bench-quick" if chosen.quick else "bench"
        self.folder = (chosen.out or ROOT / "runs" / name).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = (self.folder / "bench.log").open("w", encoding="utf-8")
        self.rows: list[dict[str, Any]] = []
        self.scale = scale

    def run(self, task: Task) -> dict[str, Any]:
        """Run a task in its own process and return its row."""
        given, taken = self.folder / "task.json", self.folder / "result.json"
        taken.unlink(missing_ok=True)
        content = {
            "call": task.call,
            "arguments": task.arguments,
            "threads": self.chosen.threads,
            "shared": self.chosen.shared,
        }
        given.write_text(json.dumps(content), encoding="utf-8")
        python = str(self.chosen.peers) if task.peers else sys.executable
        command = [python, "-m", "tools.benchmark.worker", str(given), str(taken)]
        self.log.write(f"\n=== {task.section}, {task.name}\n")
        self.log.flush()
        started = time.perf_counter()
        try:
            code = subprocess.run(
                command, cwd=ROOT, stdout=self.log, stderr=self.log, timeout=self.chosen.limit
            ).returncode
            reason = f"its process ended with {code}: see {self.log.name}"
        except subprocess.TimeoutExpired:
            reason = f"not done within {self.chosen.limit} s"
        row: dict[str, Any] = {"status": "failed", "reason": reason}
        if taken.is_file():
            row = json.loads(taken.read_text(encoding="utf-8"))
        row = {"section": task.section, "name": task.name, **row}
        row["process_seconds"] = time.perf_counter() - started
        self.rows.append(row)
        say(row)
        return row

    def needed(self, task: Task) -> dict[str, Any]:
        """Run a task that the others cannot do without."""
        row = self.run(task)
        self.rows.remove(row)
        if row["status"] != "measured":
            sys.exit(f"bench: {task.name} {row['status']}: {row['reason']} (log: {self.log.name})")
        return row


def say(row: dict[str, Any]) -> None:
    """Print one line about a row, for whoever watches."""
    words = row.get("reason", "")
    if row["status"] == "measured":
        if "seconds" in row and isinstance(row["seconds"], list):
            words = f"{report.seconds(row):.2f} s, {row['peak_mib'] / 1024:.2f} GiB"
        elif "seconds_per_step" in row:
            words = f"{row['seconds_per_step']:.2f} s"
        elif "points" in row:
            words = "  ".join(f"{p['seconds']:.2f} s" for p in row["points"])
    whole = row["process_seconds"]
    print(f"{row['section']}: {row['name']}: {row['status']} {words} [{whole:.0f} s in all]",
          file=sys.stderr, flush=True)  # fmt: skip


def main() -> None:
    chosen = arguments()
    scale = QUICK if chosen.quick else FULL
    bench = Bench(chosen, scale)
    folder, started = str(bench.folder), time.perf_counter()
    results: dict[str, Any] = {
        "when": time.strftime("%Y-%m-%d %H:%M %Z"),
        "scale": asdict(scale),
        "threads": chosen.threads,
        "shared": chosen.shared,
        "rows": bench.rows,
    }
    given = {
        "folder": folder,
        "scale": asdict(scale),
        "weights": str(chosen.weights) if chosen.weights else None,
        "real": str(REAL),
        "n_real": 0 if chosen.quick else chosen.real,
    }
    material = bench.needed(
        Task(section="material", name="weights and cases", call="material:make", arguments=given)
    )
    results |= {"material": material, "cases": material.pop("cases")}
    equality = bench.needed(
        Task(
            section="material",
            name="equality of the mapped weights",
            call="plain:prove_equality",
            arguments={"folder": folder},
            peers=True,
        )
    )
    results["equality"] = equality
    shown = f"largest difference of logits {equality['max_difference']:.2e}"
    print(f"same weights, medseg and nnU-Net: {shown}", file=sys.stderr)
    if not equality["equal"]:
        sys.exit(f"bench: the peers would not have the same weights: {shown} (log: {folder})")
    size = {"matrix": scale.matrix, "convolution": list(scale.convolution)}
    results["chip"] = bench.needed(
        Task(section="chip", name="peak", call="chip:peak", arguments=size)
    )
    for task in tasks_of(chosen, scale, [case["name"] for case in results["cases"]], folder):
        bench.run(task)
    results["seconds"] = time.perf_counter() - started
    finish(results, bench.folder)


def tasks_of(chosen: argparse.Namespace, scale: Scale, cases: list[str], folder: str) -> list[Task]:
    tasks: list[Task] = []
    if {"inference", "scaling"} & set(chosen.only):
        tasks += plan.compile_tasks(folder=folder)
    if "inference" in chosen.only:
        tasks += plan.inference_tasks(
            scale, cases, folder=folder, repeats=chosen.repeats, all_windows=chosen.all_windows
        )
    if "scaling" in chosen.only:
        tasks += plan.scaling_tasks(scale, folder=folder)
    if "training" in chosen.only:
        tasks += plan.training_tasks(scale, folder=folder)
    return tasks


def finish(results: dict[str, Any], folder: Path) -> None:
    """Write the results and print the text."""
    from tools.benchmark.figure import draw

    results["targets"] = report.targets(results)
    text = report.text_of(results)
    content = json.dumps(results, indent=1)
    (folder / "bench.json").write_text(content, encoding="utf-8")
    (folder / "bench.txt").write_text(text, encoding="utf-8")
    draw(results, folder / "bench.png")
    print(text)
    print(f"{results['seconds']:.0f} s; {folder}/bench.json, bench.txt, bench.png", file=sys.stderr)


if __name__ == "__main__":
    main()
