"""One table of filter priors: nats, how real their samples look, what they give, what they cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.errors import DataError
from medseg.experiment.statistics import PairedDifference, paired_difference
from medseg.io.atomic import read_table
from medseg.priors.compare import REAL

#: Arms without a learned prior that stand beside the priors, and what they are.
BASELINES = {
    "ri": "no source (ri)",
    "pr": "no prior (pr)",
    "gaussian": "Gaussian around the source weights",
}


@dataclass(frozen=True)
class FewShot:
    """Few-shot DSC of one arm, and its difference from plain fine-tuning.

    Parameters
    ----------
    dsc : float
        Mean over regions, test cases and runs.
    against_pr : PairedDifference
        On the same cases, with an interval that resamples subjects.
    seconds : float
        Wall time of one cell: training and prediction of its test cases.
    """

    dsc: float
    against_pr: PairedDifference
    seconds: float


@dataclass(frozen=True)
class PriorRow:
    """One prior, over all runs; what was not measured is None.

    Parameters
    ----------
    name : str
    nats, nats_sd : float, optional
        Held-out nats per kernel: mean and standard deviation over runs; none if unnormalised.
    normalised : bool, optional
        None where there is no density.
    logistic, logistic_sd, forest, forest_sd : float, optional
        Two-sample accuracy: mean over runs, and standard deviation over folds.
    source_start, prior_start : FewShot, optional
        Posterior means started at the source weights, or at samples of the prior.
    fit_seconds : float, optional
        Wall time of the fit to all layers of the training networks.
    """

    name: str
    normalised: bool | None = None
    nats: float | None = None
    nats_sd: float | None = None
    logistic: float | None = None
    logistic_sd: float | None = None
    forest: float | None = None
    forest_sd: float | None = None
    source_start: FewShot | None = None
    prior_start: FewShot | None = None
    fit_seconds: float | None = None


@dataclass(frozen=True)
class PriorTable:
    """The rows, and what every number rests on.

    Parameters
    ----------
    rows : sequence of PriorRow
    seeds : sequence of int
        One run each: its own source networks, priors, training subset and test subjects.
    n_train : int
        Target subjects trained on.
    n_cases : int
        Test cases of a run.
    n_kernels, n_two_sample : int
        Held-out kernels scored, and those told from samples, of a run.
    seconds : float
        Wall time of all stages of all runs, added up.
    command : str
        That makes the table again.
    """

    rows: Sequence[PriorRow]
    seeds: Sequence[int]
    n_train: int
    n_cases: int
    n_kernels: int
    n_two_sample: int
    seconds: float
    command: str


def prior_table(runs: Sequence[Path], *, command: str = "") -> PriorTable:
    """Return the table of finished experiments that differ by their seed alone.

    Parameters
    ----------
    runs : sequence of Path
        Folders written by :func:`medseg.experiment.run.run_experiment`, each with one source, an
        arm ``pr``, and arms of ``dwp`` that name their prior.
    command : str
        For the record.

    Raises
    ------
    DataError
        A run is not finished, or has no named prior or no arm ``pr``.
    """
    read = [_Run(folder) for folder in runs]
    names = list(dict.fromkeys(row["prior"] for run in read for row in run.held_out))
    wanted = [name for name in names if name != REAL]
    if not read or not wanted or any("pr" not in run.seconds_per_cell for run in read):
        raise DataError(
            f"A prior table needs runs with an arm pr and priors named by arms of dwp, but it was "
            f"given {len(read)} runs with the priors {wanted}.",
            hint="Run configs/experiment/priors.yaml, to its end.",
        )
    rows = [
        PriorRow(name=words, source_start=_few_shot(read, arm))
        for arm, words in BASELINES.items()
        if all(arm in run.seconds_per_cell for run in read)
    ]
    rows += [_row(read, name) for name in names]
    first = read[0]
    return PriorTable(
        rows=rows,
        seeds=[run.seed for run in read],
        n_train=max(int(row["n"]) for row in first.scores),
        n_cases=len({row["case"] for row in first.scores if row["method"] == "pr"}),
        n_kernels=int(first.held_out[0]["n_kernels"]),
        n_two_sample=int(first.held_out[0]["two_sample_n"]),
        seconds=sum(run.seconds for run in read),
        command=command,
    )


class _Run:
    """What one run left behind."""

    def __init__(self, folder: Path) -> None:
        tables = [folder / "scores.tsv", *sorted(folder.glob("priors/*/held_out.tsv"))]
        if len(tables) != 2 or not all(path.is_file() for path in tables):
            raise DataError(
                f"{folder} must hold scores.tsv and one priors/SOURCE/held_out.tsv, but it holds "
                f"{[str(path.relative_to(folder)) for path in tables if path.is_file()]}.",
                hint="Let the experiment run to its end, with one source.",
            )
        self.scores = read_table(tables[0])
        whole = [row for row in read_table(tables[1]) if row["layer"] == "all"]
        self.held_out = [row for row in whole if row.get("two_sample_n", "n/a") != "n/a"]
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self.seed = int(about["seed"])
        self.seconds = float(sum(about["seconds"].values()))
        cells = {(row["method"], row["subset"], row["seed"]) for row in self.scores}
        count = {method: sum(m == method for m, *_ in cells) for method, *_ in cells}
        self.seconds_per_cell = {
            method: about["seconds"].get(f"cells: {method}", math.nan) / n
            for method, n in count.items()
        }

    def dsc(self, method: str) -> dict[tuple[str, ...], float]:
        """Return DSC by seeds of run and cell, subset, region, subject and case."""
        keys = ("seed", "subset", "region", "subject", "case")
        return {
            (str(self.seed), *(row[key] for key in keys)): float(row["dsc"])
            for row in self.scores
            if row["method"] == method
        }


def _row(runs: Sequence[_Run], name: str) -> PriorRow:
    found = [row for run in runs for row in run.held_out if row["prior"] == name]
    real = name == REAL
    normalised = None if real else all(row["bound"] != "unnormalised" for row in found)
    nats = np.array([float(row["nats_per_kernel"]) for row in found]) if normalised else None

    def mean(column: str) -> float:
        return float(np.mean([float(row[column]) for row in found]))

    return PriorRow(
        name=name,
        normalised=normalised,
        nats=None if nats is None else float(nats.mean()),
        nats_sd=None if nats is None or len(nats) < 2 else float(nats.std(ddof=1)),
        logistic=mean("two_sample_logistic"),
        logistic_sd=mean("two_sample_logistic_sd"),
        forest=mean("two_sample_forest"),
        forest_sd=mean("two_sample_forest_sd"),
        source_start=_few_shot(runs, f"dwp_{name}"),
        prior_start=_few_shot(runs, f"dwp_{name}_prior"),
        fit_seconds=None if real else mean("fit_seconds"),
    )


def _few_shot(runs: Sequence[_Run], method: str) -> FewShot | None:
    mine = {key: value for run in runs for key, value in run.dsc(method).items()}
    if not mine:
        return None
    pr = {key: value for run in runs for key, value in run.dsc("pr").items()}
    # A subject of two runs is one subject.
    difference = paired_difference(
        list(mine.values()), [pr[key] for key in mine], [key[4] for key in mine], seed=0
    )
    seconds = float(np.mean([run.seconds_per_cell[method] for run in runs]))
    return FewShot(float(np.mean(list(mine.values()))), difference, seconds)


def to_markdown(table: PriorTable) -> str:
    """Return the table with a caption that says what every number rests on."""
    heads = [
        "prior",
        "nats per kernel",
        "logistic, %",
        "forest, %",
        "DSC, source start",
        "minus pr [95 %]",
        "DSC, prior start",
        "minus pr [95 %]",
        "fit, s",
        "cell, s",
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads))]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in table.rows]
    seeds = ", ".join(map(str, table.seeds))
    subjects = max(row.source_start.against_pr.n_subjects for row in table.rows if row.source_start)
    caption = (
        f"Seeds {seeds}, each with its own source networks, priors, {table.n_train} training "
        f"subjects and {table.n_cases} test cases. *Nats*: mean log density (or bound) of "
        f"{table.n_kernels} kernels of the source network left out of the fit, ± standard "
        f"deviation over seeds. *Logistic, forest*: cross-validated accuracy in telling "
        f"{table.n_two_sample} such kernels from as many samples, ± standard deviation over folds; "
        f"50 is perfect, and *{REAL}* puts kernels of the other networks in the place of samples. "
        f"*DSC*: mean over "
        f"regions and test cases at N = {table.n_train}; *minus pr*: paired difference from plain "
        f"fine-tuning, interval by a bootstrap over {subjects} subjects. *Fit*: all layers, wall "
        f"time. *Cell*: one fine-tuning from the source weights with its predictions, wall time. "
        f"All stages together: {table.seconds / 60:.0f} min."
    )
    made = f"`{table.command}`\n\n" if table.command else ""
    return f"{made}{chr(10).join(lines)}\n\n{caption}\n"


def _cells(row: PriorRow) -> Iterator[str]:
    yield row.name
    if row.normalised is False:
        yield "unnormalised"
    else:
        yield _with_spread(row.nats, row.nats_sd, 2)
    for value, spread in ((row.logistic, row.logistic_sd), (row.forest, row.forest_sd)):
        yield _with_spread(
            None if value is None else 100 * value, None if spread is None else 100 * spread, 1
        )
    for arm in (row.source_start, row.prior_start):
        yield "" if arm is None else f"{arm.dsc:.3f}"
        gap = None if arm is None else arm.against_pr
        if gap is None or row.name == BASELINES["pr"]:
            yield ""
        else:
            yield f"{gap.difference:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
    yield "" if row.fit_seconds is None else f"{row.fit_seconds:.1f}"
    yield "" if row.source_start is None else f"{row.source_start.seconds:.1f}"


def _with_spread(value: float | None, spread: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")
