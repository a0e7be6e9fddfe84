"""Few-shot scores with and without each augmentation: ``tools/augmentation_table OUT``.

Every part is an experiment of its own in OUT, which is resumed when the command is run again.
"""

import argparse
import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from medseg.config.build import build_source, load_plan
from medseg.config.load import find_config, read_yaml, validate
from medseg.config.schema import DataConfig
from medseg.experiment.run import run_experiment
from medseg.inference.provenance import versions
from medseg.io.atomic import write_json, write_text
from medseg.synthesis.cohort import LearnedSource
from tools.augmentation.table import Pairing, compare, markdown

log = logging.getLogger("augmentation")
PHANTOM, REAL = "experiment/augmentation_phantom", "experiment/augmentation_real"
_REAL_DATA = Path("../shared/data/tumour_brats2013")

#: For the tests: seconds instead of minutes, numbers without any meaning.
QUICK = [
    "protocol.source_training.steps=2",
    "protocol.target_training.steps=2",
    "protocol.few_shot.sizes=[1]",
    "protocol.few_shot.repeats=1",
    "protocol.few_shot.test_subjects=2",
    "protocol.patch.size=[16,16,16]",
    "protocol.patch.batch_size=1",
    "protocol.preprocess.spacing_mm=[8.0,8.0,8.0]",
    "target.settings.n_subjects=3",
    "target.settings.spacing_mm=8.0",
]
_QUICK_LEARNING = {
    "side": 8,
    "shape": {"fit": {"max_steps": 5}},
    "looks": {"fit": {"max_steps": 5}},
}
#: Lesions of the few training cases are learned anew for each subset, so the fit is short.
_FIT = {"max_steps": 100, "batch_size": 32, "learning_rate": 0.003, "epochs": 400}
_LEARNING = {
    "side": 12,
    "shape": {"channels": [8, 16], "fit": _FIT},
    "looks": {"channels": [8, 16], "fit": _FIT},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write ``augmentation.json`` and ``augmentation.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="seconds, meaningless numbers")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions on phantoms")
    parser.add_argument("--parts", default="phantom,real", help="phantom, real or both")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    out, started = arguments.out, time.perf_counter()
    parts = arguments.parts.split(",")
    wanted: list[Pairing] = []
    checks: dict[str, object] = {}
    if "phantom" in parts:
        for seed in range(arguments.seeds):
            wanted += _phantom(out, seed, checks, quick=arguments.quick)
    if "real" in parts and not _REAL_DATA.is_dir():
        log.warning("the real scans are not at %s: that part is left out", _REAL_DATA)
    elif "real" in parts:
        wanted += _real(out, checks, quick=arguments.quick)
    rows = compare(wanted)
    write_json(
        out / "augmentation.json",
        {
            "command": f"tools/augmentation_table OUT --seeds {arguments.seeds}",
            "quick": arguments.quick,
            "seconds_of_this_call": round(time.perf_counter() - started, 1),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "copy_checks": checks,
            "rows": rows,
        },
    )
    text = markdown(rows, checks)
    write_text(out / "augmentation.md", text)
    log.info("\n%s", text)
    return 0


def _phantom(out: Path, seed: int, checks: dict[str, object], *, quick: bool) -> list[Pairing]:
    """On phantoms: generated sources, and painting while training from scratch."""
    lesions = _learn(out / "lesions" / "phantom", PHANTOM, checks, quick=quick)
    common = [f"protocol.seed={seed}", *(QUICK if quick else [])]
    sources = [*common, *_with_lesions(PHANTOM, lesions, quick=quick)]
    base = _run(out / f"phantom_seed{seed}", PHANTOM, sources)
    scratch = [*common, "sources={}", "arms=[{method: {method: ri}}]"]
    painted = {
        "painted, lesions of the source": (
            f"protocol.augment.paint={{chance: 0.5, lesions: {lesions}}}"
        ),
        "painted, lesions of the training cases": _training(quick),
    }
    found = []
    for number, (name, override) in enumerate(painted.items()):
        run = _run(out / f"phantom_seed{seed}_painted{number}", PHANTOM, [*scratch, override])
        found.append(
            Pairing("phantom", name, run, ("ri", "none"), "not painted", base, ("ri", "none"))
        )
    for name in ("handmade", "random", "learned"):
        found.append(
            Pairing(
                "phantom", f"source {name}", base, ("pr", name), "no source", base, ("ri", "none")
            )
        )
    for method in ("zero_shot", "pr"):
        for name in ("random", "learned"):
            arms = (method, name), (method, "handmade")
            found.append(
                Pairing(
                    "phantom", f"source {name}", base, arms[0], "source handmade", base, arms[1]
                )
            )
    return found


def _real(out: Path, checks: dict[str, object], *, quick: bool) -> list[Pairing]:
    """On real tumours: a learned against the hand-made source, and painting while fine-tuning."""
    lesions = _learn(out / "lesions" / "real", REAL, checks, quick=quick)
    common = [
        item
        for item in (QUICK if quick else [])
        if not item.startswith(("target.", "protocol.few_shot.test"))
    ]
    base = _run(out / "real", REAL, [*common, *_with_lesions(REAL, lesions, quick=quick)])
    found = [
        Pairing(
            "real",
            "source learned",
            base,
            (method, "learned"),
            "source handmade",
            base,
            (method, "handmade"),
        )
        for method in ("zero_shot", "pr", "wise")
    ]
    # The very same source network, so that only the fine-tuning is painted.
    folder = out / "real_painted"
    if not (folder / "sources").is_dir():
        shutil.copytree(base / "sources" / "handmade", folder / "sources" / "handmade")
    values = read_yaml(find_config(REAL))
    painted = _run(
        folder,
        REAL,
        [
            *common,
            f"sources={{handmade: {values['sources']['handmade']}}}",
            "arms=[{method: {method: pr}, sources: [handmade]}, "
            "{method: {method: wise}, sources: [handmade]}]",
            _training(quick),
        ],
    )
    name = "painted, lesions of the training cases"
    for method in ("pr", "wise"):
        arm = (method, "handmade")
        found.append(Pairing("real", name, painted, arm, "not painted", base, arm))
    return found


def _training(quick: bool) -> str:
    learning = _QUICK_LEARNING if quick else _LEARNING
    return f"protocol.augment.paint={{chance: 0.5, learning: {learning}}}"


def _learn(folder: Path, config: str, checks: dict[str, object], *, quick: bool) -> Path:
    """Learn the lesions of a configuration's first learned source, once."""
    values = read_yaml(find_config(config))
    part = values["sources"]["learned"][0]
    if quick:
        part["settings"] |= {"learning": _QUICK_LEARNING, "spacing_mm": [8.0, 8.0, 8.0]}
        for item in part["settings"]["learn_from"]:
            item["settings"] |= {"n_subjects": 2, "spacing_mm": 8.0}
    source = build_source(validate(DataConfig, part, where=config), where=config)
    if not isinstance(source, LearnedSource):
        raise TypeError(f"{config}: the source 'learned' must be of kind learned")
    if not (folder / "lesions.json").is_file():
        source.lesions.save(folder)
    text = json.loads((folder / "lesions.json").read_text(encoding="utf-8"))
    checks[folder.name] = text["copy_checks"]
    return folder.resolve()


def _with_lesions(config: str, lesions: Path, *, quick: bool) -> list[str]:
    """Return overrides that take learned lesions from a folder instead of learning them again."""
    found = []
    for name, mix in read_yaml(find_config(config))["sources"].items():
        for number, part in enumerate(mix):
            where = f"sources.{name}.{number}.settings"
            if part["kind"] == "learned":
                found += [f"{where}.learn_from=[]", f"{where}.lesions={lesions}"]
            if quick:
                grid = "hosts.settings.spacing_mm" if part["kind"] == "learned" else "spacing_mm"
                found += [f"{where}.n_subjects=2", f"{where}.{grid}=8.0"]
    return found


def _run(folder: Path, config: str, overrides: Sequence[str]) -> Path:
    log.info("%s: %s", folder.name, config)
    run_experiment(load_plan(config, overrides, command="tools/augmentation_table"), folder)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
