"""From a checked configuration to the objects of an experiment."""

from collections.abc import Sequence
from typing import Any

from medseg.config.catalog import (
    DEFINITIONS,
    NETWORKS,
    PHANTOM_DEFINITIONS,
    SOURCES,
    SYNTHETIC,
)
from medseg.config.learned import learned_definition
from medseg.config.load import (
    apply_overrides,
    faulty,
    find_config,
    find_faults,
    read_yaml,
    validate,
)
from medseg.config.schema import DataConfig, ExperimentConfig
from medseg.data.phantom.cohort import PhantomSettings
from medseg.data.regions import Definition
from medseg.data.source import CaseSource
from medseg.errors import ConfigError
from medseg.experiment.plan import Arm, Cohort, ExperimentPlan, ProtocolSettings
from medseg.priors.fit import PRIOR_KINDS, is_normalised
from medseg.training.objectives import WITH_SCANS
from medseg.training.transfer import VARIATIONAL


def build_cohort(config: DataConfig, *, where: str) -> Cohort:
    """Return the data set of a configuration.

    Raises
    ------
    ConfigError
        Settings that the kind does not have, or labels whose meaning nobody said.
    """
    # First, so that wrong settings are named before what they would mean.
    source = build_source(config, where=where)
    definition = definition_of(config)
    if not definition:
        raise ConfigError(
            f"{where}.regions must say which labels make up each region of kind {config.kind!r}.",
            hint="Write for example regions: {lesion: [1]}.",
        )
    return Cohort(
        source=source,
        definition=definition,
        synthetic=config.kind in SYNTHETIC,
        note=config.note,
    )


def build_source(config: DataConfig, *, where: str) -> CaseSource:
    """Return the cases of a configuration, whatever their labels mean.

    Raises
    ------
    ConfigError
        Settings that the kind does not have.
    """
    schema, make = SOURCES[config.kind]
    return make(validate(schema, config.settings, where=f"{where}.settings"))


def definition_of(config: DataConfig) -> Definition:
    """Return what the labels of a data set mean; nothing where nobody said."""
    if config.regions:
        return config.regions
    if config.kind == "phantom":
        disease = config.settings.get("disease", PhantomSettings().disease)
        return PHANTOM_DEFINITIONS.get(disease, {})
    if config.kind == "learned":
        return learned_definition(config.settings)
    return DEFINITIONS.get(config.kind, {})


def load_plan(name: str, overrides: Sequence[str] = (), *, command: str = "") -> ExperimentPlan:
    """Return the experiment that a YAML file and overrides describe.

    Raises
    ------
    ConfigError
        Every wrong key is named.
    DataError
        The data are not where the settings say.
    """
    path = find_config(name)
    return plan_of(read_yaml(path, overrides), where=path.name, command=command)


def plan_of(values: dict[str, Any], *, where: str, command: str = "") -> ExperimentPlan:
    """Return the experiment that a configuration describes; ``where`` it stood, for errors.

    Raises
    ------
    ConfigError
        Every wrong key is named.
    DataError
        The data are not where the settings say.
    """
    config = read_experiment(values, where=where)
    sources, scans = (
        {
            label: tuple(
                build_cohort(part, where=f"{role}.{label}.{number}")
                for number, part in enumerate(parts)
            )
            for label, parts in mixes.items()
        }
        for role, mixes in (("sources", config.sources), ("scans", config.scans))
    )
    return ExperimentPlan(
        title=config.title,
        description=config.description,
        sources=sources,
        target=build_cohort(config.target, where="target"),
        arms=config.arms,
        protocol=config.protocol,
        architecture=NETWORKS[config.network],
        config=plain(values),
        statements=config.statements,
        command=command,
        pretraining=config.pretraining,
        scans=scans,
    )


def read_experiment(values: Any, *, where: str) -> ExperimentConfig:
    """Return the checked configuration; no data need be there.

    Raises
    ------
    ConfigError
        Names every fault at once: of the schema, of the settings of each data set, of the arms.
    """
    faults = [*find_faults(ExperimentConfig, values, where=""), *data_faults(values)]
    if faults:
        raise faulty(where, faults)
    config = validate(ExperimentConfig, values, where=where)
    faults = [*_arm_faults(config), *_protocol_faults(config)]
    if faults:
        raise faulty(where, faults)
    return config


def data_faults(values: Any) -> list[str]:
    """Return the faults in the free ``settings`` of each data set, whatever else is wrong."""
    given = values if isinstance(values, dict) else {}
    mixes = [(role, given[role]) for role in ("sources", "scans") if role in given]
    parts: list[tuple[str, Any]] = [
        (f"{role}.{label}.{number}", part)
        for role, sources in mixes
        for label, mix in (sources.items() if isinstance(sources, dict) else ())
        for number, part in enumerate(mix if isinstance(mix, list) else ())
    ]
    parts.append(("target", values.get("target") if isinstance(values, dict) else None))
    faults: list[str] = []
    for where, part in parts:
        if not isinstance(part, dict) or part.get("kind") not in SOURCES:
            continue
        kind = part["kind"]
        faults += data_settings_faults(part, f"{where}.settings")
        known = kind in SYNTHETIC or kind in DEFINITIONS
        if not part.get("regions") and not known:
            faults.append(
                f"{where}.regions must say which labels make up each region of kind {kind!r}, "
                "for example {lesion: [1]}"
            )
    return faults


def data_settings_faults(part: dict[str, Any], where: str) -> list[str]:
    """Return the faults in the ``settings`` of one data set, and in those of what it is made of."""
    given = part.get("settings") or {}
    if part.get("kind") not in SOURCES:
        return []
    faults = find_faults(SOURCES[part["kind"]][0], given, where=where)
    if part["kind"] == "learned" and isinstance(given, dict):
        learned = given.get("learn_from")
        inner = [("hosts", given.get("hosts"))]
        if isinstance(learned, list | tuple):
            inner += [(f"learn_from.{number}", item) for number, item in enumerate(learned)]
        for name, item in inner:
            if isinstance(item, dict):
                faults += data_settings_faults(item, f"{where}.{name}.settings")
    return faults


def _arm_faults(config: ExperimentConfig) -> list[str]:
    faults = [
        f"arms.{number}.sources must name some of {sorted(config.sources)} (only method 'ri' needs "
        f"none), but it is {list(arm.sources)}"
        for number, arm in enumerate(config.arms)
        if (arm.method.method != "ri" and not arm.sources)
        or any(name not in config.sources for name in arm.sources)
    ]
    for number, arm in enumerate(config.arms):
        try:
            config.protocol.prior_named(arm.method.prior)
        except ConfigError as error:
            faults.append(f"arms.{number}.method.prior: {error.message}")
    faults += [
        f"arms.{number}.scans must name some of {sorted(config.scans)} for co_learning, "
        f"sharing and rehearsal and nothing for others, but it is {arm.scans!r}"
        for number, arm in enumerate(config.arms)
        if (arm.scans in config.scans) != isinstance(arm.objective, WITH_SCANS)
        or (arm.scans and arm.scans not in config.scans)
    ]
    faults += [
        _mismatch(f"arms.{number}.objective", arm)
        for number, arm in enumerate(config.arms)
        if not arm.is_a_pair
    ]
    faults += [
        f"arms.{number}.objective.channels must be some and not all of protocol.channels, "
        f"{list(config.protocol.channels)}, but they are {list(arm.hidden_channels)}"
        for number, arm in enumerate(config.arms)
        if not set(arm.hidden_channels) < set(config.protocol.channels)
    ]
    faults += [
        f"pretraining.{name} must be one of the sources {sorted(config.sources)}, but it is not"
        for name in config.pretraining
        if name not in config.sources
    ]
    return [*faults, *_unfit_priors(config), *_same_labels(config.arms)]


def _unfit_priors(config: ExperimentConfig) -> list[str]:
    """Return the arms whose prior is part of a mixture, but has no density that sums to one."""
    faults: list[str] = []
    for number, arm in enumerate(config.arms):
        name = arm.method.prior
        known = name is None or name in (*config.protocol.priors, *PRIOR_KINDS)
        if arm.method.method != "anchored" or not known:
            continue
        kind = config.protocol.prior_named(name).kind
        if not is_normalised(kind):
            some = ", ".join(other for other in PRIOR_KINDS if is_normalised(other))
            faults.append(
                f"arms.{number}.method.prior of method 'anchored' must be of a kind that is "
                f"normalised ({some}), but it is of kind {kind!r}"
            )
    return faults


def _same_labels(arms: Sequence[Arm]) -> list[str]:
    places: dict[tuple[str, str], list[int]] = {}
    for number, arm in enumerate(arms):
        for name in arm.sources or ("none",):
            places.setdefault((arm.label, name), []).append(number)
    return [
        f"an arm may stand once per source, but {label!r} on {name!r} is "
        f"{' and '.join(f'arms.{n}' for n in numbers)}: give one a name of its own (name: ...)"
        for (label, name), numbers in places.items()
        if len(numbers) > 1
    ]


def _mismatch(where: str, arm: Arm) -> str:
    return (
        f"{where} distillation is for {', '.join(VARIATIONAL)}, rehearsal for all and the others "
        f"for the other methods, but the method is {arm.method.method!r}"
    )


def _protocol_faults(config: ExperimentConfig) -> list[str]:
    faults = [
        f"sources.{label} must name at least one data set, but it is empty"
        for label, parts in [*config.sources.items(), *config.scans.items()]
        if not parts
    ]
    dims = NETWORKS[config.network](1, 1).dims
    of = f"network {config.network!r}"
    return [*faults, *target_faults(config.target, config.protocol, dims=dims, of=of)]


def target_faults(
    target: DataConfig, protocol: ProtocolSettings, *, dims: int, of: str
) -> list[str]:
    """Return where the protocol fits neither the target nor the network.

    Parameters
    ----------
    target : DataConfig
    protocol : ProtocolSettings
    dims : int
        Spatial axes of the network.
    of : str
        What the network is, in words.
    """
    faults: list[str] = []
    known = definition_of(target)
    unknown = [name for name in protocol.regions.names if name not in known]
    if unknown:
        faults.append(
            f"protocol.regions.names must be regions of the target, {sorted(known)}, but "
            f"{unknown} are not"
        )
    patch = protocol.patch.size
    if len(patch) != dims:
        faults.append(
            f"protocol.patch.size must have {dims} numbers for {of}, but it is {list(patch)}"
        )
    return faults


def load_arm(
    method: str,
    overrides: Sequence[str] = (),
    *,
    objective: str | None = None,
    scans: str = "",
    refine: bool = False,
) -> Arm:
    """Return a method with an objective beside its own; overrides ``objective.key=value`` are its.

    With ``refine``, or an override ``refine.key=value``, predictions are held against intensities.

    Raises
    ------
    ConfigError
        A key or value is wrong, or method and objective do not go together.
    """
    values: dict[str, Any] = {"method": method}
    if objective is not None:
        values["objective"] = {"kind": objective}
    if refine:
        values["refine"] = {}
    apply_overrides(values, overrides)
    beside = {part: values.pop(part, None) for part in ("objective", "refine")}
    chosen = {**beside, "method": values, "scans": scans}
    arm = validate(Arm, chosen, where="method")
    if not arm.is_a_pair:
        raise faulty("method", [_mismatch("objective", arm)])
    return arm


def plain(values: Any) -> Any:
    """Return ``values`` as what JSON can hold, for the record."""
    if isinstance(values, dict):
        return {str(key): plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    return values if isinstance(values, str | int | float | bool | None) else str(values)
