"""What sections share: names, colours and pictures of scans."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from medseg.explore.cohort import Cohort
from medseg.explore.drawings import PALETTE
from medseg.explore.names import name_of

_MOST_COLOURS = 8


@dataclass(frozen=True)
class Shown:
    """One scan on the page: its number, name, colour, tooltip, and whether it has a picture."""

    place: int
    label: str
    colour: str
    title: str
    has_picture: bool


@dataclass(eq=False)
class View:
    """A cohort as the page shows it.

    Parameters
    ----------
    cohort : Cohort
    """

    cohort: Cohort
    labels: list[str] = field(init=False)
    group: str | None = field(init=False)
    group_names: list[str] = field(init=False)
    colours: list[str] = field(init=False)
    _used: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        table = self.cohort.findings.table
        self.labels = self.cohort.labels()
        self.group = self._main_group()
        column = table.groups[self.group] if self.group else ("",) * len(table)
        counts = {name: column.count(name) for name in dict.fromkeys(column) if name}
        self.group_names = sorted(counts, key=lambda name: (-counts[name], name))
        shade = dict(zip(self.group_names, PALETTE, strict=False))
        plain = PALETTE[0] if self.group is None else "#9ca3af"
        self.colours = [shade.get(name, plain) for name in column]

    def _main_group(self) -> str | None:
        """Return the grouping that colours stand for: few names, site first."""
        groups = self.cohort.findings.table.groups
        fit = [key for key, column in groups.items() if len({*column} - {""}) <= _MOST_COLOURS]
        return min(fit, key=lambda key: (key != "site", key == "grid"), default=None)

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Names of the main group with their colours."""
        return list(zip(self.group_names, PALETTE, strict=False))

    def scan(self, place: int) -> Shown:
        """Return one scan; its picture goes into the page."""
        table = self.cohort.findings.table
        place = int(place)
        known = [column[place] for column in table.groups.values() if column[place]]
        has_picture = self.cohort.extracted is not None
        if has_picture:
            self._used.add(place)
        title = " · ".join([self.labels[place], *known])
        return Shown(place, self.labels[place], self.colours[place], title, has_picture)

    def scans(self, places: Iterable[int]) -> list[Shown]:
        """Return several scans."""
        return [self.scan(place) for place in places]

    def picture_styles(self) -> Markup:
        """Return a style for each picture that is shown, so that the page holds each once."""
        if self.cohort.extracted is None:
            return Markup("")
        pictures = self.cohort.extracted.pictures
        return Markup("\n").join(
            Markup(".p{0}{{background-image:url(data:image/jpeg;base64,{1})}}").format(
                place, _encoded(pictures[place])
            )
            for place in sorted(self._used)
        )

    def traits(
        self, scores: NDArray[np.floating], *, most: int = 3, least: float = 0.5
    ) -> list[str]:
        """Return the features in which ``scores`` (d,) stand apart, in words."""
        features = self.cohort.findings.table.features
        order = np.argsort(-np.abs(scores))[:most]
        return [_trait(features[i], float(scores[i])) for i in order if abs(scores[i]) >= least]


def _trait(feature: str, score: float) -> str:
    title = name_of(feature).title
    if feature.endswith(".here"):
        return f"{'with' if score > 0 else 'no'} {title.removesuffix(' present')}"
    return f"{title} {'high' if score > 0 else 'low'}"


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def spread(points: NDArray[np.floating], most: int, *, first: Sequence[int] = ()) -> list[int]:
    """Return up to ``most`` rows of points (n, k) that lie far from each other, ``first`` ones
    included.
    """
    chosen = list(dict.fromkeys(int(i) for i in first))[:most]
    if not chosen:
        chosen = [int(np.linalg.norm(points - points.mean(0), axis=1).argmin())]
    away = np.min([np.linalg.norm(points - points[i], axis=1) for i in chosen], axis=0)
    while len(chosen) < min(most, len(points)):
        following = int(away.argmax())
        if away[following] <= 0:
            break
        chosen.append(following)
        away = np.minimum(away, np.linalg.norm(points - points[following], axis=1))
    return chosen
