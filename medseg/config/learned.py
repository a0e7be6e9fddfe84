"""The kind of data "learned": lesions learned from some data sets, heads of another."""

from pathlib import Path
from typing import Any

from pydantic import Field

from medseg.config.schema import DataConfig
from medseg.data.source import CaseSource
from medseg.errors import ConfigError
from medseg.preprocess.prepare import PreprocessSettings, prepare
from medseg.settings import settings
from medseg.synthesis.cohort import LearnedSource
from medseg.synthesis.lesion_model import LesionModel, LesionSettings, learn_lesions
from medseg.synthesis.lesions import LabelledScan


@settings
class LearnedSettings:
    """Where lesions and heads come from.

    Parameters
    ----------
    hosts : DataConfig
        Whose scans are painted into, for example phantoms with disease "healthy".
    lesions : Path, optional
        Folder of learned lesions; ``medseg generate`` leaves one in ``OUT/lesions``.
    learn_from : tuple of DataConfig
        Else: data sets of one disease with masks, whose lesions are learned.
    channels : tuple of str
        Modalities to learn; a case without one of them is left out.
    spacing_mm : tuple of 3 float
        At which they are learned.
    learning : LesionSettings
    n_subjects, seed : int
    name : str
    """

    hosts: DataConfig
    lesions: Path | None = None
    learn_from: tuple[DataConfig, ...] = ()
    channels: tuple[str, ...] = Field(default=("flair", "t1c"), min_length=1)
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)
    learning: LesionSettings = LesionSettings()
    n_subjects: int = Field(default=20, ge=1)
    seed: int = 0
    name: str = "learned"


def make_learned(chosen: LearnedSettings) -> CaseSource:
    """Return the source; lesions are learned when the first case is asked for.

    Raises
    ------
    ConfigError
        Both or neither of ``lesions`` and ``learn_from``, or data sets whose labels mean different
        things.
    """
    # Here, since the builder knows all kinds, and this is one of them.
    from medseg.config.build import build_cohort, build_source

    if (chosen.lesions is None) == (not chosen.learn_from):
        raise ConfigError(
            "Kind 'learned' needs either lesions (a folder) or learn_from (data sets), but has "
            + ("both." if chosen.learn_from else "neither."),
            hint="Give one of them.",
        )
    cohorts = [
        build_cohort(part, where=f"learn_from.{number}")
        for number, part in enumerate(chosen.learn_from)
    ]
    meanings = [{name: tuple(v) for name, v in c.definition.items()} for c in cohorts]
    if any(meaning != meanings[0] for meaning in meanings):
        raise ConfigError(
            "Lesions are learned from data sets whose labels mean the same, but they mean "
            f"{meanings}.",
            hint="Write the same regions for each of learn_from.",
        )
    hosts = build_source(chosen.hosts, where="hosts")

    def lesions() -> LesionModel:
        if chosen.lesions is not None:
            return LesionModel.load(chosen.lesions)
        scans = [scan for cohort in cohorts for scan in _scans(cohort.source, chosen)]
        return learn_lesions(
            scans,
            chosen.learning,
            channels=chosen.channels,
            definition=meanings[0],
            seed=chosen.seed,
        )

    return LearnedSource(
        chosen.name, hosts, lesions, n_subjects=chosen.n_subjects, seed=chosen.seed
    )


def learned_definition(given: dict[str, Any]) -> dict[str, Any]:
    """Return what the labels of a learned source mean: what they mean where they were learned."""
    from medseg.config.build import definition_of
    from medseg.config.load import validate

    chosen = validate(LearnedSettings, given, where="settings")
    if chosen.lesions is not None:
        return dict(LesionModel.load(chosen.lesions).definition)
    return dict(definition_of(chosen.learn_from[0])) if chosen.learn_from else {}


def _scans(source: CaseSource, chosen: LearnedSettings) -> list[LabelledScan]:
    preprocess = PreprocessSettings(spacing_mm=chosen.spacing_mm)
    scans = []
    for index in range(len(source)):
        case = source[index]
        if case.label is None or any(name not in case.scans for name in chosen.channels):
            continue
        prepared = prepare(case, channels=chosen.channels, settings=preprocess)
        if prepared.label is not None:
            scans.append(
                LabelledScan(
                    prepared.identifier,
                    prepared.image,
                    prepared.label.long(),
                    prepared.brain,
                    prepared.grid.spacing_mm,
                )
            )
    return scans
