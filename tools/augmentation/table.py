"""Paired differences between arms, also of two experiments on the same subsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.experiment.statistics import paired_difference
from medseg.io.atomic import read_table

Row = dict[str, object]


@dataclass(frozen=True)
class Pairing:
    """An arm (method, source) of a run with an augmentation, and the one without it."""

    part: str
    augmentation: str
    run: Path
    arm: tuple[str, str]
    against: str
    other_run: Path
    other_arm: tuple[str, str]


def compare(wanted: Sequence[Pairing]) -> list[Row]:
    """Return a row per augmentation, method, n and region; seeds are pooled, subjects resampled."""
    groups: dict[tuple[str, ...], list[Pairing]] = {}
    for pairing in wanted:
        key = (pairing.part, pairing.augmentation, pairing.arm[0], pairing.against)
        groups.setdefault(key, []).append(pairing)
    rows: list[Row] = []
    for (part, augmentation, method, against), members in groups.items():
        pairs: dict[tuple[int, str], list[tuple[float, float, str, str]]] = {}
        for member in members:
            mine, theirs = (
                _scores(member.run, member.arm),
                _scores(member.other_run, member.other_arm),
            )
            for key in mine.keys() & theirs.keys():
                n, region = key[0], key[-1]
                (dsc, subject), (other, _) = mine[key], theirs[key]
                pairs.setdefault((n, region), []).append((dsc, other, subject, member.run.name))
        for (n, region), found in sorted(pairs.items()):
            ordered = sorted(found, key=lambda item: (item[3], item[2]))
            difference = paired_difference(
                [item[0] for item in ordered],
                [item[1] for item in ordered],
                [item[2] for item in ordered],
                seed=0,
            )
            rows.append(
                {
                    "part": part,
                    "augmentation": augmentation,
                    "against": against,
                    "method": method,
                    "n": n,
                    "region": region,
                    "dsc_with": sum(item[0] for item in ordered) / len(ordered),
                    "dsc_without": sum(item[1] for item in ordered) / len(ordered),
                    "difference": difference.difference,
                    "low": difference.low,
                    "high": difference.high,
                    "p_wilcoxon": difference.p_wilcoxon,
                    "n_subjects": difference.n_subjects,
                    "n_pairs": difference.n_values,
                    "runs": sorted({item[3] for item in ordered}),
                }
            )
    return rows


def _scores(
    run: Path, arm: tuple[str, str]
) -> dict[tuple[int, str, str, str, str], tuple[float, str]]:
    """Return DSC and subject by n, subset, seed, case and region."""
    return {
        (int(row["n"]), row["subset"], row["seed"], row["case"], row["region"]): (
            float(row["dsc"]),
            row["subject"],
        )
        for row in read_table(run / "scores.tsv")
        if (row["method"], row["source"]) == arm and row["dsc"] not in ("", "n/a")
    }


def markdown(rows: Sequence[Row], checks: Mapping[str, object]) -> str:
    """Return the rows and the nearest-neighbour checks as two tables."""
    lines = [
        "| part | augmentation | against | method | n | region | DSC with | without | "
        "difference [95 %] | p | people | pairs |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            "| {part} | {augmentation} | {against} | {method} | {n} | {region} | {dsc_with:.3f} | "
            "{dsc_without:.3f} | {difference:+.3f} [{low:+.3f}, {high:+.3f}] | {p_wilcoxon:.2f} | "
            "{n_subjects} | {n_pairs} |".format(**row)
        )
    lines += [
        "",
        "| lesions | of | samples | training lesions | median distance of a sample | of a training "
        "lesion to another | least of a sample | least of a lesion | share nearer than 95 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in checks.items():
        for check in found if isinstance(found, list) else []:
            lines.append(
                "| {name} | {of} | {n_samples} | {n_items} | {median_sample:.3f} | "
                "{median_item:.3f} | {least_sample:.3f} | {least_item:.3f} | "
                "{share_nearer:.2f} |".format(name=name, **check)
            )
    return "\n".join(lines) + "\n"
