"""Scans to learn from beside the target's, as a command line names them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medseg.config.build import build_cohort, plain, read_experiment
from medseg.config.folder import recognise_kind
from medseg.config.load import find_config, read_yaml, validate
from medseg.config.schema import DataConfig
from medseg.errors import ConfigError, MedsegError
from medseg.experiment.plan import Cohort, ExperimentPlan

_Part = tuple[DataConfig, Cohort]
_IN_A_YAML = "Describe them under scans in a YAML, and give --scans FILE.yaml:NAME."


def with_scans(plan: ExperimentPlan, scans: str, *, kind: str | None = None) -> ExperimentPlan:
    """Return a plan that has the scans which a training learns from beside the target's.

    Parameters
    ----------
    plan : ExperimentPlan
    scans : str
        A name under the plan's scans, a folder of cases with masks, or ``CONFIG:NAME``: what is
        called NAME under the sources or scans of an experiment's YAML, such as what the source
        networks were trained on. Empty for none.
    kind : str, optional
        What a folder holds; recognised when it is not given.

    Raises
    ------
    ConfigError
        It is none of these, or a folder in or around the target's.
    DataError, ScanError
        What it names cannot be read, or a case of a folder lacks a mask or one of the channels.
    """
    if not scans or scans in plan.scans:
        return plan
    found = _folder(Path(scans), plan, kind) if Path(scans).is_dir() else _mix(scans, plan)
    record = [plain(vars(part)) for part, _ in found]
    return replace(
        plan,
        scans={**plan.scans, scans: tuple(cohort for _, cohort in found)},
        config={**plan.config, "scans": {**plan.config.get("scans", {}), scans: record}},
    )


def _folder(folder: Path, plan: ExperimentPlan, kind: str | None) -> list[_Part]:
    target = plan.config.get("target", {}).get("settings", {}).get("root")
    if target is not None:
        ours, theirs = folder.resolve(), Path(target).resolve()
        if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
            raise ConfigError(
                f"Scans beside the target's must be others, but {folder} and the target's folder "
                f"{target} lie in one another.",
                hint="Keep them in folders of their own.",
            )
    settings = {
        "root": str(folder),
        # Two folders of one kind are two data sets, whatever their subjects are called.
        "name": str(folder),
        "required": list(plan.protocol.channels),
    }
    try:
        known = kind or recognise_kind({"settings": settings})
        config = validate(DataConfig, {"kind": known, "settings": settings}, where="--scans")
        return [(config, build_cohort(config, where="--scans"))]
    except MedsegError as error:
        raise type(error)(f"Of the scans in {folder}: {error.message}", hint=_IN_A_YAML) from error


def _mix(scans: str, plan: ExperimentPlan) -> list[_Part]:
    config, colon, name = scans.rpartition(":")
    if not colon:
        raise ConfigError(
            f"Scans to learn from are a name under scans in the YAML ({sorted(plan.scans)}), a "
            f"folder of cases with masks, or CONFIG:NAME, but they are {scans!r}.",
            hint="Name those that the source was trained on: experiment/demo_full:generated.",
        )
    path = find_config(config)
    found = read_experiment(read_yaml(path), where=path.name)
    mixes = [mix[name] for mix in (found.scans, found.sources) if name in mix]
    if not mixes or mixes[0] != mixes[-1]:
        raise ConfigError(
            f"A name must mean one mix among the scans {sorted(found.scans)} and the sources "
            f"{sorted(found.sources)} of {path.name}, but {name!r} means {len(mixes)}.",
            hint="Give one of these names, or rename one in a copy.",
        )
    return [
        (part, build_cohort(part, where=f"{scans}.{number}"))
        for number, part in enumerate(mixes[0])
    ]
