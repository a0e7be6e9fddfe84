"""Who is trained on and who is tested on: always by subject, always on record.

Subjects are ranked by a hash of the seed and their name, so the ranking of two people does not
depend on who else is in the data set.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb
from pathlib import Path

from medseg.data.source import CaseSource
from medseg.errors import DataError
from medseg.io.atomic import write_json
from medseg.seeding import derive_seed, numpy_generator
from medseg.settings import settings

_MOST_SUBSETS = 10_000


@settings
class SplitSettings:
    """How large each part shall be, in subjects.

    Parameters
    ----------
    seed : int
        Decides who goes where.
    sizes : mapping of str to int, optional
        Subjects in each part.
    fractions : mapping of str to float, optional
        Share of the subjects in each part, in total at most 1; every part gets at least one.
        Exactly one of ``sizes`` and ``fractions`` is given.
    rest : str, optional
        A further part for all subjects left over; without it they are left out.
    """

    seed: int = 0
    sizes: dict[str, int] | None = None
    fractions: dict[str, float] | None = None
    rest: str | None = None

    def __post_init__(self) -> None:
        if bool(self.sizes) == bool(self.fractions):
            raise DataError(
                f"A split needs either sizes or fractions, but has sizes={self.sizes} and "
                f"fractions={self.fractions}.",
                hint="Give for example fractions {'train': 0.7, 'test': 0.3}.",
            )
        amounts = list((self.sizes or self.fractions or {}).values())
        if min(amounts) <= 0 or (self.fractions and sum(amounts) > 1 + 1e-9):
            raise DataError(
                f"Parts must be above 0, fractions at most 1 in total, but they are {amounts}."
            )
        if self.rest is not None and self.rest in (self.sizes or self.fractions or {}):
            raise DataError(
                f"The part for the rest must have a name of its own, but {self.rest!r} is used."
            )


@dataclass(frozen=True)
class Split:
    """Which cases belong to which part.

    Parameters
    ----------
    parts : mapping of str to tuple of str
        Identifiers of the cases of each part.
    subjects : mapping of str to str
        Subject of every case of the source, also of those in no part.
    request : SplitSettings
        What was asked for.
    """

    parts: Mapping[str, tuple[str, ...]]
    subjects: Mapping[str, str]
    request: SplitSettings

    def subjects_of(self, part: str) -> tuple[str, ...]:
        """Return the subjects of a part, each once, sorted."""
        return tuple(sorted({self.subjects[case] for case in self.parts[part]}))


def split_by_subject(
    source: CaseSource,
    *,
    seed: int,
    sizes: Mapping[str, int] | None = None,
    fractions: Mapping[str, float] | None = None,
    rest: str | None = None,
) -> Split:
    """Return a split in which all cases of a subject are in one part.

    Parameters
    ----------
    source : CaseSource
        Its identifiers and subjects are read, no voxel.
    seed, sizes, fractions, rest
        See :class:`SplitSettings`.

    Raises
    ------
    DataError
        There are fewer subjects than asked for, or the sizes make no sense.
    """
    request = SplitSettings(
        seed=seed,
        sizes=dict(sizes) if sizes else None,
        fractions=dict(fractions) if fractions else None,
        rest=rest,
    )
    subjects = dict(zip(source.identifiers, source.subjects, strict=True))
    ranked = _ranked(sorted(set(subjects.values())), seed)
    counts = _counts(request, len(ranked))
    owner: dict[str, str] = {}
    start = 0
    for part, count in counts.items():
        owner.update(dict.fromkeys(ranked[start : start + count], part))
        start += count
    parts = {
        part: tuple(case for case, subject in subjects.items() if owner.get(subject) == part)
        for part in counts
    }
    return Split(parts, subjects, request)


def _ranked(subjects: Sequence[str], seed: int) -> list[str]:
    return sorted(subjects, key=lambda subject: (derive_seed(seed, "split", subject), subject))


def _counts(request: SplitSettings, total: int) -> dict[str, int]:
    counts = dict(request.sizes) if request.sizes else _from_fractions(request, total)
    left = total - sum(counts.values())
    needed = 1 if request.rest is not None else 0
    if left < needed:
        parts = [*counts, *([request.rest] if request.rest else [])]
        raise DataError(
            f"A split into {parts} needs at least {sum(counts.values()) + needed} subjects, but "
            f"the source has {total}.",
            hint="Ask for smaller parts or add subjects.",
        )
    if request.rest is not None:
        counts[request.rest] = left
    return counts


def _from_fractions(request: SplitSettings, total: int) -> dict[str, int]:
    """Round by largest remainder, with at least one subject a part."""
    fractions = request.fractions or {}
    exact = {part: fraction * total for part, fraction in fractions.items()}
    counts = {part: max(1, int(value + 1e-9)) for part, value in exact.items()}
    wanted = min(round(sum(exact.values())), total)
    while sum(counts.values()) < wanted:
        part = max(counts, key=lambda name: exact[name] - counts[name])
        counts[part] += 1
    while sum(counts.values()) > max(wanted, len(counts)):
        large = [name for name in counts if counts[name] > 1]
        counts[min(large, key=lambda name: exact[name] - counts[name])] -= 1
    return counts


def save_split(path: Path, split: Split) -> None:
    """Write a split as JSON."""
    write_json(
        path,
        {
            "parts": {part: list(cases) for part, cases in split.parts.items()},
            "subjects": dict(split.subjects),
            "request": asdict(split.request),
        },
    )


def load_split(path: Path) -> Split:
    """Read a split.

    Raises
    ------
    DataError
        The file is not there or not a split.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        parts = {str(part): tuple(cases) for part, cases in stored["parts"].items()}
        return Split(parts, dict(stored["subjects"]), SplitSettings(**stored["request"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"A split is a JSON file written by medseg, but {path} cannot be read so: {error}.",
            hint="Restore the file, or start a new run in an empty folder.",
        ) from error


def load_or_make_split(path: Path, source: CaseSource, *, request: SplitSettings) -> Split:
    """Return the split saved at ``path``; make and save it if there is none.

    A saved split is never redrawn: when the data set or the request has changed since, this
    refuses.

    Raises
    ------
    DataError
        The saved split belongs to another data set or request, or cannot be read.
    """
    if not path.exists():
        split = split_by_subject(source, **asdict(request))
        save_split(path, split)
        return split
    saved = load_split(path)
    if asdict(saved.request) != asdict(request):
        raise DataError(
            f"A saved split is never redrawn, but {path} was made for {asdict(saved.request)} "
            f"and {asdict(request)} is asked for.",
            hint="Keep the old values, or start a new run in an empty folder.",
        )
    now = dict(zip(source.identifiers, source.subjects, strict=True))
    changes = _changes(saved.subjects, now)
    if changes:
        raise DataError(
            f"A saved split is never redrawn, but the data set of {path} changed: {changes}.",
            hint="Restore the data set, or start a new run in an empty folder.",
        )
    return saved


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    gone = sorted(before.keys() - now.keys())
    new = sorted(now.keys() - before.keys())
    moved = sorted(case for case in before.keys() & now.keys() if before[case] != now[case])
    found = {"missing": gone, "new": new, "of another subject": moved}
    return "; ".join(
        f"{len(cases)} {what} ({', '.join(cases[:3])})" for what, cases in found.items() if cases
    )


def bootstrap_subjects(subjects: Sequence[str], *, seed: int, member: int) -> tuple[str, ...]:
    """Return as many subjects as there are, drawn with replacement, for one member of an ensemble.

    Parameters
    ----------
    subjects : sequence of str
        Repeats count once, so a subject with many visits is drawn no more often.
    seed, member : int
        Name the draw.
    """
    pool = sorted(set(subjects))
    draws = numpy_generator(seed, "bootstrap", member).integers(len(pool), size=len(pool))
    return tuple(pool[int(draw)] for draw in draws)


def subject_folds(source: CaseSource, folds: int, *, seed: int) -> tuple[tuple[str, ...], ...]:
    """Return the cases of each fold; each subject is in one, and folds differ by one at most.

    Raises
    ------
    DataError
        Fewer than two folds, or more folds than subjects.
    """
    ranked = _ranked(sorted(set(source.subjects)), seed)
    if not 2 <= folds <= len(ranked):
        raise DataError(
            f"Folds are at least 2 and at most the subjects, but there are {folds} folds of "
            f"{len(ranked)} subjects.",
            hint="Ask for fewer folds or add subjects.",
        )
    place = {subject: index % folds for index, subject in enumerate(ranked)}
    whose = list(zip(source.identifiers, source.subjects, strict=True))
    return tuple(
        tuple(case for case, subject in whose if place[subject] == fold) for fold in range(folds)
    )


@dataclass(frozen=True)
class FewShotSubset:
    """The subjects of one few-shot training set.

    Parameters
    ----------
    size : int
        Number of subjects.
    index : int
        Which of the subsets of this size.
    subjects : tuple of str
        Sorted.
    """

    size: int
    index: int
    subjects: tuple[str, ...]


def few_shot_subsets(
    subjects: Sequence[str],
    sizes: Sequence[int],
    *,
    seed: int = 0,
    repeats: int | None = None,
) -> tuple[FewShotSubset, ...]:
    """Return training sets of each size: nested and drawn, or all there are.

    Parameters
    ----------
    subjects : sequence of str
        The subjects that may be trained on; repeats count once.
    sizes : sequence of int
        Sizes of the sets.
    seed : int
        Decides which sets are drawn.
    repeats : int, optional
        Number of draws. In each, a smaller set lies within every larger one, so that sizes are
        compared on the same people. None: all subsets of each size.

    Raises
    ------
    DataError
        A size is below 1 or above the number of subjects, or there would be too many subsets.
    """
    pool = sorted(set(subjects))
    wrong = [size for size in sizes if not 1 <= size <= len(pool)]
    if wrong:
        raise DataError(
            f"A subset must have 1 to {len(pool)} subjects, but {wrong} are asked for.",
            hint="Ask for fewer or add subjects.",
        )
    if repeats is not None:
        orders = [_ranked(pool, derive_seed(seed, "few-shot", index)) for index in range(repeats)]
        return tuple(
            FewShotSubset(size, index, tuple(sorted(order[:size])))
            for size in sizes
            for index, order in enumerate(orders)
        )
    count = sum(comb(len(pool), size) for size in sizes)
    if count > _MOST_SUBSETS:
        raise DataError(
            f"At most {_MOST_SUBSETS} subsets can be listed, but there are {count}.",
            hint="Set the number of repeats to draw some of them.",
        )
    return tuple(
        FewShotSubset(size, index, chosen)
        for size in sizes
        for index, chosen in enumerate(combinations(pool, size))
    )
