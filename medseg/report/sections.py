"""The sections of the page: what each one shows, and what it says when a file is absent."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medseg.report.answer import RegionAnswer, baseline_words, caution
from medseg.report.arms import NO_LEARNING, NO_TARGET, SOURCES, Arm, look_of, source_name
from medseg.report.curves import groups_of, training_picture
from medseg.report.figure import Picture
from medseg.report.pictures import example_picture, kernel_picture
from medseg.report.plots import learning_curve, per_case_plot, reliability_plot, volume_plot
from medseg.report.rank_plots import critical_difference_diagram, rank_plot
from medseg.report.rank_tables import decision_table, power_words, rival_table
from medseg.report.run_folder import Difference, Run, Summary
from medseg.report.statistics import calibrations, coverages
from medseg.report.tables import (
    OTHER_METRICS,
    Table,
    coverage_table,
    ece_table,
    full_table,
    held_out_table,
    main_table,
    paired_matrix,
    paired_table,
)

MAX_EXAMPLES = 12
OPEN_CURVES = 4


@dataclass
class Section:
    """What one section shows.

    Parameters
    ----------
    absent : list of str
        Sentences on what could not be shown, and which file would hold it.
    more, folded : list
        Pictures and tables behind a fold, opened in print.
    extra : dict
        What only this section's block of the template knows how to show.
    """

    anchor: str
    title: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    more: list[Picture] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def show(self, picture: Picture | None, otherwise: str) -> None:
        """Add ``picture``, or say ``otherwise`` when there is none."""
        if picture is None:
            self.absent.append(otherwise)
        else:
            self.pictures.append(picture)


@dataclass(frozen=True)
class Material:
    """A run with its summary and answers, worked out once for all sections."""

    run: Run
    rows: Sequence[Summary]
    answers: Sequence[RegionAnswer]


def _answer(material: Material) -> Section:
    section = Section("answer", "The answer")
    if not material.answers:
        section.absent.append("No arm has a mean DSC, so there is no answer.")
        return section
    section.extra = {
        "caution": caution(material.answers),
        "answers": material.answers,
    }
    return section


def _done(material: Material) -> Section:
    info = material.run.info
    section = Section("done", "What was done")
    cohorts = [c for c in info.get("cohorts") or [] if isinstance(c, dict)]
    if not cohorts:
        section.absent.append("run.json names no cohorts.")
    section.absent += _failed_cells(material.run)
    section.extra = {
        "steps": _steps(material),
        "cohorts": cohorts,
        "statements": [str(s) for s in info.get("statements") or []],
        "glossary": _glossary(material),
    }
    return section


def _failed_cells(run: Run) -> list[str]:
    """Return what is missing from every table and figure, a sentence for each reason."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for cell, reason in run.failures.items():
        by_reason[reason].append(cell)
    return [
        f"{len(cells)} of the cells failed and are missing everywhere below (failures.tsv): "
        f"{', '.join(cells[:4])}{', ...' if len(cells) > 4 else ''}. {reason}"
        for reason, cells in by_reason.items()
    ]


def _steps(material: Material) -> list[str]:
    """Return what the run did, told from what it left behind."""
    run, rows = material.run, material.rows
    sources = [source_name(s) for s in dict.fromkeys(r.arm.source for r in rows) if s != "none"]
    sizes = sorted({row.n for row in rows if row.n > 0})
    members = [name for name in run.histories if name.startswith("source_")]
    steps = []
    if sources:
        count = f" ({len(members)} in all)" if members else ""
        steps.append(f"Source networks{count} were trained on: {', '.join(sources)}.")
    if run.priors:
        steps.append("Their convolution kernels were harvested, and priors were fitted to them.")
    if sizes:
        trained = [r.arm.method for r in rows if r.n > 0 and r.arm.method != NO_LEARNING]
        methods = list(dict.fromkeys(look_of(method).short for method in trained))
        numbers = ", ".join(map(str, sizes))
        steps.append(
            f"Networks were trained or fine-tuned on n = {numbers} target subjects by "
            f"{len(methods)} methods: {', '.join(methods)}.{_same_subsets(run)}"
        )
    cases = len({score.case for score in run.scores})
    steps.append(
        f"Every arm was scored on the target cases kept from its training ({cases} different "
        f"cases), regions {', '.join(run.regions)}."
    )
    return steps


def _same_subsets(run: Run) -> str:
    """Return the sentence that all arms had the same training subsets, where they had."""
    found: dict[int, dict[Arm, set[tuple[str, str]]]] = defaultdict(lambda: defaultdict(set))
    for score in run.scores:
        # Thresholds know no seed.
        if score.n > 0 and score.arm.method != NO_LEARNING:
            found[score.n][score.arm].add((score.subset, score.seed))
    same = all(
        cells == next(iter(arms.values())) for arms in found.values() for cells in arms.values()
    )
    return (
        " All had the same training subsets." if same else " Not all had the same training subsets."
    )


def _glossary(material: Material) -> list[tuple[str, str, str, str]]:
    methods = dict.fromkeys(row.arm.method for row in material.rows)
    looks = sorted(((look_of(m), m) for m in methods), key=lambda pair: pair[0].rank)
    return [(look.short, look.words, look.colour, baseline_words(m)) for look, m in looks]


def _methods(material: Material) -> Section:
    section = Section("methods", "Methods compared")
    run, rows = material.run, material.rows
    if not run.summary:
        section.absent.append(
            "summary.tsv is absent: means and intervals were computed here from scores.tsv, with a "
            "bootstrap over cases."
        )
    section.tables = [main_table(rows, run.regions)]
    section.extra = {
        "full": [full_table(rows, region) for region in run.regions],
        "metrics": [(metric.title, metric.unit, metric.empty) for metric in OTHER_METRICS],
    }
    return section


def _cases(material: Material) -> Section:
    section = Section("cases", "Case by case")
    section.show(per_case_plot(material.run, material.rows), "No scores to draw.")
    return section


def _learning(material: Material) -> Section:
    section = Section("learning", "More training cases")
    otherwise = "The run has one training size only, so there is no learning curve."
    section.show(learning_curve(material.run, material.rows), otherwise)
    return section


def _paired(material: Material) -> Section:
    section = Section("paired", "Paired differences")
    run = material.run
    if not run.paired:
        section.absent.append(
            "paired.tsv is absent: no paired tests were saved. The differences in the answer were "
            "computed here from scores.tsv, with a bootstrap over cases."
        )
        return section
    known = [d for d in run.paired if _is_to_baseline(d)]
    regions = [r for r in run.regions if any(d.region == r for d in known)]
    top = max(d.n for d in run.paired)
    first = [d for d in known if d.n == top]
    section.tables = [paired_matrix(first, region=region) for region in regions]
    section.tables += [
        rival_table(run.paired, answer.best.arm, region=answer.region, n=answer.n)
        for answer in material.answers
        if any(d.arm == answer.best.arm and d.against_source for d in run.paired)
    ]
    section.folded = [paired_table(known, region=region) for region in regions]
    fewest = min((d.n_cases for d in run.paired if d.n_cases > 0), default=0)
    if 0 < fewest < 6:
        section.extra["remark"] = (
            f"With {fewest} pairs the smallest two-sided Wilcoxon p that can occur is "
            f"{2 / 2**fewest:.3g}: no difference, however large, could fall below 0.05."
        )
    return section


def _is_to_baseline(d: Difference) -> bool:
    """Return whether a baseline of the same source, or of none, is what is subtracted."""
    same = d.against_source in ("", "none", d.arm.source)
    return same and d.against in (*NO_TARGET, "ri", "pr", "wise") and d.arm.method != "zero_shot"


def _ranks(material: Material) -> Section:
    section = Section("ranks", "All arms at once")
    run = material.run
    if not run.ranks:
        section.absent.append("No ranks were saved (ranks.tsv).")
        return section
    top = max(rank.n for rank in run.ranks)
    for region in run.regions:
        picture = critical_difference_diagram(run.ranks, region=region, n=top)
        section.show(picture, f"There are too few subjects or arms to rank on {region}.")
    if (over_n := rank_plot(run.ranks, run.regions)) is not None:
        section.pictures.append(over_n)
    if words := power_words(run.power):
        section.extra["remark"] = words
    return section


def _slices(material: Material) -> Section:
    section = Section("slices", "Predictions on slices")
    examples = material.run.examples
    found = [picture for e in examples[:MAX_EXAMPLES] if (picture := example_picture(e))]
    section.pictures = found
    if not found:
        section.absent.append("No example predictions were saved (examples/*.safetensors).")
    if len(examples) > MAX_EXAMPLES:
        section.absent.append(f"{MAX_EXAMPLES} of {len(examples)} saved examples are shown.")
    return section


def _training(material: Material) -> Section:
    section = Section("training", "Training")
    run = material.run
    sources = sorted({row.arm.source for row in material.rows} - {"none"}, key=len, reverse=True)
    drawn = [
        (group, picture)
        for group in groups_of(run.histories, [*sources, "none"])
        if (picture := training_picture(group))
    ]
    top = max((group.n or 0 for group, _ in drawn), default=0)
    for group, picture in drawn:
        first = group.n is None or (group.has_kl and group.n == top)
        open_now = first and len(section.pictures) < OPEN_CURVES
        (section.pictures if open_now else section.more).append(picture)
    if not drawn:
        section.absent.append("No training histories were saved (histories/*.tsv).")
    return section


def _kernels(material: Material) -> Section:
    section = Section("kernels", "Filter priors")
    order = list(SOURCES)
    priors = sorted(
        material.run.priors,
        key=lambda p: order.index(p.source) if p.source in order else len(order),
    )
    if not priors:
        section.absent.append("No filter priors were saved (priors/<source>).")
    for prior in priors:
        name = source_name(prior.source)
        otherwise = f"No kernels were saved for source {name} (kernels.safetensors)."
        section.show(kernel_picture(prior), otherwise)
        if not prior.held_out:
            section.absent.append(f"No held-out nats were saved for source {name} (held_out.tsv).")
    known = [prior for prior in priors if prior.held_out]
    section.tables = [held_out_table(known)] if known else []
    return section


def _calibration(material: Material) -> Section:
    section = Section("calibration", "Can the probabilities be trusted?")
    found = calibrations(material.run)
    section.show(reliability_plot(found), "No reliability table was saved (reliability.tsv).")
    if found:
        section.tables.append(ece_table(found))
    return section


def _volumes(material: Material) -> Section:
    section = Section("volumes", "Volumes and their intervals")
    found = coverages(material.run)
    if not found:
        section.absent.append("scores.tsv holds no volume intervals.")
        return section
    best = [_best_with_interval(material, answer) for answer in material.answers]
    section.show(volume_plot(material.run, [b for b in best if b]), "No arm has volume intervals.")
    tables = [decision_table(material.run.decisions, region=r) for r in material.run.regions]
    # Decisions hold the coverage too, with its interval over subjects.
    section.tables = [table for table in tables if table is not None] or [coverage_table(found)]
    return section


def _best_with_interval(material: Material, answer: RegionAnswer) -> Summary | None:
    """Return the row with the highest mean among those with volume intervals."""
    arms = {(c.arm, c.n) for c in coverages(material.run) if c.region == answer.region}
    rows = [r for r in material.rows if r.region == answer.region and (r.arm, r.n) in arms]
    rows = [r for r in rows if r.n == answer.n] or rows
    return max((r for r in rows if math.isfinite(r.mean)), key=lambda r: r.mean, default=None)


def _provenance(material: Material) -> Section:
    info = material.run.info
    section = Section("provenance", "How to get these numbers again")
    facts = [
        (key, info.get(key))
        for key in ("command", "started", "seed", "git_commit", "config_sha256")
    ]
    seconds = {k: v for k, v in _mapping(info, "seconds").items() if isinstance(v, (int, float))}
    section.extra = {
        "facts": [
            (key.replace("_", " "), str(value)) for key, value in facts if value not in (None, "")
        ],
        "versions": _mapping(info, "versions"),
        "machine": _mapping(info, "machine"),
        "seconds": [(stage, duration(value), value) for stage, value in seconds.items()],
        "total": duration(sum(seconds.values())) if seconds else "",
        "longest": max(seconds.values(), default=1) or 1,
        "config": json.dumps(info.get("config"), indent=2, ensure_ascii=False, default=str),
    }
    if info.get("config") is None:
        section.absent.append("run.json holds no configuration.")
    section.absent += list(material.run.unread.values())
    return section


def _mapping(info: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = info.get(key)
    return found if isinstance(found, dict) else {}


SECTIONS: tuple[Callable[[Material], Section], ...] = (
    _answer,
    _done,
    _methods,
    _cases,
    _learning,
    _paired,
    _ranks,
    _slices,
    _training,
    _kernels,
    _calibration,
    _volumes,
    _provenance,
)


def duration(seconds: float) -> str:
    """Return ``seconds`` for a reader.

    Examples
    --------
    >>> duration(8.25), duration(754), duration(7322)
    ('8.2 s', '12 min 34 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
