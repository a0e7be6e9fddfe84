"""README's tables of a finished experiment, from its own tables alone.

One table has a row per arm: DSC with its interval over subjects, NLL, ECE and what uncertainty is
worth. Another holds one arm against all others, pair by pair; a third says how much better than the
best arm the best of all arms would be, chosen case by case in sight of the truth. On demand others
say what data and prior cost at the end of variational training, and give intervals over the heads
and shapes that generated subjects share.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medseg.config.finished import load_finished
from medseg.data.phantom.cohort import PhantomSource
from medseg.experiment.statistics import bootstrap_mean_interval, crossed_interval
from medseg.io.atomic import read_table, write_text
from medseg.report.arms import look_of
from medseg.report.curves import groups_of
from medseg.report.plots import learning_curve
from medseg.report.run_folder import read_run
from medseg.report.statistics import summaries

Row = dict[str, str]
_ARM = ("method", "source", "n", "region")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--arm", help="a method to hold against the others")
    parser.add_argument("--source", default="", help="its source; the first found if not given")
    parser.add_argument(
        "--beside", type=Path, help="hold it against another run's arms on the same cases, too"
    )
    parser.add_argument(
        "--families",
        action="store_true",
        help="its differences with intervals over the heads and shapes of generated subjects",
    )
    parser.add_argument("--nats", action="store_true", help="show data and KL terms too")
    parser.add_argument("--figure", type=Path, help="write the learning curves there, as SVG")
    arguments = parser.parse_args(argv)
    print(table(arguments.run))
    if arguments.arm:
        print(against(arguments.run, arguments.arm, arguments.source))
        if arguments.families:
            print(families(arguments.run, arguments.arm, arguments.source))
        if arguments.beside is not None:
            print(beside(arguments.run, arguments.arm, arguments.source, arguments.beside))
    print(ceiling(arguments.run))
    if arguments.nats:
        print(nats(arguments.run))
    if arguments.figure is not None:
        draw(arguments.run, arguments.figure)
    return 0


def draw(run: Path, figure: Path) -> None:
    """Write mean DSC over the number of training subjects as SVG."""
    found = read_run(run)
    picture = learning_curve(found, summaries(found))
    if picture is None:
        raise SystemExit(f"a curve needs two numbers of training subjects, but {run} has fewer")
    paper = '<rect width="100%" height="100%" fill="white"/>'
    start = picture.svg.index(">", picture.svg.index("<svg")) + 1
    write_text(figure, f"{picture.svg[:start]}{paper}{picture.svg[start:]}\n")


def table(run: Path) -> str:
    """Return a Markdown table with a row per arm and number of training subjects."""
    regions = _regions(run)
    scores = {_key(row): row for row in read_table(run / "summary.tsv")}
    gains = {_key(row): row for row in read_table(run / "decisions.tsv")}
    head = ["arm", "source", "N"]
    for region in regions:
        head += [f"{region}: DSC [95 %]", "NLL", "ECE"]
    head += [f"{region}: gain of referring 20 %, at most" for region in regions]
    out = [_line(head), _line(["---"] * len(head))]
    arms = dict.fromkeys(key[:3] for key in scores)
    for method, source, n in sorted(arms, key=lambda a: (int(a[2]), look_of(a[0]).rank, a)):
        cells = [look_of(method).short, source, n]
        for region in regions:
            row = scores[method, source, n, region]
            cells += [
                f"{_short(row['mean_dsc'])} [{_short(row['low_dsc'])}, {_short(row['high_dsc'])}]",
                _short(row["mean_nll_nats"], 4),
                _short(row["mean_ece"], 4),
            ]
        for region in regions:
            gain = gains.get((method, source, n, region), {})
            most = _short(gain.get("gain_most", "n/a"))
            interval = _interval(gain, "gain_expected_dsc", "gain_expected_dsc")
            cells.append(f"{interval}, {most}" if interval and most else interval)
        out.append(_line(cells))
    return "\n".join(out) + "\n"


def against(run: Path, method: str, source: str) -> str:
    """Return a Markdown table of one arm's differences to every other."""
    pairs = read_table(run / "paired.tsv")
    rows = [r for r in pairs if r["method"] == method and source in ("", r["source"])]
    if not rows:
        known = sorted({f"{row['method']} ({row['source']})" for row in pairs})
        raise SystemExit(f"{method!r} {source} is no arm of {run}; there are {', '.join(known)}")
    head = ["N", "region", "against", "difference in DSC", "p (Holm)", "in NLL", "people", "pairs"]
    out = [_line(head), _line(["---"] * len(head))]
    for row in sorted(rows, key=lambda r: (int(r["n"]), r["region"], -float(r["difference_dsc"]))):
        out.append(
            _line(
                [
                    row["n"],
                    row["region"],
                    f"{look_of(row['against']).short}, {row['against_source']}",
                    _interval(row, "difference_dsc", ""),
                    _short(row["p_holm"]),
                    _interval(row, "difference_nll_nats", "nll_nats"),
                    row["n_subjects"],
                    row["n_pairs"],
                ]
            )
        )
    return "\n".join(out) + "\n"


def families(run: Path, method: str, source: str) -> str:
    """Return a Markdown table of one arm's differences over subjects, and over their parents.

    Generated subjects share heads and lesion shapes: the second interval draws those anew, crossed,
    instead of subjects as if each were like no other.
    """
    plan, _ = load_finished(run)
    target = plan.target.source
    if not isinstance(target, PhantomSource):
        raise SystemExit(f"the target of {run} is not generated: its subjects have no parents")
    parents = {
        name: target.provenance(index)["parents"] for index, name in enumerate(target.identifiers)
    }
    if any(len(found) != 2 for found in parents.values()):
        raise SystemExit(f"subjects of {run} have no two parents, a head and a lesion's shape")
    arms = _scores(run)
    whose = source or next((key[1] for key in arms if key[0] == method), "")
    head = ["N", "region", "against", "over subjects", "over heads and shapes", "heads", "shapes"]
    out = [_line(head), _line(["---"] * len(head))]
    for (name, origin, n, region), theirs in sorted(arms.items()):
        ours = arms.get((method, whose, n, region), {})
        gaps: dict[str, list[float]] = {}
        for place in ours.keys() & theirs.keys() if name != method else ():
            gap = float(ours[place]["dsc"]) - float(theirs[place]["dsc"])
            gaps.setdefault(place[2], []).append(gap)
        if not gaps:
            continue
        cases = sorted(gaps)
        means = [float(np.mean(gaps[case])) for case in cases]
        heads, shapes = zip(*(parents[case] for case in cases), strict=True)
        intervals = (
            bootstrap_mean_interval(means, cases, seed=0),
            crossed_interval(means, heads, shapes, seed=0),
        )
        cells = [f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]" for gap in intervals]
        counts = [str(len(set(factor))) for factor in (heads, shapes)]
        out.append(_line([n, region, f"{look_of(name).short}, {origin}", *cells, *counts]))
    return "\n".join(out) + "\n"


def beside(run: Path, method: str, source: str, other: Path) -> str:
    """Return a Markdown table of one arm's differences to another run's arms, pair by pair.

    A pair has the same training subjects, seed and test case; intervals are over people.
    """
    arms = _scores(run)
    whose = source or next((key[1] for key in arms if key[0] == method), "")
    head = ["N", "region", "against, in the other run", "difference in DSC", "in NLL", "pairs"]
    out = [_line(head), _line(["---"] * len(head))]
    for (name, origin, n, region), theirs in sorted(_scores(other).items()):
        ours = arms.get((method, whose, n, region), {})
        pairs = [(ours[place], theirs[place]) for place in theirs if place in ours]
        if not pairs:
            continue
        cells = [n, region, f"{look_of(name).short}, {origin}"]
        for score in ("dsc", "nll_nats"):
            known = [(a, b) for a, b in pairs if "n/a" not in (a[score], b[score])]
            gaps = [float(a[score]) - float(b[score]) for a, b in known]
            people = [a["subject"] for a, _ in known]
            gap = bootstrap_mean_interval(gaps, people, seed=0) if gaps else None
            cells.append(f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" if gap else "")
        out.append(_line([*cells, str(len(pairs))]))
    if len(out) == 2:
        raise SystemExit(f"{other} has no case of the subsets and seeds of {method!r} in {run}")
    return "\n".join(out) + "\n"


def _scores(run: Path) -> dict[tuple[str, ...], dict[tuple[str, ...], Row]]:
    found: dict[tuple[str, ...], dict[tuple[str, ...], Row]] = {}
    for row in read_table(run / "scores.tsv"):
        arm = found.setdefault((row["method"], row["source"], row["n"], row["region"]), {})
        arm[row["subset"], row["seed"], row["case"]] = row
    return found


def ceiling(run: Path) -> str:
    """Return a Markdown table of what choosing between arms could give at most.

    Of the arms that start from a source and learn from the target: mean DSC of the best, mean over
    cases of the best DSC of any, and the correlation of the best arm's DSC with that of each other
    over the same cases.
    """
    scores: dict[tuple[int, str], dict[str, dict[tuple[str, ...], float]]] = {}
    for row in read_table(run / "scores.tsv"):
        if row["source"] != "none" and int(row["n"]) > 0 and row["dsc"] != "n/a":
            arm = f"{row['method']}, {row['source']}"
            arms = scores.setdefault((int(row["n"]), row["region"]), {}).setdefault(arm, {})
            arms[row["subset"], row["seed"], row["case"]] = float(row["dsc"])
    head = ["N", "region", "arms", "best arm", "its DSC", "best of all arms, case by case"]
    head += ["correlation with the best arm: lowest", "highest"]
    out = [_line(head), _line(["---"] * len(head))]
    for (n, region), arms in sorted(scores.items()):
        places = sorted(set.intersection(*map(set, arms.values())))
        table = np.array([[arms[arm][place] for place in places] for arm in arms])
        best = int(table.mean(axis=1).argmax())
        alike = np.corrcoef(table)[best] if len(arms) > 1 and len(places) > 1 else np.empty(0)
        others = np.delete(alike, best) if len(alike) else alike
        spread = [f"{end:.3f}" for end in (others.min(), others.max())] if len(others) else ["", ""]
        means = [f"{table[best].mean():.3f}", f"{table.max(axis=0).mean():.3f}"]
        out.append(_line([str(n), region, str(len(arms)), list(arms)[best], *means, *spread]))
    return "\n".join(out) + "\n"


def nats(run: Path) -> str:
    """Return a Markdown table of the data and KL terms over the last third of training.

    Means over steps, subsets, seeds and members; the data term is scaled to all training voxels,
    the KL term is that of all kernels, up to log Z where the prior is not normalised.
    """
    found = read_run(run)
    sources = list(dict.fromkeys(row["source"] for row in read_table(run / "summary.tsv")))
    head = ["arm", "source", "N", "data (nats)", "KL (nats)", "runs"]
    out = [_line(head), _line(["---"] * len(head))]
    for group in groups_of(found.histories, sources):
        if not group.has_kl:
            continue
        unknown = " less log Z" if group.kl_term[0] != "kl_nats" else ""
        for source in dict.fromkeys(group.labels.values()):
            runs = [h for name, h in group.histories.items() if group.labels[name] == source]
            data, divergence = (_late_mean(runs, key) for key in ("data_nats", group.kl_term[0]))
            numbers = [f"{data:.0f}", f"{divergence:.0f}{unknown}", str(len(runs))]
            out.append(_line([look_of(group.method).short, source, str(group.n), *numbers]))
    return "\n".join(out) + "\n"


def _late_mean(runs: Sequence[Mapping[str, np.ndarray]], column: str) -> float:
    return float(np.mean([run[column][-(len(run[column]) // 3) :].mean() for run in runs]))


def _regions(run: Path) -> list[str]:
    config = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    named = config.get("protocol", {}).get("regions", {}).get("names")
    found = dict.fromkeys(row["region"] for row in read_table(run / "summary.tsv"))
    return [name for name in named or found if name in found]


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in _ARM)


def _interval(row: Row, name: str, bounds: str) -> str:
    if row.get(name, "n/a") == "n/a":
        return ""
    low, high = (f"{end}_{bounds}" if bounds else end for end in ("low", "high"))
    return f"{float(row[name]):+.3f} [{float(row[low]):+.3f}, {float(row[high]):+.3f}]"


def _short(value: str, digits: int = 3) -> str:
    return "" if value == "n/a" else f"{float(value):.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
