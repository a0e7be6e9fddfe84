"""What a run says of itself: its configuration, its machines, its cohorts and its times."""

from __future__ import annotations

import hashlib
import json
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from medseg.data.source import CaseSource
from medseg.errors import ConfigError
from medseg.experiment.plan import Cohort, ExperimentPlan
from medseg.inference.provenance import git_commit, versions
from medseg.io.atomic import write_json
from medseg.networks.precision import resolve_device, resolve_precision

#: Raised when the same configuration comes to other numbers: no table has cells of both.
RESULTS = 6


def plan_key(plan: ExperimentPlan) -> str:
    """Return the hash of an experiment's configuration: what a resumed run must agree with."""
    given = json.dumps([RESULTS, plan.config], sort_keys=True)
    return hashlib.sha256(given.encode()).hexdigest()


@dataclass
class Start:
    """One start of a run, by one process: when, where, of which version and for how long.

    Parameters
    ----------
    plan : ExperimentPlan
    out : Path
        The run's folder.
    key : str
        Hash of the configuration.
    seconds : dict of stage to float
        Spent by this process.
    commit : str, optional
        Of the sources that it runs.
    name, started : str
        Tell it from other starts.
    """

    plan: ExperimentPlan
    out: Path
    key: str
    seconds: dict[str, float] = field(default_factory=dict)
    commit: str | None = field(default_factory=git_commit)
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def of(cls, plan: ExperimentPlan, out: Path, key: str, *, resume: bool) -> Start:
        """Return a start in a folder that holds nothing, or part of the same experiment.

        Raises
        ------
        ConfigError
            The folder holds another experiment, one and ``resume`` is False, or one that computes
            in another precision.
        """
        start, path = cls(plan, out, key), out / "run.json"
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            _require_same(before, key, start.machine, out)
            if not resume:
                raise ConfigError(
                    f"{out} holds this experiment already.",
                    hint="Add --resume to go on with it, or give another folder.",
                )
        start.write()
        return start

    @property
    def machine(self) -> dict[str, object]:
        """What it computes on, and how."""
        training = self.plan.protocol.target_training
        device = resolve_device(training.device)
        precision = resolve_precision(training.precision, device)
        return {
            "cpu": platform.processor() or platform.machine(),
            "cores": torch.get_num_threads(),
            "device": str(device),
            "precision": str(precision).removeprefix("torch."),
        }

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds that a stage takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 2)

    def write(self) -> None:
        """Write ``run.json``: what is the same for all starts, and what is of each of them.

        ``git_commit`` names the commits of all, ``seconds`` adds theirs up; another process that
        shares the folder loses nothing.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "run.json"
        with FileLock(self.out / ".run.lock"):
            before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            starts = [one for one in before.get("starts", []) if one["name"] != self.name]
            starts.append(self._told())
            starts.sort(key=lambda one: one["started"])
            seconds: dict[str, float] = {}
            for one in starts:
                for stage, spent in one["seconds"].items():
                    seconds[stage] = round(seconds.get(stage, 0.0) + spent, 2)
            commits = dict.fromkeys(one["git_commit"] for one in starts if one["git_commit"])
            write_json(
                path,
                {
                    **_described(self.plan),
                    "config_sha256": self.key,
                    "versions": starts[-1]["versions"],
                    "git_commit": ", ".join(commits) or None,
                    "machine": starts[-1]["machine"],
                    "started": starts[0]["started"],
                    "seconds": seconds,
                    "starts": starts,
                },
            )

    def _told(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "started": self.started,
            "git_commit": self.commit,
            "versions": versions(),
            "machine": self.machine,
            "seconds": self.seconds,
        }


def _require_same(before: dict[str, Any], key: str, machine: dict[str, object], out: Path) -> None:
    if before.get("config_sha256") != key:
        raise ConfigError(
            f"A folder holds one experiment, but {out} holds another: "
            f"{before.get('title')!r} with other settings, or of another version of medseg.",
            hint="Give another output folder.",
        )
    old, new = before.get("machine", {}).get("precision"), machine["precision"]
    if old not in (None, new):
        raise ConfigError(
            f"All cells of an experiment compute in one precision, but {out} began in {old} and "
            f"this machine takes {new}.",
            hint=f"Go on where {old} is native, or begin anew with "
            "protocol.target_training.precision=float32 and the same for source_training.",
        )


def _described(plan: ExperimentPlan) -> dict[str, object]:
    described = [
        _cohort(cohort, "source", name)
        for name, mix in [*plan.sources.items(), *plan.scans.items()]
        for cohort in mix
    ]
    # What is a source and rehearsed, too, is told once.
    cohorts = [one for at, one in enumerate(described) if one not in described[:at]]
    return {
        "title": plan.title,
        "description": plan.description,
        "config": plan.config,
        "seed": plan.protocol.seed,
        "command": plan.command,
        "cohorts": [*cohorts, _cohort(plan.target, "target", "target")],
        "statements": list(plan.statements),
        "regions": list(plan.protocol.regions.names),
        "modalities": list(plan.protocol.channels),
    }


def _cohort(cohort: Cohort, role: str, name: str) -> dict[str, object]:
    source: CaseSource = cohort.source
    return {
        "name": f"{name}: {source.name}" if role == "source" else source.name,
        "role": role,
        "licence": source.licence,
        "citation": source.citation,
        "n_subjects": len(set(source.subjects)),
        "synthetic": cohort.synthetic,
        "note": cohort.note,
    }
