"""run.json tells every start of a run, and adds up what they took."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medseg.config.build import load_plan
from medseg.errors import ConfigError
from medseg.experiment.plan import ExperimentPlan
from medseg.experiment.record import Start, plan_key


@pytest.fixture
def plan() -> ExperimentPlan:
    return load_plan("experiment/demo", ["protocol.target_training.precision=float32"])


def begin(plan: ExperimentPlan, out: Path, commit: str, seconds: float, *, at: str) -> Start:
    start = Start.of(plan, out, plan_key(plan), resume=True)
    start.commit, start.started, start.seconds = commit, at, {"cells: pr": seconds}
    return start


def test_processes_that_share_a_folder_lose_no_commit_and_no_second(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    one = begin(plan, tmp_path, "aaaa", 100.0, at="2026-01-01T00:00:00+00:00")
    two = begin(plan, tmp_path, "bbbb", 90.0, at="2026-01-01T00:01:00+00:00")
    for start in (one, two, one):
        start.write()
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["git_commit"] == "aaaa, bbbb"
    assert told["seconds"] == {"cells: pr": 190.0}
    assert told["started"] == one.started
    assert [start["seconds"] for start in told["starts"]] == [one.seconds, two.seconds]


def test_another_precision_does_not_go_on(plan: ExperimentPlan, tmp_path: Path) -> None:
    Start.of(plan, tmp_path, "key", resume=True)
    training = replace(plan.protocol.target_training, precision="bf16")
    other = replace(plan, protocol=replace(plan.protocol, target_training=training))
    with pytest.raises(ConfigError, match="began in float32 and this machine takes bfloat16"):
        Start.of(other, tmp_path, "key", resume=True)


def test_another_configuration_and_a_run_that_is_not_to_go_on_are_refused(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    Start.of(plan, tmp_path, "key", resume=False)
    with pytest.raises(ConfigError, match="holds another"):
        Start.of(plan, tmp_path, "other", resume=True)
    with pytest.raises(ConfigError, match="--resume"):
        Start.of(plan, tmp_path, "key", resume=False)
