"""From letters to digits: what the deep weight prior is worth on a few digits.

Networks learn letters A to J of matplotlib's fonts, their kernels teach filter priors, and
posteriors over a network for scikit-learn's digits are trained under these, the log-uniform and the
standard normal prior. Run again it goes on; writes digits.json, digits.md and digits.png.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.io.atomic import write_json, write_text
from tools.digits.learn import Source, learn_source, measure
from tools.digits.pictures import Pictures, digits
from tools.digits.plan import QUICK, Arm, Sizes
from tools.digits.report import figure, markdown, summary

log = logging.getLogger("digits")


class Bench:
    """The cells of one output folder."""

    def __init__(self, out: Path, sizes: Sizes, seeds: list[int]) -> None:
        self.out, self.sizes, self.seeds = out, sizes, seeds
        self.key = json.dumps([sizes.key, seeds])

    @cached_property
    def source(self) -> Source:
        """Networks and priors, learned once in a run."""
        return learn_source(self.sizes, seed=0)

    @cached_property
    def pictures(self) -> Pictures:
        """All digits."""
        return digits(self.sizes.picture)

    def cell(self, name: str, make: Callable[[], Any], *, missing: bool) -> dict[str, Any] | None:
        """Return what a cell found, measured before or now; None where it is to stay missing."""
        path = self.out / "cells" / f"{name}.json"
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["key"] == self.key:
                return known
        if missing:
            return None
        began, used = time.perf_counter(), time.process_time()
        found = make()
        known = {
            "key": self.key,
            "found": found,
            "seconds": time.perf_counter() - began,
            "processor_seconds": time.process_time() - used,
        }
        log.info("%s: %.1f s", name, known["seconds"])
        write_json(path, known)
        return known

    def rows(self, *, missing: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return one row a draw of every cell, and what the source is like."""

        def describe() -> dict[str, Any]:
            return {"accuracy": self.source.accuracy, "nats": self.source.nats}

        source = self.cell("source", describe, missing=missing) or {"found": None}
        rows = []
        for n, arm in dict.fromkeys(self.sizes.cells()):
            name = f"{n}_{arm.prior}_{arm.init}_{arm.beta:g}"

            def make(n: int = n, arm: Arm = arm) -> list[dict[str, Any]]:
                return measure(arm, n, self.source, self.pictures, self.sizes, self.seeds)

            known = self.cell(name, make, missing=missing)
            for row in known["found"] if known else []:
                rows.append({"n": n, **asdict(arm), **row})
        return rows, source


def main(argv: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="tools/digits_table", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the results; run again to go on")
    parser.add_argument("--quick", action="store_true", help="only show that all works")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="draws; default: 0 1 2 3 4"
    )
    parser.add_argument("--steps", type=int, help="of each posterior; default: 300")
    parser.add_argument(
        "--widths", type=int, nargs=2, help="channels; default: 16 32 (the paper: 32 128)"
    )
    parser.add_argument("--report", action="store_true", help="tables of what is there, no more")
    chosen = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s  %(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(1)
    changes: dict[str, Any] = {"steps": chosen.steps} if chosen.steps else {}
    changes |= {"widths": tuple(chosen.widths)} if chosen.widths else {}
    sizes = replace(QUICK if chosen.quick else Sizes(), **changes)
    bench = Bench(chosen.out, sizes, chosen.seeds)
    rows, source = bench.rows(missing=chosen.report)
    if not rows:
        parser.error(f"{chosen.out} has no cell of these settings and seeds: run without --report")
    words = ["tools/digits_table OUT", *(["--quick"] if chosen.quick else [])]
    for name, values in changes.items():
        words += [f"--{name}", *map(str, np.atleast_1d(values))]
    command = " ".join([*words, "--seeds", *map(str, chosen.seeds)])
    lines = summary(rows)
    result = {
        "command": command,
        "sizes": asdict(bench.sizes),
        "seeds": chosen.seeds,
        "source": source["found"],
        "lines": lines,
        "rows": rows,
    }
    write_json(chosen.out / "digits.json", result)
    text = markdown(lines, source["found"], bench.sizes, command=command)
    write_text(chosen.out / "digits.md", text)
    figure(lines, chosen.out / "digits.png")
    print(text)


if __name__ == "__main__":
    main()
