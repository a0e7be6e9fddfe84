"""Arms held against each other on the same cases after the same training: differences and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from medseg.experiment.ranks import rank_arms
from medseg.experiment.statistics import detectable_difference, holm, paired_difference

Row = dict[str, object]
#: Subset, seed and case of a score.
Place = tuple[str, str, str]
_PAIRED = ("dsc", "nll_nats", "ece")


def number(text: str) -> float:
    """Return the number in a cell of a table, NaN where there is none."""
    return float("nan") if text in ("", "n/a") else float(text)


@dataclass(frozen=True, eq=False)
class ArmScores:
    """The scores of one arm at one n on one region.

    Parameters
    ----------
    method, source : str
    rows : sequence of scores
    members : int
        Networks of each source: an arm of seed s starts from number s modulo so many.
    """

    method: str
    source: str
    rows: Sequence[dict[str, str]]
    members: int = 1

    @cached_property
    def subject_of(self) -> dict[str, str]:
        """Subject of each case."""
        return {row["case"]: row["subject"] for row in self.rows}

    def values(self, column: str) -> dict[Place, float]:
        """Return the finite scores by place."""
        found = {
            (row["subset"], row["seed"], row["case"]): number(row.get(column, ""))
            for row in self.rows
        }
        return {place: value for place, value in found.items() if np.isfinite(value)}

    def at(self, column: str, *, seeded: bool = True) -> Callable[[Place], float | None]:
        """Return what gives the score that stands at a place of another arm.

        Thresholds have no seed. A source network has no subset, and stands for every seed that
        starts from it; at places without seeds the mean of all of them stands.

        Parameters
        ----------
        column : str
        seeded : bool
            The other arm's places have seeds: it is trained.
        """
        values = self.values(column)
        if self.method == "threshold":
            tuned = {(subset, case): value for (subset, _, case), value in values.items()}
            return lambda place: tuned.get((place[0], place[2]), tuned.get(("none", place[2])))
        if self.method == "zero_shot" and not seeded:
            of_case: dict[str, list[float]] = {}
            for (_, _, case), value in values.items():
                of_case.setdefault(case, []).append(value)
            means = {case: float(np.mean(found)) for case, found in of_case.items()}
            return lambda place: means.get(place[2])
        if self.method == "zero_shot":
            starts = {
                (int(seed) % self.members, case): value for (_, seed, case), value in values.items()
            }
            return lambda place: starts.get((int(place[1]) % self.members, place[2]))
        return values.get


def _training(arm: ArmScores) -> int:
    """Return how much of subset and seed an arm depends on."""
    return {"zero_shot": 0, "threshold": 1}.get(arm.method, 2)


def paired_rows(arms: Sequence[ArmScores], *, n: int, region: str, seed: int) -> list[Row]:
    """Return every arm against every other, in both directions.

    ``p_holm`` is corrected for all pairs of this n and region, each counted once.
    """
    pairs = []
    for first, second in combinations(arms, 2):
        found = {column: _difference(first, second, column, seed) for column in _PAIRED}
        if found["dsc"] is not None:
            pairs.append((first, second, found))
    adjusted = holm([float(str(found["dsc"]["p_wilcoxon"])) for _, _, found in pairs])
    rows: list[Row] = []
    for (first, second, found), p_holm in zip(pairs, adjusted, strict=True):
        for one, other, sign in ((first, second, 1.0), (second, first, -1.0)):
            rows.append(
                {
                    "method": one.method,
                    "source": one.source,
                    "n": n,
                    "region": region,
                    "against": other.method,
                    "against_source": other.source,
                    **_columns(found, sign=sign, p_holm=p_holm),
                }
            )
    order = {(arm.method, arm.source): place for place, arm in enumerate(arms)}
    return sorted(rows, key=lambda row: order[str(row["method"]), str(row["source"])])


def _difference(first: ArmScores, second: ArmScores, column: str, seed: int) -> Row | None:
    """Return the difference at the places of the arm that depends on more of the training."""
    swap = _training(second) > _training(first)
    rich, poor = (second, first) if swap else (first, second)
    at = poor.at(column, seeded=rich.method != "threshold")
    sign = -1.0 if swap else 1.0
    pairs = [
        (place[2], value, other)
        for place, value in rich.values(column).items()
        if (other := at(place)) is not None
    ]
    if not pairs:
        return None
    result = paired_difference(
        [sign * value for _, value, _ in pairs],
        [sign * other for _, _, other in pairs],
        [rich.subject_of[case] for case, _, _ in pairs],
        seed=seed,
    )
    return {
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
        "p_wilcoxon": result.p_wilcoxon,
        "sd": result.sd,
        "n_cases": len({case for case, _, _ in pairs}),
        "n_subjects": result.n_subjects,
        "n_pairs": len(pairs),
    }


def _columns(found: dict[str, Row | None], *, sign: float, p_holm: float) -> Row:
    dsc = found["dsc"] or {}
    sd, n_subjects = float(str(dsc["sd"])), int(str(dsc["n_subjects"]))
    columns: Row = {}
    for metric, result in found.items():
        ends: list[float | None] = [None, None, None]
        if result is not None:
            ends = [sign * float(str(result[key])) for key in ("difference", "low", "high")]
            ends = ends if sign > 0 else [ends[0], ends[2], ends[1]]
        low, high = ("low", "high") if metric == "dsc" else (f"low_{metric}", f"high_{metric}")
        columns |= dict(zip((f"difference_{metric}", low, high), ends, strict=True))
        if metric == "dsc":
            columns |= {"p_wilcoxon": dsc["p_wilcoxon"], "p_holm": p_holm, "sd_dsc": sd}
            columns["detectable_dsc"] = detectable_difference(sd, n_subjects)
    return columns | {key: dsc[key] for key in ("n_cases", "n_subjects", "n_pairs")}


def rank_rows(arms: Sequence[ArmScores], *, n: int, region: str) -> list[Row]:
    """Return the mean rank of each arm over subjects, best first.

    A subject's score is its mean DSC over the subsets and seeds that every arm was scored on.
    Empty where fewer than two arms share a place.
    """
    richest = max(arms, key=_training, default=None)
    if richest is None or len(arms) < 2:
        return []
    lookups = [arm.at("dsc", seeded=richest.method != "threshold") for arm in arms]
    table: dict[str, list[list[float]]] = {}
    for place in richest.values("dsc"):
        line = [value for at in lookups if (value := at(place)) is not None]
        if len(line) == len(arms):
            table.setdefault(richest.subject_of[place[2]], []).append(line)
    if not table:
        return []
    scores = np.array([np.mean(lines, axis=0) for lines in table.values()])
    ranking = rank_arms(scores)
    rows: list[Row] = [
        {
            "method": arm.method,
            "source": arm.source,
            "n": n,
            "region": region,
            "mean_rank": ranking.mean_ranks[place],
            "mean_dsc": scores[:, place].mean(),
            "n_arms": len(arms),
            "n_subjects": ranking.n_subjects,
            "n_places": sum(len(lines) for lines in table.values()),
            "friedman_chi2": ranking.friedman_chi2,
            "p_friedman": ranking.p_friedman,
            "critical_difference": ranking.critical_difference,
        }
        for place, arm in enumerate(arms)
    ]
    return sorted(rows, key=lambda row: float(str(row["mean_rank"])))
