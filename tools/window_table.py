"""What it matters how much a network is shown at once.

Plain fine-tuning on each subset of an experiment, the source, and weights half of the way back to
it; each network sees test cases, and those it was trained on, in whole volumes, in the box of the
brain, and in windows. RUN gives sources, subsets and test subjects.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean

from torch import Tensor, nn

from medseg.config.finished import load_finished
from medseg.data.training_set import TrainingCase
from medseg.experiment.cell import Cell, CellTraining
from medseg.experiment.run import few_shot_parts
from medseg.experiment.sources import make_source, training_cases
from medseg.experiment.statistics import bootstrap_mean_interval
from medseg.inference.posterior import Head, predict_prepared, sample_probabilities
from medseg.inference.settings import PredictSettings
from medseg.metrics.calibration import negative_log_likelihood_nats
from medseg.metrics.overlap import dice
from medseg.training.finish import after_training
from medseg.training.learn import learn
from medseg.training.method import MethodSettings

PLAIN = MethodSettings(method="pr")
#: Name of a network -> share of the way from plain fine-tuning back to the source.
NETWORKS = {"plain fine-tuning": 0.0, "half of the way back": 0.5, "the source": 1.0}
Row = dict[str, object]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, predict and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of an experiment")
    run = parser.parse_args(argv).run.resolve()
    print(table(measure(run)))
    return 0


def measure(run: Path) -> list[Row]:
    """Return one row per subset of the least size, case, way of looking and region."""
    least = min(load_finished(run)[0].protocol.few_shot.sizes)
    plan, key = load_finished(run, [f"protocol.few_shot.sizes=[{least}]"])
    origin = next(iter(plan.sources))
    source = make_source(plan, origin, run, key=key)
    cases = training_cases(plan.target, plan, regions=plan.protocol.regions, allow_missing=False)
    subsets, held = few_shot_parts(plan, run)
    rows: list[Row] = []
    for number, subset in enumerate(subsets):
        cell = Cell("pr", origin, subset.size, str(number))
        training = CellTraining(plan, run).training_plan(cell)
        own = [case for case in cases if case.subject in subset.subjects]
        others = [case for case in cases if case not in own and (case.subject in held or not held)]
        trained, _ = learn(own, training, PLAIN, source=source)
        head = Head(training.regions, training.architecture.dims)
        for (name, share), (way, (margin, settings)) in product(
            NETWORKS.items(), ways(training.patch.size).items()
        ):
            method = replace(PLAIN, wise_share=share)
            network = after_training(trained, training, method, source=source)
            for case in (*own, *others):
                chances = seen(network, case, head=head, margin=margin, settings=settings)
                for index, region in enumerate(head.regions.names):
                    chance, truth = chances[index].numpy(), case.regions[index].numpy() > 0.5
                    row = {"network": name, "way": way, "region": region, "own": case in own}
                    row |= {"subset": number, "subject": case.subject}
                    row["dsc"] = dice((chance > 0.5) & case.brain.numpy(), truth)
                    row["nll_nats"] = negative_log_likelihood_nats(
                        chance, truth, inside=case.brain.numpy()
                    )
                    rows.append(row)
    return rows


def ways(patch: Sequence[int]) -> dict[str, tuple[bool, PredictSettings]]:
    """Return how to look at a volume, by name: whether its margin is looked at, and windows."""
    wide = tuple(round(4 * side / 3) for side in patch)
    found = {
        "the whole volume": (True, PredictSettings()),
        "the box of the brain": (False, PredictSettings()),
    }
    for window, word in ((wide, ""), (tuple(patch), ", as in training")):
        name = f"windows of {' x '.join(map(str, window))}{word}"
        found[name] = False, PredictSettings(window=window, overlap=0.25)
    return found


def seen(
    network: nn.Module,
    case: TrainingCase,
    *,
    head: Head,
    margin: bool,
    settings: PredictSettings,
) -> Tensor:
    """Return the probabilities (n, x, y, z) of a case by a deterministic network."""
    if margin:
        found = next(sample_probabilities(network, case.image, head=head, settings=settings))
        return found[int(case.has_background) :]
    found = predict_prepared(network, case.image, head=head, settings=settings)
    return found.statistics.probability


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table with a row per network and way of looking."""
    regions = list(dict.fromkeys(str(row["region"]) for row in rows))
    head = ["network", "shown at once"]
    for region in regions:
        head += [f"{region}: DSC [95 %]", "NLL", "DSC on own training cases"]
    lines = [head, ["---"] * len(head)]
    for pair in dict.fromkeys((str(row["network"]), str(row["way"])) for row in rows):
        line = list(pair)
        for region in regions:
            mine = [
                row
                for row in rows
                if (row["network"], row["way"], row["region"]) == (*pair, region)
            ]
            test, own = ([row for row in mine if row["own"] is flag] for flag in (False, True))
            dsc = [float(str(row["dsc"])) for row in test]
            found = bootstrap_mean_interval(dsc, [str(row["subject"]) for row in test], seed=0)
            line += [
                f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]",
                f"{fmean(float(str(row['nll_nats'])) for row in test):.4f}",
                f"{fmean(float(str(row['dsc'])) for row in own):.3f}",
            ]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
