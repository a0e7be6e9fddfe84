"""What the methods and sources are called, and how they look: the same everywhere in a report.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers. Methods of one family
share a colour and differ by marker and line, so that no colour means two things.

References
----------
M. Okabe and K. Ito, Color Universal Design, 2008: eight colours.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace

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
    "resampled": Look(
        7, "Resampled", "Fine-tuning from source filters drawn at random within their layer.",
        "#56B4E9", "s", (1, 1.5),
    ),
    "mc_dropout": Look(
        8, "MC dropout", "Fine-tuning with dropout of channels, also when it predicts.",
        "#E69F00", "X", (4, 1.5), True,
    ),
    "swag": Look(
        9, "SWAG", "Fine-tuning, then a Gaussian over the weights of its last half of steps.",
        "#E69F00", "h", (1, 1.5), True,
    ),
    "gaussian": Look(
        10, "Gaussian prior", "Variational fine-tuning under a Gaussian about the source weights.",
        "#009E73", "D",
    ),
    "dwp": Look(
        11, "DWP", "Deep weight prior: variational fine-tuning under a learned filter prior.",
        "#D55E00", "d",
    ),
    "dwp_prior": Look(
        12, "DWP (prior start)", "Deep weight prior, started from filters sampled by the prior.",
        "#0072B2", "<", (4, 1.5),
    ),
    "dwp_resampled": Look(
        13, "DWP (resampled start)", "Deep weight prior, started from resampled source filters.",
        "#0072B2", ">",
    ),
    "anchored": Look(
        14, "Anchored", "Variational; a filter stays by its source or follows the learned prior.",
        "#D55E00", "*",
    ),
    "auto": Look(
        15, "Auto", "Gaussian prior, then as far back to the source as left-out cases ask for.",
        "#009E73", "s",
    ),
    "nnunet": Look(
        16, "nnU-Net", "nnU-Net v2, trained from scratch on the target cases for as long.",
        "#F0E442", "8", (), True,
    ),
    "nnunet_pretrained": Look(
        17, "nnU-Net, pretrained", "nnU-Net v2, trained on the source first, each for as long.",
        "#F0E442", "H", (4, 1.5), True,
    ),
}  # fmt: skip

SOURCES: dict[str, str] = {
    "none": "none",
    "ms": "MS",
    "generated": "generated",
    "both": "MS + generated",
}

#: What may follow the name of a method, from the last on: its pattern, and what it means in a name
#: and in a sentence. The tables write them in this order, see ``label`` of an experiment's arm.
_KINDS = (
    (
        r"_refined$",
        "refined",
        "What it says is held against the intensities of each scan.",
    ),
    (r"_co_learning$", "co-learning", "It also learns from scans without masks."),
    (r"_hard_sharing$", "hard sharing", "It shares its weights with a network of other scans."),
    (r"_soft_sharing$", "soft sharing", "It stays close to a network of other scans."),
    (r"_privileged$", "privileged", "It is trained with channels that it is tested without."),
    (r"_distillation$", "distilled", "Its samples are distilled into one network."),
    (r"_rehearsal$", "rehearsal", "It goes on seeing other scans, such as the source's."),
    (
        r"_rehearsal_looks$",
        "rehearsal in target looks",
        "It goes on seeing other scans, such as the source's, with intensities of the target's.",
    ),
)
_ENDINGS = (
    (r"_x(\d+)$", "×{}", "The mean of {} networks."),
    (r"_wise$", "part of the way back", "Its weights go part of the way back to the source."),
    (
        r"_path$",
        "averaged over the way back",
        "Networks from its weights to those of the source are averaged.",
    ),
    (
        r"_back([\d.]+(?:\+[\d.]+)+)$",
        "averaged over {} of the way back",
        "Networks at {} of the way back to the source are averaged.",
    ),
    (
        r"_back([\d.]+)$",
        "{} of the way back",
        "Its weights go {} of the way back to the source.",
    ),
    (r"_light$", "light", "Its prior weighs a part of what it does elsewhere."),
    (r"(?<!^mc)_dropout$", "dropout", "Channels are left out at random, also when it predicts."),
    (r"_weight$", "by weight", "Its deviations go by the size of each weight."),
    (r"_noise$", "noise", "Noise is added to the filters drawn at random."),
)
#: After nnU-Net a factor is one of time.
_TIMES = (
    (r"_([\d.e+-]+)s$", "{} s", "It was given {} s."),
    (r"_x([\d.e+-]+)$", "time ×{}", "It was given {} times as long."),
)

_SPARE_COLOURS = ("#F0E442", "#D55E00", "#009E73", "#0072B2", "#CC79A7")
_MARKERS = ("o", "s", "^", "v", "<", ">", "D", "d", "P", "X", "*", "p", "h", "H", "8")
_DASHES = ((2.0, 1.0, 1.0, 1.0), (), (4.0, 1.5), (6.0, 1.5, 1.0, 1.5))


def look_of(method: str) -> Look:
    """Return the look of an arm's label.

    A variant has the colour and place of its method, with a marker and a line that depend on its
    name alone. So has what this report has no words for, with any colour.

    Examples
    --------
    >>> look_of("pr_x5").short, look_of("anchored_weight_x5_rehearsal").short
    ('PR (×5)', 'Anchored (by weight, ×5, rehearsal)')
    >>> look_of("gaussian_light_path").short
    'Gaussian prior (light, averaged over the way back)'
    >>> look_of("wise_back0+0.5_refined").short
    'WiSE (averaged over 0+0.5 of the way back, refined)'
    >>> look_of("wise_back0.25_x3_rehearsal_looks").short
    'WiSE (0.25 of the way back, ×3, rehearsal in target looks)'
    """
    if method in LOOKS:
        return LOOKS[method]
    base, marks = _peeled(method)
    known = LOOKS.get(base) or _with_named_prior(base)
    pick = zlib.crc32(base.encode()) if base not in LOOKS else LOOKS[base].rank
    if known is None:
        colour = _SPARE_COLOURS[pick % len(_SPARE_COLOURS)]
        words = "A method this report has no words for."
        known, marks = Look(len(LOOKS) + pick % 1000, method, words, colour, ""), []
    used = {look.marker for look in LOOKS.values() if look.colour == known.colour}
    markers = [marker for marker in _MARKERS if marker not in used]
    kind = next((n for n, (end, *_) in enumerate(_KINDS, 1) if re.search(end, method)), 0)
    others = len(marks) - (kind > 0)
    return replace(
        known,
        short=known.short + (f" ({', '.join(short for short, _ in marks)})" if marks else ""),
        words=" ".join([known.words, *(words for _, words in marks)]),
        # The variants of one method follow each other, its kinds first.
        marker=markers[(5 * pick + kind + (len(_KINDS) + 1) * others) % len(markers)],
        dashes=_DASHES[(pick + kind + others) % len(_DASHES)],
        # Members and noise leave a baseline what it is; what it learns beside does not.
        baseline=known.baseline and not kind,
    )


def _peeled(method: str) -> tuple[str, list[tuple[str, str]]]:
    """Return a label without its endings, and what these mean, in the order of the label."""
    marks: list[tuple[str, str]] = []
    for pattern, short, words in _TIMES if method.startswith("nnunet") else (*_KINDS, *_ENDINGS):
        if found := re.search(pattern, method):
            method = method[: found.start()]
            marks.insert(0, (short.format(*found.groups()), words.format(*found.groups())))
    return method, marks


def _with_named_prior(method: str) -> Look | None:
    """Return the look of a method whose filter prior has a name, None for what is no such."""
    family, _, named = method.partition("_")
    if family not in ("dwp", "anchored") or not named:
        return None
    start = next((s for s in ("prior", "resampled") if named.endswith(f"_{s}")), "")
    named, known = named.removesuffix(f"_{start}"), LOOKS[f"{family}_{start}" if start else family]
    end = f", {start} start" if start else ""
    short = f"{LOOKS[family].short}: {named}{end}"
    return replace(known, short=short, words=f"{known.words} The filter prior is {named!r}.")


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
