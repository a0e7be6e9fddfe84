"""From a bare folder of scans with masks to the plan of a fine-tuning on all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.config.build import (
    build_cohort,
    data_faults,
    definition_of,
    load_plan,
    plain,
    target_faults,
)
from medseg.config.catalog import DEFINITIONS, NETWORKS
from medseg.config.load import apply_overrides, faulty, find_faults, validate
from medseg.config.schema import DataConfig, FolderConfig
from medseg.data.regions import Definition
from medseg.data.source import CaseSource
from medseg.errors import ConfigError, DataError, LabelError, MedsegError, ScanError
from medseg.experiment.plan import Cohort, ExperimentPlan, ProtocolSettings
from medseg.inference.model import ModelSpec, spec_to_json
from medseg.networks.unet import UNetSettings

#: Kinds that a folder is tried as.
KINDS = tuple(DEFINITIONS)


def plan_for(
    data: str,
    overrides: Sequence[str] = (),
    *,
    kind: str | None = None,
    source: ModelSpec | None = None,
    command: str = "",
) -> ExperimentPlan:
    """Return the plan of what is given as data: a folder of scans, or the YAML of an experiment.

    Raises
    ------
    ConfigError
        A kind was given, but no folder. For the rest see :func:`plan_for_folder` and
        :func:`medseg.config.build.load_plan`.
    """
    if Path(data).is_dir():
        return plan_for_folder(Path(data), overrides, kind=kind, source=source, command=command)
    if kind is not None:
        raise ConfigError(
            f"--kind says what a folder of scans holds, but {data!r} is no folder.",
            hint="Give the folder, or leave --kind out.",
        )
    return load_plan(data, overrides, command=command)


def plan_for_folder(
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    kind: str | None = None,
    source: ModelSpec | None = None,
    command: str = "",
) -> ExperimentPlan:
    """Return the plan of a fine-tuning on every case of a folder: a target without any arm.

    Parameters
    ----------
    folder : Path
        Cases of one kind, each with a mask.
    overrides : sequence of str
        ``dotted.key=value`` of :class:`medseg.config.schema.FolderConfig`; they win.
    kind : str, optional
        One of ``KINDS``; recognised when it is not given.
    source : ModelSpec, optional
        Of the model to start from: architecture, channels, preprocessing and those of its regions
        that the kind knows are taken from it.
    command : str
        That does it again.

    Raises
    ------
    ConfigError
        The kind is unknown or the folder fits more than one; every wrong key is named.
    DataError
        The folder fits no kind.
    ScanError
        A case lacks a mask or one of the channels.
    """
    title = f"Fine-tuning on {folder}"
    target = _target(folder, kind, overrides)
    definition = definition_of(validate(DataConfig, target, where="target"))
    values: dict[str, Any] = {"protocol": _protocol(definition, source)}
    apply_overrides(values, overrides)
    values["target"] = target  # has its overrides already
    config = _read(values, source, where=title)
    record = {} if source is None else {"architecture": spec_to_json(source)["architecture"]}
    return ExperimentPlan(
        title=title,
        description="",
        sources={},
        target=_cohort(config, source),
        arms=(),
        protocol=config.protocol,
        architecture=_architecture(config, source),
        config=plain({**values, **record}),
        command=command,
    )


def recognise_kind(target: Mapping[str, Any]) -> str:
    """Return the one kind that the cases of a folder fit.

    File names decide where they can. Where they fit several kinds, cases are read, one after the
    other, until the labels of a mask leave one kind.

    Parameters
    ----------
    target : mapping
        As in :class:`medseg.config.schema.DataConfig`, without ``kind``.

    Raises
    ------
    ConfigError
        More than one kind fits, or none has all of the settings.
    DataError
        None fits; what speaks against each is said.
    """
    root, refused = target["settings"]["root"], dict[str, MedsegError]()
    fitting: dict[str, CaseSource] = {}
    for kind in KINDS:
        try:
            config = validate(DataConfig, {**target, "kind": kind}, where="target")
            fitting[kind] = build_cohort(config, where="target").source
        except (ConfigError, DataError, ScanError) as error:
            refused[kind] = error
    for index in range(min(map(len, fitting.values()), default=0)):
        if len(fitting) < 2:
            break
        for kind in list(fitting):
            try:
                fitting[kind][index]
            except LabelError as error:
                refused[kind] = error
                del fitting[kind]
    if not fitting:
        raise _none_fits(root, refused)
    if len(fitting) > 1:
        raise ConfigError(
            f"A data folder must be of one kind, but the cases under {root} fit each of "
            f"{list(fitting)}.",
            hint=f"Say which with --kind {' or --kind '.join(fitting)}.",
        )
    return next(iter(fitting))


def _none_fits(root: object, refused: Mapping[str, MedsegError]) -> MedsegError:
    reasons: dict[str, list[str]] = {}
    for kind, error in refused.items():
        reasons.setdefault(f"{error.message} {error.hint}".rstrip(), []).append(kind)
    tried = " ".join(f"As {' or '.join(kinds)}: {reason}" for reason, kinds in reasons.items())
    misspelt = all(isinstance(error, ConfigError) for error in refused.values())
    return (ConfigError if misspelt else DataError)(
        f"A data folder must hold cases with masks of one of the kinds {list(KINDS)}, but {root} "
        f"fits none. {tried}",
        hint="Mend the folder, name its kind with --kind, or write a YAML with kind: folder.",
    )


def _target(folder: Path, kind: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the target with its overrides, its root and its kind."""
    values: dict[str, Any] = {"target": {"kind": kind, "settings": {"root": str(folder)}}}
    apply_overrides(values, overrides)
    target = values["target"]
    if not isinstance(target, dict) or not isinstance(target.get("settings"), dict):
        raise ConfigError(
            f"The target must be keys and values with settings, but overrides make it {target!r}.",
            hint="Change one setting at a time: target.settings.allow_empty=true.",
        )
    settings = {"root": str(folder), **target["settings"]}
    target = {**target, "settings": settings}
    chosen = target.pop("kind", None)
    if chosen is None:
        chosen = recognise_kind(target)
    if chosen not in KINDS:
        raise ConfigError(
            f"The kind of a data folder must be one of {list(KINDS)}, but it is {chosen!r}.",
            hint="Write a YAML for a target of another kind, such as kind: folder.",
        )
    return {"kind": chosen, **target}


def _protocol(definition: Definition, source: ModelSpec | None) -> dict[str, Any]:
    """Return what holds before the overrides: what the source does, on regions of the target."""
    # As long as in the cohorts of README's last comparisons.
    common = {"regions": _regions(definition, source), "target_training": {"steps": 900}}
    if source is None:
        return common
    given = spec_to_json(source)
    size = source.patch or ProtocolSettings().patch.size[: source.architecture.dims]
    return {
        **common,
        "channels": given["channels"],
        "preprocess": given["preprocess"],
        "patch": {"size": list(size)},
    }


def _regions(definition: Definition, source: ModelSpec | None) -> dict[str, Any]:
    usual = ProtocolSettings().regions
    for wanted in (usual,) if source is None else (source.regions, usual):
        names = [name for name in wanted.names if name in definition]
        if names:
            return {"mode": wanted.mode, "names": names}
    return {"mode": usual.mode, "names": list(definition)}


def _read(values: dict[str, Any], source: ModelSpec | None, *, where: str) -> FolderConfig:
    """Return the checked configuration, or name every fault at once."""
    faults = [*find_faults(FolderConfig, values, where=""), *data_faults(values)]
    if source is not None and "network" in values:
        faults.append("network cannot be set, the architecture is that of the source model")
    if faults:
        raise faulty(where, faults)
    config = validate(FolderConfig, values, where=where)
    faults = target_faults(
        config.target,
        config.protocol,
        dims=_architecture(config, source)(1, 1).dims,
        of=f"network {config.network!r}" if source is None else "the source model",
    )
    if faults:
        raise faulty(where, faults)
    return config


def _architecture(
    config: FolderConfig, source: ModelSpec | None
) -> Callable[[int, int], UNetSettings]:
    if source is None:
        return NETWORKS[config.network]
    given = source.architecture

    def like_source(in_channels: int, out_channels: int) -> UNetSettings:
        return replace(given, in_channels=in_channels, out_channels=out_channels)

    return like_source


def _cohort(config: FolderConfig, source: ModelSpec | None) -> Cohort:
    """Return the cases, all of which have every channel by the names of their files."""
    given, channels = config.target.settings, config.protocol.channels
    required = list(dict.fromkeys([*given.get("required", ()), *channels]))
    strict = replace(config.target, settings={**given, "required": required})
    try:
        return build_cohort(strict, where="target")
    except ScanError as error:
        build_cohort(config.target, where="target")  # raises what is not about channels
        way_out = "Add the scan, remove the case, or name other modalities in protocol.channels."
        if source is not None and channels == source.channels:
            way_out = (
                "These are the channels of the source model: add the scan, remove the case, or "
                "take a source of other channels."
            )
        raise ScanError(error.message, hint=way_out) from error
