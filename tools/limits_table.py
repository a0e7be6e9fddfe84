"""What the best choice of way back and of the posterior's width could reach.

As many plain networks as variational ones are fine-tuned on each subset of an experiment, and taken
every share of the way back to the source; the posterior is seen by its mean weights, as wide as it
was learned, and wider. Each choice is scored on test subjects. The best of each kind is then chosen
in their sight, which no method may do: no rule that chooses one share and one width for all cases,
cross-validation for instance, can reach more. One file per subset is kept in RUN/limits, so that an
interrupted run goes on.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from medseg.config.finished import load_finished
from medseg.data.training_set import TrainingCase
from medseg.experiment.cell import Cell, CellTraining
from medseg.experiment.plan import ExperimentPlan
from medseg.experiment.run import few_shot_parts
from medseg.experiment.sources import make_source, training_cases
from medseg.experiment.statistics import MeanInterval, bootstrap_mean_interval
from medseg.inference.ensemble import joined
from medseg.inference.posterior import Head, predict_prepared
from medseg.inference.settings import PredictSettings
from medseg.io.atomic import read_table, write_table
from medseg.metrics.calibration import negative_log_likelihood_nats
from medseg.metrics.overlap import dice
from medseg.training.finish import after_training
from medseg.training.learn import learn
from medseg.training.method import MethodSettings, Source
from medseg.variational.convert import to_deterministic, variational_layers

log = logging.getLogger(__name__)

#: Share of the way back to the source.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Factor on the posterior's standard deviations; 0 stands for the mean weights.
WIDTHS = (0.0, 1.0, 2.0)
PLAIN, VARIATIONAL = MethodSettings(method="pr"), MethodSettings(method="gaussian")

Row = dict[str, str]
#: Method, share and width.
Choice = tuple[str, float, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Train and predict what is not done yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("run", type=Path, help="folder of an experiment")
    add("--size", type=int, default=5, help="training subjects (default: 5)")
    add("--members", type=int, default=5, help="networks of each kind (default: 5)")
    add("--samples", type=int, default=3, help="posterior samples a network (default: 3)")
    chosen = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = measure(chosen.run.resolve(), chosen.size, chosen.members, chosen.samples)
    print(f"{table(rows)}\n\n{best(rows)}")
    return 0


def measure(run: Path, size: int, members: int, samples: int) -> list[Row]:
    """Return one row for each choice, test case and region of each subset of ``size`` subjects."""
    plan, key = load_finished(run, [f"protocol.few_shot.sizes=[{size}]"])
    out = run / "limits"
    out.mkdir(exist_ok=True)
    name = next(iter(plan.sources))
    source = make_source(plan, name, run, key=key)
    cases = training_cases(plan.target, plan, regions=plan.protocol.regions, allow_missing=False)
    subsets, held = few_shot_parts(plan, run)
    found: list[Row] = []
    for number, subset in enumerate(subsets):
        path = out / f"n{size}_x{members}_k{samples}_{number}.tsv"
        if not path.is_file():
            own = [case for case in cases if case.subject in subset.subjects]
            test = [c for c in cases if c not in own and (c.subject in held or not held)]
            people = sorted({case.subject for case in cases})
            label = "+".join(str(people.index(subject)) for subject in subset.subjects)
            cell = Cell(PLAIN.method, name, size, label)
            rows = [
                {"subset": number, **row}
                for choice, network, head in networks(plan, run, cell, own, source, members)
                for row in scored(choice, network, test, head, samples=samples * members)
            ]
            write_table(path, rows)
        found += read_table(path)
    return found


def networks(
    plan: ExperimentPlan,
    run: Path,
    cell: Cell,
    cases: Sequence[TrainingCase],
    source: Source,
    members: int,
) -> Iterator[tuple[Choice, nn.Module, Head]]:
    """Yield the networks of each choice; they are trained as the cells of the experiment are."""
    training = CellTraining(plan, run).training_plan(cell)
    head = Head(training.regions, training.architecture.dims, window=training.patch.size)
    for method, widths in ((PLAIN, (0.0,)), (VARIATIONAL, WIDTHS)):
        trained = []
        for number in range(members):
            log.info("subset %s: %s, network %d", cell.subset, method.method, number)
            mine, start = training.member(number), source.member(number)
            trained.append((learn(cases, mine, method, source=start)[0], mine, start))
        for share in SHARES:
            back = replace(method, wise_share=share)
            moved = [
                after_training(network, mine, back, source=start)
                for network, mine, start in trained
            ]
            for width in widths:
                wide = joined([widened(network, width) for network in moved])
                yield (method.method, share, width), wide, head


def widened(network: nn.Module, width: float) -> nn.Module:
    """Return a copy with all standard deviations times ``width``; with 0, the mean weights."""
    if width == 0.0:
        return to_deterministic(network)
    wide = copy.deepcopy(network)
    with torch.no_grad():
        for layer in variational_layers(wide).values():
            layer.posterior.log_std.copy_(layer.posterior.capped_log_std + math.log(width))
            layer.posterior.max_log_std = None
    return wide


def scored(
    choice: Choice, network: nn.Module, cases: Sequence[TrainingCase], head: Head, *, samples: int
) -> Iterator[dict[str, object]]:
    """Yield one row per case and region."""
    method, share, width = choice
    settings = PredictSettings(samples=samples)
    for case in cases:
        found = predict_prepared(
            network, case.image, head=head, settings=settings, inside=case.brain
        )
        chances = found.statistics.probability * case.brain
        for index, region in enumerate(found.names):
            truth = case.regions[index].numpy() > 0.5
            yield {
                "method": method,
                "share": share,
                "width": width,
                "subject": case.subject,
                "case": case.identifier,
                "region": region,
                "dsc": dice(found.mask[index].numpy(), truth),
                "nll_nats": negative_log_likelihood_nats(
                    chances[index].numpy(), truth, inside=case.brain.numpy()
                ),
            }


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table: mean DSC and NLL of each choice."""
    head = ["networks", "posterior", *(f"{share:g} of the way back" for share in SHARES)]
    lines = []
    for region in regions_of(rows):
        lines += [f"Mean DSC and NLL of {region}:", "", *_rows([head, ["---"] * len(head)])]
        for method, width in dict.fromkeys((row["method"], float(row["width"])) for row in rows):
            words = [
                "plain" if method == PLAIN.method else "variational",
                _posterior(method, width),
            ]
            for share in SHARES:
                mine = _of(rows, region, (method, share, width))
                words.append(f"{_mean(mine, 'dsc'):.4f}, {_mean(mine, 'nll_nats'):.4f}")
            lines += _rows([words])
        lines.append("")
    return "\n".join(lines[:-1])


def best(rows: Sequence[Row]) -> str:
    """Return how far the best variational choice is above the best plain one, both seen to be best.

    The posterior's mean weights are plain networks too, but of a variational training.
    """
    lines = []
    for region in regions_of(rows):
        for measure, sign, name in (("dsc", 1.0, "DSC"), ("nll_nats", -1.0, "NLL")):
            tops = []
            for method in (PLAIN, VARIATIONAL):
                choices = _choices(rows, method.method)
                scores = {c: sign * _mean(_of(rows, region, c), measure) for c in choices}
                tops.append(max(scores, key=lambda choice: scores[choice]))
            plain, variational = tops
            gap = _gap(_of(rows, region, variational), _of(rows, region, plain), measure)
            lines.append(
                f"- {region}, {name}: variational ({variational[1]:g} of the way back, "
                f"{_posterior(*variational[::2])}) less plain ({plain[1]:g}): "
                f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
            )
    return "\n".join(lines)


def regions_of(rows: Sequence[Row]) -> list[str]:
    """Return the regions in their order."""
    return list(dict.fromkeys(row["region"] for row in rows))


def _choices(rows: Sequence[Row], method: str) -> list[Choice]:
    found = [
        (row["method"], float(row["share"]), float(row["width"]))
        for row in rows
        if row["method"] == method
    ]
    return list(dict.fromkeys(found))


def _of(rows: Sequence[Row], region: str, choice: Choice) -> list[Row]:
    method, share, width = choice
    return [
        row
        for row in rows
        if (row["region"], row["method"]) == (region, method)
        and (float(row["share"]), float(row["width"])) == (share, width)
    ]


def _mean(rows: Sequence[Row], measure: str) -> float:
    return fmean(float(row[measure]) for row in rows)


def _gap(rows: Sequence[Row], others: Sequence[Row], measure: str) -> MeanInterval:
    before = {(row["subset"], row["case"]): float(row[measure]) for row in others}
    gaps = [float(row[measure]) - before[row["subset"], row["case"]] for row in rows]
    return bootstrap_mean_interval(gaps, [row["subject"] for row in rows], seed=0)


def _posterior(method: str, width: float) -> str:
    if method == PLAIN.method:
        return "none"
    return f"{width:g} times as wide" if width else "its mean weights"


def _rows(cells: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in cells]


if __name__ == "__main__":
    raise SystemExit(main())
