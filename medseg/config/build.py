"""From a checked configuration to the objects of an experiment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.config.catalog import DEFINITIONS, NETWORKS, PHANTOM_DEFINITIONS, SOURCES
from medseg.config.load import find_config, read_yaml, validate
from medseg.config.schema import DataConfig, ExperimentConfig
from medseg.data.phantom.cohort import PhantomSettings
from medseg.data.regions import Definition
from medseg.errors import ConfigError
from medseg.experiment.plan import Arm, Cohort, ExperimentPlan
from medseg.training.transfer import MethodSettings


def build_cohort(config: DataConfig, *, where: str) -> Cohort:
    """Return the data set of a configuration.

    Raises
    ------
    ConfigError
        Settings that the kind does not have, or labels whose meaning nobody said.
    """
    schema, make = SOURCES[config.kind]
    chosen = validate(schema, config.settings, where=f"{where}.settings")
    definition: Definition | None = config.regions or DEFINITIONS.get(config.kind)
    if isinstance(chosen, PhantomSettings):
        definition = config.regions or PHANTOM_DEFINITIONS[chosen.disease]
    if definition is None:
        raise ConfigError(
            f"{where}.regions must say which labels make up each region of kind {config.kind!r}.",
            hint="Write for example regions: {lesion: [1]}.",
        )
    source = make(chosen)
    return Cohort(
        source=source, definition=definition, synthetic=config.kind == "phantom", note=config.note
    )


def load_plan(name: str, overrides: Sequence[str] = (), *, command: str = "") -> ExperimentPlan:
    """Return the experiment that a YAML file and overrides describe.

    Raises
    ------
    ConfigError
        Every wrong key is named.
    """
    path = find_config(name)
    values = read_yaml(path, overrides)
    config = validate(ExperimentConfig, values, where=path.name)
    _check_arms(config, path)
    sources = {
        label: tuple(
            build_cohort(part, where=f"sources.{label}.{number}")
            for number, part in enumerate(parts)
        )
        for label, parts in config.sources.items()
    }
    return ExperimentPlan(
        title=config.title,
        description=config.description,
        sources=sources,
        target=build_cohort(config.target, where="target"),
        arms=[Arm(method=arm.method, sources=arm.sources) for arm in config.arms],
        protocol=config.protocol,
        architecture=NETWORKS[config.network],
        config=_plain(values),
        statements=config.statements,
        command=command,
    )


def _check_arms(config: ExperimentConfig, path: Path) -> None:
    for number, arm in enumerate(config.arms):
        unknown = [name for name in arm.sources if name not in config.sources]
        if unknown or (arm.method.method != "ri" and not arm.sources):
            raise ConfigError(
                f"{path.name}: arms.{number}.sources must name some of {sorted(config.sources)}, "
                f"but it is {list(arm.sources)}.",
                hint="Only method 'ri' needs no source.",
            )
    labels = [(arm.method.label, name) for arm in config.arms for name in arm.sources or ("none",)]
    if len(set(labels)) < len(labels):
        raise ConfigError(
            f"{path.name}: an arm may stand once per source, but the arms are {labels}."
        )


def load_method(method: str, overrides: Sequence[str] = ()) -> MethodSettings:
    """Return the settings of a method with ``key=value`` overrides."""
    values: dict[str, Any] = {"method": method}
    for override in overrides:
        key, _, text = override.partition("=")
        values[key] = text
    return validate(MethodSettings, values, where="method")


def _plain(values: Any) -> Any:
    if isinstance(values, dict):
        return {str(key): _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return values if isinstance(values, str | int | float | bool | None) else str(values)
