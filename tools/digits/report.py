"""Means, intervals and paired differences over draws, as tables and a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from medseg.io.atomic import atomic_path
from tools.digits.plan import INITS, PRIORS, PUBLISHED, Sizes

Row = dict[str, Any]
_MEASURES = ("accuracy", "nats_per_picture", "training_accuracy", "data_nats", "kl_nats")


def interval(values: Sequence[float]) -> dict[str, float]:
    """Return mean, 95 % limits by Student's t, and n; limits are NaN for one value."""
    numbers = np.asarray(values, dtype=float)
    n, mean = len(numbers), float(numbers.mean())
    half = math.nan
    if n > 1:
        half = float(student.ppf(0.975, n - 1) * numbers.std(ddof=1) / math.sqrt(n))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return one line an arm and number of digits, with its paired difference from the dwp.

    The dwp it is held against has the same start, weight of the KL, digits and draws.
    """
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row["n"], row["prior"], row["init"], row["beta"])
        cells.setdefault(key, []).append(row)
    lines = []
    for (n, prior, init, beta), mine in cells.items():
        line: Row = {"n": n, "prior": prior, "init": init, "beta": beta}
        for name in _MEASURES:
            if all(name in row for row in mine):
                line[name] = interval([row[name] for row in mine])
        learned = cells.get((n, "vae", init, beta))
        if learned and prior != "vae":
            ours = {row["seed"]: row["accuracy"] for row in learned}
            paired = [ours[row["seed"]] - row["accuracy"] for row in mine if row["seed"] in ours]
            line["dwp_minus_this"] = interval(paired)
        lines.append(line)
    return lines


def markdown(lines: Sequence[Row], source: Any, sizes: Sizes, *, command: str) -> str:
    """Return all tables."""
    draws = lines[0]["accuracy"]["n"]
    first, second = sizes.widths
    head = (
        f"`{command}`: letters of matplotlib's fonts to scikit-learn's digits. Test accuracy on "
        f"all digits that were not drawn, mean over {draws} draws (digits, start, batches) with "
        f"95 % t interval; the source is one set of {sizes.networks} networks, whose chance is not "
        f"in the intervals. Convolutions of 3 x 3 ({first} and {second} channels) are variational, "
        f"the head is not; {sizes.steps} steps, {sizes.samples} posterior samples, the evidence "
        f"lower bound itself (beta 1) unless said."
    )
    parts = [head]
    if source:
        accuracy = interval(source["accuracy"])
        nats = [row for row in source["nats"] if row["layer"] != "all"]
        found = [f"{r['prior']} {r['layer']} {r['nats_per_kernel']:.2f}" for r in nats]
        parts.append(
            f"Source networks: {accuracy['mean']:.3f} accuracy on unseen letters. Held-out nats "
            f"per kernel: {', '.join(found)}."
        )
    parts.append(_main_table(lines))
    parts.append(_start_table(lines))
    parts.append(_beta_table(lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def _find(lines: Sequence[Row], n: int, prior: str, init: str, beta: float = 1.0) -> Row | None:
    wanted = (n, prior, init, beta)
    keys = ("n", "prior", "init", "beta")
    return next((line for line in lines if tuple(line[key] for key in keys) == wanted), None)


def _main_table(lines: Sequence[Row]) -> str:
    rows = []
    examples = sorted({line["n"] for line in lines if line["init"] == "prior"})
    for prior, name in PRIORS.items():
        found = [_find(lines, n, prior, "prior") for n in examples]
        rows.append([name, *(_accuracy(line) for line in found)])
        rows.append(["- dwp less this", *(_difference(line) for line in found)])
        published = [PUBLISHED.get(prior, {}).get(n) for n in examples]
        rows.append(["- published", *("" if x is None else f"{x:.3f}" for x in published)])
    kept = [row for row in rows if any(row[1:])]
    title = "### Prior, all started from samples of the VAE (published: notMNIST to MNIST)"
    return "\n".join([title, "", *_table(["prior", *(f"{n} digits" for n in examples)], kept)])


def _start_table(lines: Sequence[Row]) -> str:
    parts = []
    for n in sorted({line["n"] for line in lines if line["init"] != "prior"}):
        rows = [
            [name, *(_accuracy(_find(lines, n, prior, init)) for init in INITS)]
            for prior, name in PRIORS.items()
        ]
        title = f"### Prior and start, {n} digits"
        parts.append("\n".join([title, "", *_table(["prior", *INITS.values()], rows)]))
    return "\n\n".join(parts)


def _beta_table(lines: Sequence[Row]) -> str:
    swept = [line for line in lines if line["beta"] != 1.0]
    places = dict.fromkeys((line["n"], line["prior"], line["init"]) for line in swept)
    rows = []
    for line in lines:
        if (line["n"], line["prior"], line["init"]) not in places:
            continue
        kl = line.get("kl_nats")
        cells = [
            PRIORS[line["prior"]],
            str(line["n"]),
            f"{line['beta']:g}",
            _accuracy(line),
            f"{line['nats_per_picture']['mean']:.3f}",
            f"{line['data_nats']['mean']:.0f}" if "data_nats" in line else "",
            f"{kl['mean']:.0f}" if kl else "",
        ]
        rows.append(cells)
    if not rows:
        return ""
    columns = ["prior", "digits", "beta", "accuracy", "test nats a picture", "data nats", "KL nats"]
    rows.sort(key=lambda row: (list(PRIORS.values()).index(row[0]), float(row[2])))
    title = "### Weight of the KL, with both terms of the bound at the last step"
    return "\n".join([title, "", *_table(columns, rows)])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def _accuracy(line: Row | None) -> str:
    return "" if line is None else _shown(line["accuracy"])


def _difference(line: Row | None) -> str:
    if line is None or "dwp_minus_this" not in line:
        return ""
    return _shown(line["dwp_minus_this"], "+")


def _shown(found: dict[str, float], sign: str = "") -> str:
    mean, low, high = (f"{found[name]:{sign}.3f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def figure(lines: Sequence[Row], path: Path) -> None:
    """Draw accuracy over the number of digits, ours and the published, beside each other."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    drawing, (ours, theirs) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, (prior, name) in enumerate(PRIORS.items()):
        mine = [_find(lines, n, prior, "prior") for n in sorted({line["n"] for line in lines})]
        found = [line for line in mine if line is not None]
        n = np.array([line["n"] for line in found], dtype=float)
        mean, low, high = (
            np.array([line["accuracy"][key] for line in found]) for key in ("mean", "low", "high")
        )
        # A little apart, so that intervals do not hide each other.
        place = n * (0.95 + 0.02 * i)
        errors = np.nan_to_num(np.stack([mean - low, high - mean]))
        ours.errorbar(place, mean, errors, marker="o", capsize=2, color=f"C{i}", label=name)
        known = PUBLISHED.get(prior, {})
        if known:
            theirs.plot(list(known), list(known.values()), marker="o", color=f"C{i}", label=name)
    ours.set_title("letters to scikit-learn's digits, 95 % t interval")
    theirs.set_title("notMNIST to MNIST, published")
    for axis in (ours, theirs):
        axis.set(xscale="log", xlabel="training digits", ylabel="test accuracy")
        axis.legend(fontsize=8)
    with atomic_path(path) as temporary:
        drawing.savefig(temporary, dpi=110)
    plt.close(drawing)
