"""Whether the promises of a cross-fitted calibration hold on people that nobody has seen.

For each training subset of an experiment that has enough people, a model is fine-tuned and
calibrated on these alone, as by ``medseg finetune --calibrate``. Then the experiment's other
subjects are predicted: is the true volume inside the promised range, what do inner and outer masks
miss, and are the cases that a human is asked to look at the bad ones? One row per subset, kept in
RUN/coverage, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np

from medseg.config.build import load_arm
from medseg.config.finished import load_finished
from medseg.data.regions import encode
from medseg.data.source import SubsetSource
from medseg.experiment.crossfit import finetune_calibrated
from medseg.experiment.plan import Arm, ExperimentPlan
from medseg.experiment.run import few_shot_parts
from medseg.experiment.sources import make_source
from medseg.inference.decide import RegionDecision, decide
from medseg.inference.model import Model
from medseg.inference.predict import predict_case
from medseg.inference.settings import PredictSettings
from medseg.io.atomic import read_table, write_table
from medseg.metrics.overlap import dice
from medseg.scan import Case

Row = dict[str, object]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, calibrate and predict what is not done yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("run", type=Path, help="folder of a finished experiment")
    add(
        "--arm",
        help="one of the experiment (name in tables); or --method, --members, --set",
    )
    add("--method", default="wise", help="as in medseg finetune (default: wise)")
    add("--members", type=int, default=5, help="networks of a model (default: 5)")
    add("--set", action="append", default=[], help="a setting of the method: wise_share=0.5")
    add("--source", help="the first of the experiment if not given")
    add("--size", type=int, default=10, help="training subjects; 90 %% takes nine (default: 10)")
    add("--folds", type=int, default=5)
    chosen = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = load_arm(chosen.method, [f"members={chosen.members}", *chosen.set])
    rows = measure(
        chosen.run.resolve(),
        chosen.arm or given,
        source=chosen.source,
        size=chosen.size,
        folds=chosen.folds,
    )
    print(table(rows))
    return 0


def measure(
    run: Path, arm: Arm | str, *, source: str | None, size: int, folds: int
) -> list[dict[str, str]]:
    """Return one row for each test case and region of each subset of ``size`` subjects."""
    plan, key = load_finished(run, [f"protocol.few_shot.sizes=[{size}]"])
    if isinstance(arm, str):
        arm = named(plan, arm)
    out = run / "coverage"
    out.mkdir(exist_ok=True)
    name = source or next(iter(plan.sources))
    origin = make_source(plan, name, run, key=key)
    subsets, held = few_shot_parts(plan, run)
    target, found = plan.target.source, []
    people = dict(zip(target.identifiers, target.subjects, strict=True))
    for number, subset in enumerate(subsets):
        path = out / f"{_stem(arm, name, size, folds)}_{number}.tsv"
        if not path.is_file():
            kept = [case for case, who in people.items() if who in subset.subjects]
            mine = replace(plan, target=replace(plan.target, source=SubsetSource(target, kept)))
            model = finetune_calibrated(
                mine,
                arm.method,
                folds=folds,
                source=origin,
                out=out / path.stem,
                key=key,
                objective=arm.objective,
                scans=arm.scans,
                refine=arm.refine,
                predict=PredictSettings(samples=plan.protocol.samples),
            )
            others = [
                index
                for index, who in enumerate(target.subjects)
                if who not in subset.subjects and (not held or who in held)
            ]
            rows: list[Row] = []
            for index in others:
                rows += promised(model, target[index], plan)
            write_table(path, [{"subset": number, **row} for row in rows])
        found += read_table(path)
    return found


def named(plan: ExperimentPlan, label: str) -> Arm:
    """Return the arm that is called ``label`` in tables."""
    arms = {arm.label: arm for arm in plan.arms}
    if label not in arms:
        raise SystemExit(f"no arm is called {label}: take one of {', '.join(arms)}")
    return arms[label]


def _stem(arm: Arm, source: str, size: int, folds: int) -> str:
    # The label alone does not tell every setting, and what is kept is not measured again.
    settings = hashlib.sha256(repr(arm).encode()).hexdigest()[:8]
    return f"{arm.label}_{source}_n{size}_k{folds}_{settings}"


def promised(model: Model, case: Case, plan: ExperimentPlan) -> list[Row]:
    """Return what is promised of a case, and what is true."""
    if model.calibration is None or case.label is None:
        raise SystemExit(f"{case.identifier}: promises need a calibration and a mask to compare")
    settings = PredictSettings(samples=plan.protocol.samples)
    prediction = predict_case(model, case, settings=settings)
    decision = decide(prediction, model.calibration)
    truth, _ = encode(case.label.data, names=prediction.regions, definition=plan.target.definition)
    rows: list[Row] = []
    for index, region in enumerate(prediction.regions):
        true = truth[index].numpy() > 0.5
        rows.append(
            {
                "case": case.identifier,
                "region": region,
                "dsc": dice(prediction.mask[index].numpy(), true),
                "looked_at": int(bool(decision.needs_review)),
                **_kept(decision.regions[index], true, prediction.grid.voxel_volume_mm3 / 1000.0),
            }
        )
    return rows


def _kept(said: RegionDecision, true: np.ndarray, voxel_ml: float) -> Row:
    """Return whether the promises of a region were kept."""
    if said.low_ml is None or said.high_ml is None or said.outer is None or said.inner is None:
        raise SystemExit("nothing is promised: take more subjects, see --size")
    inner, outer, volume_ml = said.inner.numpy(), said.outer.numpy(), true.sum() * voxel_ml
    return {
        "volume_ml": volume_ml,
        "low_ml": said.low_ml,
        "high_ml": said.high_ml,
        "covered": int(said.low_ml <= volume_ml <= said.high_ml),
        "missed": float((true & ~outer).sum() / max(1, true.sum())),
        "false": float((inner & ~true).sum() / max(1, inner.sum())),
    }


def table(rows: Sequence[dict[str, str]]) -> str:
    """Return a Markdown table with a row per region; all but counts are means over predictions."""
    head = ["region", "predictions", "subsets", "volume in the range", "range, ml", "volume, ml"]
    head += ["missed by the outer mask", "wrong in the inner mask", "looked at", "DSC of these"]
    head += ["DSC of the others"]
    lines = [head, ["---"] * len(head)]
    for region in dict.fromkeys(row["region"] for row in rows):
        mine = [row for row in rows if row["region"] == region]
        per_subset = [
            _mean([row for row in mine if row["subset"] == subset], "covered")
            for subset in dict.fromkeys(row["subset"] for row in mine)
        ]
        seen = [row for row in mine if row["looked_at"] == "1"]
        rest = [row for row in mine if row["looked_at"] == "0"]
        width = fmean(float(row["high_ml"]) - float(row["low_ml"]) for row in mine)
        lines.append(
            [
                region,
                str(len(mine)),
                str(len(per_subset)),
                f"{_mean(mine, 'covered'):.3f} ({min(per_subset):.2f} to {max(per_subset):.2f})",
                f"{width:.0f}",
                f"{_mean(mine, 'volume_ml'):.0f}",
                f"{_mean(mine, 'missed'):.3f}",
                f"{_mean(mine, 'false'):.3f}",
                f"{_mean(mine, 'looked_at'):.2f}",
                f"{_mean(seen, 'dsc'):.3f}" if seen else "",
                f"{_mean(rest, 'dsc'):.3f}" if rest else "",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(rows: Sequence[dict[str, str]], column: str) -> float:
    return fmean(float(row[column]) for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
