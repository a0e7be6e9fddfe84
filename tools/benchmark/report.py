"""The rows as text: tables, and the targets with what was measured."""

from __future__ import annotations

import statistics
from typing import Any

from tools.benchmark.plan import MONAI, NNUNET, OURS, PHANTOM, REFERENCE, contender

Row = dict[str, Any]
#: Least overlap with the mask of eager float32 for an engine to count.
PARITY, PARITY_INT8 = 0.998, 0.99


def rows_of(results: Row, section: str) -> dict[str, Row]:
    """Return the measured rows of a section by name."""
    return {
        row["name"]: row
        for row in results["rows"]
        if row["section"] == section and row["status"] == "measured"
    }


def seconds(row: Row) -> float:
    return statistics.median(row["seconds"])


def mean(values: list[float] | None) -> float | None:
    return None if not values else sum(values) / len(values)


def agrees(name: str, row: Row) -> bool:
    """Return whether a row's mask is near enough to that of eager float32."""
    overlap = mean(row.get("dice_reference"))
    return overlap is not None and overlap >= (PARITY_INT8 if "int8" in name else PARITY)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return columns under their headings: words to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        first, *others = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join([line(header), "-" * len(line(header)), *(line(row) for row in rows)])


def inference_table(results: Row, case: Row) -> str:
    """Return every contender on one case."""
    found = rows_of(results, case["name"])
    peak = results["chip"]["peak_gflops"]
    base = {name: seconds(found[name]) for name in (NNUNET, MONAI) if name in found}
    lines = []
    for name, row in found.items():
        spent = seconds(row)
        shape, count = row.get("windows", (None, 0))
        lines.append(
            [
                name,
                f"{count} of {'x'.join(map(str, shape))}" if shape else "-",
                f"{spent:.2f}" + ("*" if "note" in row else ""),
                str(len(row["seconds"])),
                *(_number(base[b] / spent if b in base else None, 2) for b in (NNUNET, MONAI)),
                _number(row["peak_mib"] / 1024, 2),
                _number(row["idle_mib"] / 1024, 2),
                _number(mean(row.get("dice_truth")), 4),
                _number(mean(row.get("dice_reference")), 4),
                _number(100 * case["gigaflop"] / peak / spent, 1),
            ]
        )
    header = [
        "contender",
        "windows",
        "seconds",
        "n",
        "x nnU-Net",
        "x MONAI",
        "peak GiB",
        "idle GiB",
    ]
    header += ["DSC truth", "DSC eager", "% of limit"]
    box = " x ".join(map(str, case["box"]))
    limit = case["gigaflop"] / peak
    title = (
        f"{case['name']}: brain box {box}; one pass over the box is {case['gigaflop']:.0f} GFLOP, "
        f"{limit:.2f} s at the chip's measured {peak:.0f} GFLOP/s"
    )
    if NNUNET in base:
        most = base[NNUNET] / limit
        title += f"\none such pass can be at most {most:.1f} x faster than {NNUNET}"
    notes = [f"* {row['note']}" for row in found.values() if "note" in row]
    return "\n".join([title, table(header, lines), *notes])


def compile_table(results: Row) -> str | None:
    """Return what a first conversion costs, and loading it from the cache."""
    lines = [
        [
            name,
            f"{seconds(row):.1f}",
            f"{row['again_seconds']:.1f}",
            _number(row["peak_mib"] / 1024, 2),
        ]
        for name, row in rows_of(results, "compile").items()
    ]
    header = ["compile", "seconds", "from the cache", "peak GiB"]
    return table(header, lines) if lines else None


def scaling_tables(results: Row) -> list[str]:
    """Return cost against volume, posterior samples and scans."""
    parts = []
    volume = rows_of(results, "volume")
    if volume:
        sides = sorted({p["side"] for row in volume.values() for p in row["points"]})
        lines = []
        for name, row in volume.items():
            by_side = {p["side"]: p["seconds"] for p in row["points"]}
            lines.append([name, *(_number(by_side.get(side), 2) for side in sides)])
        header = ["seconds for a cube of side", *map(str, sides)]
        parts.append(table(header, lines))
    lines = [
        [name, str(p["samples"]), f"{p['seconds']:.2f}", f"{p['ratio']:.2f}"]
        for name, row in rows_of(results, "samples").items()
        for p in row["points"]
    ]
    if lines:
        parts.append(table(["posterior", "K", "seconds", "x one pass"], lines))
    lines = [
        [name, str(p["scans"]), f"{p['seconds']:.2f}", f"{100 * p['network_share']:.1f}"]
        for name, row in rows_of(results, "scans").items()
        for p in row["points"]
    ]
    if lines:
        parts.append(table(["files to files", "scans", "seconds", "% in network"], lines))
    return parts


def training_table(results: Row) -> str | None:
    """Return the training steps; ratios are within one network."""
    found = rows_of(results, "training")
    lines, parts = [], ("forward", "backward", "optimiser")
    for name, row in found.items():
        network = name.split(":")[0]
        plain = found.get(f"{network}: plain torch float32")
        ratio = plain["seconds_per_step"] / row["seconds_per_step"] if plain else None
        share = row["kl_seconds"] / row["seconds_per_step"] if "kl_seconds" in row else None
        loading, shares = row.get("loading_share"), row.get("shares")
        lines.append(
            [
                name,
                f"{row['seconds_per_step']:.2f}",
                str(row["n"]),
                _number(ratio, 2),
                _number(row["peak_mib"] / 1024, 2),
                _number(None if share is None else 100 * share, 1),
                _number(None if loading is None else 100 * loading, 1),
                *(f"{100 * shares[part]:.1f}" if shares else "-" for part in parts),
            ]
        )
    header = ["training step", "seconds", "n", "x plain torch", "peak GiB", "% KL", "% data wait"]
    header += [f"% {part}" for part in parts]
    return table(header, lines) if lines else None


def _fastest(rows: dict[str, Row], profile: str) -> str | None:
    """Return the fastest contender of medseg with a profile that agrees with eager float32.

    As for the library itself, int8 is for the profile "fast" alone.
    """
    names = [
        name
        for name in rows
        if name in OURS
        and name != REFERENCE
        and OURS[name]["profile"] == profile
        and (profile == "fast" or "int8" not in name)
        and agrees(name, rows[name])
    ]
    return min(names, key=lambda name: seconds(rows[name]), default=None)


def targets(results: Row) -> list[Row]:
    """Return every target with what was measured; a value of None was not measured."""
    rows = rows_of(results, PHANTOM)
    found: list[Row] = []

    def target(
        text: str, goal: float, value: float | None, *, least: bool = True, how: str = ""
    ) -> None:
        met = None if value is None else (value >= goal if least else value <= goal)
        row = {"target": text, "goal": goal, "least": least, "value": value, "met": met}
        found.append({**row, "how": how})

    def ratio(top: str | None, bottom: str | None, key: Any = seconds) -> float | None:
        if top not in rows or bottom not in rows:
            return None
        return key(rows[top]) / key(rows[bottom])

    default, fast = _fastest(rows, "default"), _fastest(rows, "fast")
    for peer in (NNUNET, MONAI):
        target(f"default, times faster than {peer}", 12, ratio(peer, default), how=str(default))
        target(f"fast, times faster than {peer}", 30, ratio(peer, fast), how=str(fast))
    eight = contender("OpenVINO int8")
    # A processor without float16 products computes in bf16 or float32 what is not int8.
    wide = [contender(f"OpenVINO {name}") for name in ("float16", "bf16", "float32")]
    half = min((n for n in wide if n in rows), key=lambda n: seconds(rows[n]), default=None)
    target("int8, times faster than OpenVINO without it", 1.7, ratio(half, eight), how=str(half))
    for peer in (NNUNET, MONAI):
        share = ratio(default, peer, lambda row: row["peak_mib"])
        target(
            f"default, peak memory over that of {peer}", 0.5, share, least=False, how=str(default)
        )
    for case in results["cases"]:
        here = rows_of(results, case["name"])
        for profile in ("default", "fast"):
            name = _fastest(here, profile)
            if name and NNUNET in here:
                ours, theirs = (mean(here[n]["dice_truth"]) for n in (name, NNUNET))
                target(
                    f"{case['name']}: {profile}, DSC against truth less nnU-Net's",
                    -0.002,
                    None if ours is None or theirs is None else ours - theirs,
                    how=name,
                )
    _posterior_targets(results, target, rows)
    _training_targets(results, target)
    return found


def _posterior_targets(results: Row, target: Any, rows: dict[str, Row]) -> None:
    for name, row in rows_of(results, "samples").items():
        last = row["points"][-1]
        if "focused" in name:
            target(f"{name}: K = {last['samples']} over one pass", 2.5, last["ratio"], least=False)
        if PHANTOM in name and NNUNET in rows:
            value = last["seconds"] / seconds(rows[NNUNET])
            target(
                f"{name}: K = {last['samples']} over one pass of nnU-Net", 1.0, value, least=False
            )
    for row in rows_of(results, "scans").values():
        target("batch, share of time in the network", 0.9, row["points"][-1]["network_share"])
    for row in rows_of(results, "start-up").values():
        for key, text, goal in (("help", "--help", 1), ("predict", "predict of a tiny scan", 4)):
            spent = sorted(row[f"{key}_seconds"])[len(row[f"{key}_seconds"]) // 2]
            target(f"medseg {text}, seconds (median of 3)", goal, spent, least=False)


def _training_targets(results: Row, target: Any) -> None:
    found = rows_of(results, "training")
    for network in sorted({name.split(":")[0] for name in found}):
        spent = {
            name.split(": ")[1]: row["seconds_per_step"]
            for name, row in found.items()
            if name.startswith(f"{network}:")
        }
        step = spent.get("medseg")
        for other, goal in (("plain torch float32", 4.0), ("MONAI", 4.0)):
            if other in spent:
                value = spent[other] / step if step else None
                target(f"{network}: training step, times faster than {other}", goal, value)
        for prior in ("Gaussian", "deep weight prior"):
            name = f"medseg variational, {prior}"
            if name in spent and step:
                row = found[f"{network}: {name}"]
                target(
                    f"{network}: variational step ({prior}) over deterministic",
                    2.2,
                    spent[name] / step,
                    least=False,
                )
                share = row["kl_seconds"] / spent[name]
                target(f"{network}: share of KL ({prior}) in it", 0.1, share, least=False)


def target_table(results: Row) -> str:
    """Return the targets beside what was measured."""
    lines = []
    for row in results["targets"]:
        verdict = {True: "met", False: "missed", None: "not measured"}[row["met"]]
        if row["met"] is False:
            off = abs(row["value"] - row["goal"])
            near = abs(row["goal"]) < 0.01
            verdict += f" by {off:.4f}" if near else f" by {100 * off / row['goal']:.0f} %"
        goal = f"{'>=' if row['least'] else '<='} {row['goal']:g}"
        lines.append([row["target"], goal, _number(row["value"], 4), verdict, row["how"]])
    return table(["target", "goal", "measured", "", "with"], lines)


def _left_out(results: Row) -> str | None:
    """Return what was not measured, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in results["rows"]:
        if row["status"] != "measured":
            name = f"{row['section']}: {row['name']}"
            reasons.setdefault(f"{row['status']}: {row['reason']}", []).append(name)
    lines = [f"{reason}\n  {'; '.join(names)}" for reason, names in reasons.items()]
    return "not measured\n" + "\n".join(lines) if lines else None


def text_of(results: Row) -> str:
    """Return everything as plain text, ready to be quoted."""
    meta, chip = results["material"], results["chip"]
    equal = results["equality"]
    head = [
        f"{meta['processor']}, {results['threads']} threads, {meta['capability']}; torch "
        f"{meta['torch']}; scale {results['scale']['name']}; {results['when']}",
        f"chip: matrix product {chip['matmul_gflops']:.0f}, convolution "
        f"{chip['convolution_gflops']:.0f} GFLOP/s in float32, copy {chip['copy_gb_per_s']:.1f} "
        "GB/s",
        f"same weights: nnU-Net's network differs by at most {equal['max_difference']:.1e} in its "
        f"logits (sd {equal['logits_std']:.2f}) on a patch of {equal['patch']}",
    ]
    if results["shared"]:
        head.append("a shared machine: seconds are processor time of one thread, but for batches")
    parts = ["\n".join(head)]
    parts += [inference_table(results, case) for case in results["cases"]]
    parts += [
        compile_table(results),
        *scaling_tables(results),
        training_table(results),
        target_table(results),
    ]
    parts.append(_left_out(results))
    return "\n\n".join(part for part in parts if part) + "\n"
