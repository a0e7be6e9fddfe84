"""What the methods and sources are called, and how they look: the same everywhere in a report.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers. Methods of one family
share a colour and differ by marker and line, so that no colour means two things.

References
----------
M. Okabe and K. Ito, Color Universal Design, 2008: eight colours.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

NO_LEARNING = "threshold"
NO_TARGET = ("threshold", "zero_shot")


@dataclass(frozen=True, order=True)
class Arm:
    """One arm of the comparison: how was it trained, and what was it trained on before."""

    method: str
    source: str


@dataclass(frozen=True)
class Look:
    """Name, meaning and appearance of one method.

    Parameters
    ----------
    rank : int
        Place in tables and legends.
    short, words : str
        Name in figures, and one sentence for a reader who does not know the method.
    baseline : bool
        True for the arms that the others are held against.
    """

    rank: int
    short: str
    words: str
    colour: str
    marker: str
    dashes: tuple[float, ...] = ()
    baseline: bool = False


LOOKS: dict[str, Look] = {
    "threshold": Look(
        0, "Threshold", "No network: intensity thresholds, at most tuned on the same target cases.",
        "#7F7F7F", "s", (1, 1.5), True,
    ),
    "zero_shot": Look(
        1, "Source only", "The source network as it is; it has seen no target case.",
        "#000000", "X", (4, 1.5), True,
    ),
    "ri": Look(
        2, "RI", "Random initialisation: trained from scratch on the target cases alone.",
        "#E69F00", "o", (), True,
    ),
    "pr": Look(
        3, "PR", "Pre-training: the source network, all weights fine-tuned on the target cases.",
        "#56B4E9", "^", (), True,
    ),
    "prf": Look(
        4, "PRf", "Pre-training, frozen: only the first and last blocks are fine-tuned.",
        "#56B4E9", "v", (4, 1.5), True,
    ),
    "l2sp": Look(
        5, "L2-SP", "Fine-tuning with a quadratic pull back to the source weights.",
        "#CC79A7", "P", (4, 1.5), True,
    ),
    "wise": Look(
        6, "WiSE", "Fine-tuned weights averaged with those of the source network.",
        "#CC79A7", "p", (), True,
    ),
    "gaussian": Look(
        7, "Gaussian prior", "Variational fine-tuning under a Gaussian about the source weights.",
        "#009E73", "D",
    ),
    "dwp": Look(
        8, "DWP", "Deep weight prior: variational fine-tuning under a learned filter prior.",
        "#D55E00", "d",
    ),
    "anchored": Look(
        11, "Anchored", "Variational; a filter stays by its source or follows the learned prior.",
        "#D55E00", "*",
    ),
    "dwp_prior": Look(
        9, "DWP (prior start)", "Deep weight prior, started from filters sampled by the prior.",
        "#0072B2", "<", (4, 1.5),
    ),
    "dwp_resampled": Look(
        10, "DWP (resampled start)", "Deep weight prior, started from resampled source filters.",
        "#0072B2", ">",
    ),
}  # fmt: skip

SOURCES: dict[str, str] = {
    "none": "none",
    "ms": "MS",
    "generated": "generated",
    "both": "MS + generated",
}

_SPARE_COLOURS = ("#F0E442", "#D55E00", "#009E73", "#0072B2", "#CC79A7")
_SPARE_MARKERS = ("h", "*", "8", "H", "X")


def look_of(method: str) -> Look:
    """Return the look of ``method``; an unknown one gets a look that depends on its name alone."""
    if method in LOOKS:
        return LOOKS[method]
    pick = zlib.crc32(method.encode())
    start = "_prior" if method.endswith("_prior") else ""
    named = method.removesuffix(start).removeprefix("dwp_")
    short, words = method, "A method this report has no words for."
    if named != method:
        short = f"DWP: {named}{', prior start' if start else ''}"
        words = f"Deep weight prior: variational fine-tuning under the filter prior {named!r}"
        words += ", started from filters sampled by it." if start else "."
    return Look(
        len(LOOKS) + pick % 1000,
        short,
        words,
        _SPARE_COLOURS[pick % len(_SPARE_COLOURS)],
        _SPARE_MARKERS[pick // 7 % len(_SPARE_MARKERS)],
        (2, 1, 1, 1),
    )


def source_name(source: str) -> str:
    """Return what a reader calls ``source``."""
    return SOURCES.get(source, source)


def arm_name(arm: Arm) -> str:
    """Return the name of ``arm`` in a figure.

    Examples
    --------
    >>> arm_name(Arm("pr", "ms")), arm_name(Arm("ri", "none"))
    ('PR · MS', 'RI')
    """
    short = look_of(arm.method).short
    return short if arm.source == "none" else f"{short} · {source_name(arm.source)}"


def arm_phrase(arm: Arm) -> str:
    """Return the name of ``arm`` in a sentence.

    Examples
    --------
    >>> arm_phrase(Arm("pr", "ms")), arm_phrase(Arm("threshold", "none"))
    ('PR from MS', 'the no-learning threshold')
    """
    if arm.method == NO_LEARNING:
        return "the no-learning threshold"
    if arm.method == "zero_shot":
        return f"the source network alone ({source_name(arm.source)})"
    short = look_of(arm.method).short
    return short if arm.source == "none" else f"{short} from {source_name(arm.source)}"


def arm_order(arm: Arm) -> tuple[int, str, int, str]:
    """Return the sorting key of ``arm``: methods by rank, sources in their usual order."""
    sources = list(SOURCES)
    place = sources.index(arm.source) if arm.source in sources else len(sources)
    return look_of(arm.method).rank, arm.method, place, arm.source
