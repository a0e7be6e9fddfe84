"""What may stand in a translator's YAML."""

from collections.abc import Sequence
from dataclasses import dataclass

from medseg.config.catalog import SOURCES
from medseg.config.load import find_config, read_yaml, validate
from medseg.config.schema import DataConfig
from medseg.data.source import CaseSource
from medseg.settings import settings
from medseg.translation.settings import TranslationSettings


@settings
class TranslationConfig:
    """One translator and the cases it learns from; their labels need no meaning."""

    title: str
    source: DataConfig
    #: Second cohort of ``cyclegan``; without one, the first is cut in two by subject.
    other: DataConfig | None = None
    translation: TranslationSettings


@dataclass(frozen=True, eq=False)
class TranslationPlan:
    """A translator to be trained.

    Parameters
    ----------
    title : str
    settings : TranslationSettings
    source : CaseSource
    other : CaseSource, optional
    """

    title: str
    settings: TranslationSettings
    source: CaseSource
    other: CaseSource | None


def load_translation(name: str, overrides: Sequence[str] = ()) -> TranslationPlan:
    """Return the translator that a YAML file, or a shipped one's name, and overrides describe.

    Raises
    ------
    ConfigError
        Every wrong key is named.
    DataError
        The data are not where the settings say.
    """
    path = find_config(name)
    config = validate(TranslationConfig, read_yaml(path, overrides), where=path.name)
    other = None if config.other is None else _source(config.other, where="other")
    source = _source(config.source, where="source")
    return TranslationPlan(config.title, config.translation, source, other)


def _source(config: DataConfig, *, where: str) -> CaseSource:
    schema, make = SOURCES[config.kind]
    return make(validate(schema, config.settings, where=f"{where}.settings"))
