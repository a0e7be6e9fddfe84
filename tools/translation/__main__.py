"""Measure everything, cell by cell; a cell that is there is not measured again."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from medseg.io.atomic import write_json, write_text
from medseg.translation.model import Translator, load_translator
from medseg.translation.settings import Method
from tools.translation.cohorts import QUICK, Cohort, Sizes, heads, thick, thin_heads, zscored
from tools.translation.images import (
    TASKS,
    Row,
    image_makers,
    image_rows,
    inside_of,
    thin_makers,
    thin_rows,
    thin_translator,
    translator_for,
)
from tools.translation.report import markdown, picture, summary
from tools.translation.restoring import restore_rows
from tools.translation.segment import SEGMENTERS, segment_rows, train_segmenter

log = logging.getLogger("translation")
#: Name in the tables -> method and what differs from its defaults.
LEARNED: dict[str, tuple[Method, dict[str, float]]] = {
    "pix2pix": ("pix2pix", {}),
    "L1 alone": ("pix2pix", {"adversarial_weight": 0.0}),
    "cyclegan (no pairs)": ("cyclegan", {}),
}


class Bench:
    """The cells of one output folder."""

    def __init__(self, out: Path, sizes: Sizes, *, seed: int) -> None:
        self.out, self.sizes, self.seed = out, sizes, seed
        self.key = json.dumps([asdict(sizes), seed])

    @cached_property
    def training(self) -> Cohort:
        """Heads that are learned from."""
        return heads(self.sizes, test=False, seed=self.seed)

    @cached_property
    def test(self) -> Cohort:
        """Heads that are measured on."""
        return heads(self.sizes, test=True, seed=self.seed)

    def cell(self, name: str, measure: Callable[[], Any]) -> dict[str, Any]:
        """Return the rows of a cell, measured now or before."""
        path = self.out / "cells" / f"{name}.json"
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["key"] == self.key:
                return known
        log.info("%s ...", name)
        began = time.perf_counter()
        rows = measure()
        known = {"key": self.key, "rows": rows, "seconds": time.perf_counter() - began}
        log.info("%s took %.0f s", name, known["seconds"])
        write_json(path, known)
        return known

    def learned(self, task: str) -> dict[str, Translator]:
        """Return the task's translators; those already trained are read."""
        found = {}
        for name, (method, options) in LEARNED.items():
            folder = self.out / "models" / f"{task} {name} {self._stamp()}"
            if (folder / "translator.json").is_file():
                found[name] = load_translator(folder)
                continue
            log.info("training %s for %s", name, task)
            found[name] = translator_for(
                task, method, self.training, self.sizes, folder=folder, seed=self.seed, **options
            )
        return found

    def images(self, task: str) -> list[Row]:
        """Measure an image task and draw one case."""
        makers = image_makers(task, self.training, self.learned(task))
        case = self.test.cases[0]
        middle = case.grid.shape[2] // 2
        inside = inside_of(case)
        panels = {name: make(case)[..., middle][None] for name, make in makers.items()}
        true = zscored(case.scans[TASKS[task][1]].data, inside)[..., middle][None]
        picture(self.out / "pictures" / f"{task}.png", {"true": true, **panels})
        return image_rows(task, makers, self.test)

    def thin(self) -> list[Row]:
        """Measure super-resolution and draw one case."""
        sizes, seed = self.sizes, self.seed
        training = thin_heads(sizes, test=False, seed=seed)
        test = thin_heads(sizes, test=True, seed=seed)
        folder = self.out / "models" / f"thin {self._stamp()}"
        done = (folder / "translator.json").is_file()
        translator = (
            load_translator(folder)
            if done
            else thin_translator(training, sizes, folder=folder, seed=seed)
        )
        makers = thin_makers(translator, sizes.factor)
        case = test.cases[0]
        row = case.grid.shape[1] // 2
        given = thick(case, sizes.factor)
        panels = {name: make(given)[:, row][None] for name, make in makers.items()}
        true = case.scans["flair"].data[:, row][None]
        picture(self.out / "pictures" / "thin slices.png", {"true": true, **panels})
        return thin_rows(makers, test, sizes.factor)

    def segment(self) -> list[Row]:
        """Measure what a made FLAIR is worth to a segmenter."""
        folder = self.out / "models"
        networks = {
            name: train_segmenter(
                name,
                self.training,
                self.sizes,
                folder=folder / f"segmenter {place} {self._stamp()}",
                seed=self.seed,
            )
            for place, name in enumerate(SEGMENTERS)
        }
        task = "FLAIR from T1 and T2"
        makers = image_makers(task, self.training, self.learned(task))
        makers.pop("histogram")
        return segment_rows(networks, makers, self.test)

    def restoring(self) -> dict[str, list[Row]]:
        """Measure restoration and draw three patches."""
        rows, pictures = restore_rows(self.training, self.test, self.sizes, seed=self.seed)
        for gap, panels in pictures.items():
            few = {name: items[:3, 0] for name, items in panels.items()}
            picture(self.out / "pictures" / f"restored {gap}.png", few)
        return rows

    @property
    def cells(self) -> dict[str, Callable[[], Any]]:
        """What measures each cell."""
        images = {task: partial(self.images, task) for task in TASKS}
        rest = {
            "thin slices": self.thin,
            "segmentation": self.segment,
            "restoration": self.restoring,
        }
        return images | rest

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return all tables, measuring what is missing."""
        cells = {name: self.cell(name, measure) for name, measure in self.cells.items()}
        found = {}
        for task, (channels, target) in TASKS.items():
            note = (
                f"`{target}` made from {', '.join(channels)}; z-scores in the brain, "
                f"{self.sizes.spacing_mm:g} mm; copy is {channels[0]} as it is; linear is least "
                "squares and histogram a monotone curve, both fitted to the training cases."
            )
            found[task] = _table(cells[task], note, against="copy")
        note = f"FLAIR, {self.sizes.factor} slices of {self.sizes.thin_mm:g} mm averaged to one."
        found["thin slices"] = _table(cells["thin slices"], note, against="linear")
        note = (
            "DSC of MS lesions when FLAIR is missing; translators and segmenters saw the same "
            "training cases."
        )
        base = "all three: zero-filled"
        found["segmentation"] = _table(cells["segmentation"], note, against=base)
        restored = cells["restoration"]
        for gap, rows in restored["rows"].items():
            note = f"FLAIR patches of 24 x 24 voxels, gap: {gap}; n counts patches."
            part = {"rows": rows, "seconds": restored["seconds"]}
            found[f"restoration, {gap}"] = _table(part, note, against="mean")
        return found

    def _stamp(self) -> str:
        quick = "quick" if self.sizes == QUICK else "full"
        return f"{quick} s{self.seed}"


def _table(cell: dict[str, Any], note: str, *, against: str) -> dict[str, Any]:
    lines = summary(cell["rows"], against=against)
    return {"note": note, "against": against, "lines": lines, "seconds": cell["seconds"]}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="tools/translation_table", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the results; run again to go on")
    parser.add_argument("--quick", action="store_true", help="only show that all works")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="append", help="measure this cell, and write no table")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(chosen.threads)
    bench = Bench(chosen.out, QUICK if chosen.quick else Sizes(), seed=chosen.seed)
    if chosen.only:
        for name in chosen.only:
            bench.cell(name, bench.cells[name])
        return
    tables = bench.tables()
    command = f"tools/translation_table OUT{' --quick' if chosen.quick else ''}"
    head = (
        f"`{command} --seed {chosen.seed}`: generated heads, one seed; means with bootstrap 95 % "
        "intervals over people, and paired differences."
    )
    write_json(
        chosen.out / "translation.json",
        {"command": command, "seed": chosen.seed, "sizes": asdict(bench.sizes), "tables": tables},
    )
    text = markdown(tables, head=head)
    write_text(chosen.out / "translation.md", text)
    print(text)


if __name__ == "__main__":
    main()
