"""Scans to learn from beside the target's, as a command line names them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.config.build import build_cohort, plain, read_experiment
from medseg.config.folder import recognise_kind
from medseg.config.load import find_config, read_yaml, validate
from medseg.config.schema import DataConfig
from medseg.errors import ConfigError
from medseg.experiment.plan import ExperimentPlan


def with_scans(plan: ExperimentPlan, scans: str) -> ExperimentPlan:
    """Return a plan that has the scans which a training learns from beside the target's.

    Parameters
    ----------
    plan : ExperimentPlan
    scans : str
        A name under the plan's scans, a folder of cases with masks, or ``CONFIG:NAME``: what is
        called NAME under the sources or scans of an experiment's YAML, such as what the source
        networks were trained on. Empty for none.

    Raises
    ------
    ConfigError
        It is none of these.
    DataError, ScanError
        What it names cannot be read.
    """
    if not scans or scans in plan.scans:
        return plan
    parts = _folder(Path(scans)) if Path(scans).is_dir() else _mix(scans, plan)
    cohorts = tuple(
        build_cohort(part, where=f"{scans}.{number}") for number, part in enumerate(parts)
    )
    record = [plain(vars(part)) for part in parts]
    return replace(
        plan,
        scans={**plan.scans, scans: cohorts},
        config={**plan.config, "scans": {**plan.config.get("scans", {}), scans: record}},
    )


def _folder(folder: Path) -> list[DataConfig]:
    values: dict[str, Any] = {"settings": {"root": str(folder)}}
    values["kind"] = recognise_kind(values)
    return [validate(DataConfig, values, where="--scans")]


def _mix(scans: str, plan: ExperimentPlan) -> list[DataConfig]:
    config, colon, name = scans.rpartition(":")
    if not colon:
        raise ConfigError(
            f"Scans to learn from are a name under scans in the YAML ({sorted(plan.scans)}), a "
            f"folder of cases with masks, or CONFIG:NAME, but they are {scans!r}.",
            hint="Name those that the source was trained on: experiment/demo_full:generated.",
        )
    path = find_config(config)
    found = read_experiment(read_yaml(path), where=path.name)
    mixes = {**found.scans, **found.sources}
    if name not in mixes:
        raise ConfigError(
            f"{path.name} has the sources and scans {sorted(mixes)}, but {name!r} is asked for."
        )
    return list(mixes[name])
