"""Training curves: data term, KL term and validation, a figure per group of runs."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from medseg.report.arms import look_of, source_name
from medseg.report.figure import SOFT, Picture, house_style, quiet_grid, safe_text, to_svg

History = Mapping[str, np.ndarray]

_Dashes = tuple[float, tuple[float, ...]]
_DASHES: tuple[_Dashes, ...] = ((0, ()), (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))
_PLAIN = "#374151"
#: Column of a history -> its name. The second is that of priors known up to their log Z.
_KL = {
    "kl_nats": "KL term (nats)",
    "kl_minus_log_z_nats": "KL less log Z, prior unnormalised (nats)",
}

MAX_POINTS = 300
MAX_RUNS = 24
_RUN_NAME = re.compile(r"(?P<arm>.+)_n(?P<n>\d+)(?:_.*)?")


@dataclass(frozen=True)
class Group:
    """Histories that belong in one figure. ``n`` is None where no target case was trained on.

    Parameters
    ----------
    labels : mapping of str to str
        Source of each history; sources differ by line.
    """

    title: str
    method: str
    n: int | None
    histories: Mapping[str, History]
    labels: Mapping[str, str]

    @property
    def has_kl(self) -> bool:
        """Whether any of them has a KL term."""
        return any(_any_finite(self, key) for key in _KL)

    @property
    def kl_term(self) -> tuple[str, str]:
        """Column and words of the KL term; without log Z where the prior is not normalised."""
        found = [key for key in _KL if _any_finite(self, key)]
        return (found[0], _KL[found[0]]) if found else ("kl_nats", _KL["kl_nats"])


def _split(name: str, sources: Sequence[str]) -> tuple[str, str, int | None]:
    """Return method, source and n of the history ``name``."""
    match = _RUN_NAME.fullmatch(name)
    if not match:
        stem = re.sub(r"_member\d+$", "", name)
        method, _, source = stem.partition("_")
        return (method, source, None) if method == "source" and source else (stem, "none", None)
    for source in sources:
        if match["arm"].endswith(f"_{source}"):
            return match["arm"].removesuffix(f"_{source}"), source, int(match["n"])
    return match["arm"], "none", int(match["n"])


def groups_of(histories: Mapping[str, History], sources: Sequence[str]) -> list[Group]:
    """Return the histories by method and n: sources, then those with a KL term, large n first."""
    found: dict[tuple[str, int | None], dict[str, str]] = defaultdict(dict)
    for name in histories:
        method, source, n = _split(name, sources)
        found[method, n][name] = source_name(source)
    groups = [
        Group(_title(method, n), method, n, {name: histories[name] for name in labels}, labels)
        for (method, n), labels in found.items()
    ]
    return sorted(
        groups,
        key=lambda g: (g.n is not None, not g.has_kl, -(g.n or 0), look_of(g.method).rank, g.title),
    )


def _title(method: str, n: int | None) -> str:
    if n is None:
        return "Source networks" if method == "source" else method
    return f"{look_of(method).short}, n = {n}"


def training_picture(group: Group) -> Picture | None:
    """Return data term, KL term and validation DSC over the steps."""
    data = ("data_nats", "data term (nats)")
    if not _any_finite(group, "data_nats"):
        data = ("cross_entropy_nats", "cross-entropy (nats per voxel)")
    if not _any_finite(group, data[0]):
        return None
    panels = [data, group.kl_term, ("validation_dsc", "validation DSC")]
    shown = dict(list(group.histories.items())[:MAX_RUNS])
    names = sorted({group.labels[name] for name in shown})
    colour = look_of(group.method).colour if group.n is not None else _PLAIN
    with house_style():
        figure = Figure(figsize=(9.0, 2.45), layout="constrained")
        for axes, (key, label) in zip(figure.subplots(1, 3), panels, strict=True):
            for name, history in shown.items():
                dashes = _DASHES[names.index(group.labels[name]) % len(_DASHES)]
                _line(axes, history, key, colour=colour, dashes=dashes)
            _finish(axes, label, empty=not _any_finite(group, key), is_kl=key in _KL)
        if names != [source_name("none")]:
            lines = [
                Line2D([], [], color=colour, linestyle=_DASHES[i % len(_DASHES)])
                for i in range(len(names))
            ]
            words = [f"source {name}" for name in names]
            figure.legend(lines, [safe_text(w) for w in words], loc="outside upper right", ncols=4)
        figure.suptitle(safe_text(group.title), x=0.01, ha="left", fontsize=10, fontweight="bold")
        alt = f"Training of {group.title}: {', '.join(label for _, label in panels)} over steps."
        svg = to_svg(figure, alt=alt)
    return Picture(svg, _caption(group, len(shown)))


def _caption(group: Group, shown: int) -> str:
    count = len(group.histories)
    runs = f"{count} training run{'' if count == 1 else 's'}"
    some = "" if shown == count else f", the first {shown} drawn"
    kl = _kl_words(group) if group.has_kl else ""
    return f"{group.title}: {runs}{some}. Pale: as logged; dark: running median.{kl}"


def _kl_words(group: Group) -> str:
    ends, (term, words) = [], group.kl_term
    for history in group.histories.values():
        columns = [
            history.get(key, np.array([math.nan]))[-1] for key in ("data_nats", term, "beta")
        ]
        if all(math.isfinite(value) for value in columns):
            ends.append(columns)
    if not ends:
        return ""
    data, kl, beta = np.median(np.array(ends), axis=0)
    name = words.removesuffix(" (nats)")
    return f" At the end (median): data {data:,.0f} nats, {name} {kl:,.0f} nats, beta {beta:.3g}."


def _any_finite(group: Group, key: str) -> bool:
    return any(np.isfinite(h.get(key, np.array([]))).any() for h in group.histories.values())


def _line(axes: Axes, history: History, key: str, *, colour: str, dashes: _Dashes) -> None:
    if key not in history:
        return
    y = history[key]
    x = history.get("step", np.arange(len(y)))
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    smooth = _running_median(y, max(1, len(y) // 25))
    keep = np.unique(np.linspace(0, len(y) - 1, min(MAX_POINTS, len(y))).astype(int))
    if len(keep) == 0:
        return
    if len(y) > 25:
        axes.plot(x[keep], y[keep], color=colour, alpha=0.18, linewidth=0.7)
    axes.plot(x[keep], smooth[keep], color=colour, alpha=0.85, linewidth=1.2, linestyle=dashes)


def _running_median(y: np.ndarray, half: int) -> np.ndarray:
    return np.array([np.median(y[max(0, i - half) : i + half + 1]) for i in range(len(y))])


def _finish(axes: Axes, label: str, *, empty: bool, is_kl: bool) -> None:
    axes.set_title(label, fontweight="normal", color=SOFT)
    if empty:
        words = "no KL term:\nthe weights have no distribution" if is_kl else "not recorded"
        axes.text(0.5, 0.5, words, ha="center", va="center", color=SOFT, transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        return
    axes.set_xlabel("step")
    low, high = axes.dataLim.ymin, axes.dataLim.ymax
    if low > 0 and high / low > 30:
        axes.set_yscale("log")
    elif high >= 10_000:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    quiet_grid(axes, axis="y")
