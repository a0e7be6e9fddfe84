"""Held-out source cases: never trained on, and scored before and after."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medseg.config.build import load_plan
from medseg.data.regions import RegionSettings
from medseg.errors import DataError
from medseg.experiment import sources as sources_module
from medseg.experiment.forgetting import Forgetting, write_forgetting
from medseg.experiment.plan import ExperimentPlan
from medseg.experiment.sources import held_out_subjects, train_members, training_cases
from medseg.inference.posterior import Head
from medseg.io.atomic import read_table
from medseg.networks.unet import UNet, UNetSettings
from medseg.training.method import Source

CONFIG = """
title: forgetting
sources:
  tumours: [{kind: phantom, settings: {disease: tumour, n_subjects: 4, spacing_mm: 8.0}}]
  ms: [{kind: phantom, settings: {disease: ms, n_subjects: 2, spacing_mm: 8.0}}]
target: {kind: phantom, settings: {disease: tumour, n_subjects: 3, spacing_mm: 8.0}}
arms: [{method: {method: pr}, sources: [tumours]}]
protocol: {preprocess: {spacing_mm: [8.0, 8.0, 8.0]}, members: 3, forgetting: 2}
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ExperimentPlan:
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    path.write_text(CONFIG)
    return load_plan(str(path))


def head(*names: str) -> Head:
    return Head(RegionSettings(names=names))


def constant(value: float) -> UNet:
    """Return a network that answers the same everywhere."""
    network = UNet(UNetSettings(in_channels=2, out_channels=2, widths=(2, 2), bias=True))
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.fill_(value)
    return network.eval()


def test_no_member_is_trained_on_a_held_out_subject(
    plan: ExperimentPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[set[str]] = []

    def train(plan, name, cases, *, member, **_):
        trained.append({case.subject for case in cases})

    monkeypatch.setattr(sources_module, "_train_member", train)
    train_members(plan, "tumours", tmp_path, key="")
    held = held_out_subjects(plan, "tumours")
    (everybody,) = (set(cohort.source.subjects) for cohort in plan.sources["tumours"])
    assert len(held) == 2
    assert trained == [everybody - held] * 3
    assert held_out_subjects(plan, "ms") == frozenset(), "it shares no region with the target"
    free = replace(plan, protocol=replace(plan.protocol, forgetting=0))
    assert held_out_subjects(free, "tumours") == frozenset()


def test_too_few_subjects_to_hold_out_are_refused(plan: ExperimentPlan) -> None:
    many = replace(plan, protocol=replace(plan.protocol, forgetting=4))
    with pytest.raises(DataError, match="at least 5 subjects"):
        held_out_subjects(many, "tumours")


def test_rows_hold_the_score_before_and_after(plan: ExperimentPlan, tmp_path: Path) -> None:
    """A network that marks nothing has DSC 0, one that marks all twice the share of the lesion."""
    where = {"method": "pr", "source": "tumours", "n": 1, "subset": "0", "seed": 0}
    before, after = constant(-5), constant(5)
    source = Source(before, RegionSettings(names=("whole", "core")))
    judge = Forgetting(plan)
    judge.score(where, after, source=source, head=head("core", "whole"), folder=tmp_path / "a")
    rows = read_table(tmp_path / "a" / "forgetting.tsv")
    held = held_out_subjects(plan, "tumours")
    assert {row["subject"] for row in rows} == held
    assert len(rows) == 4
    cases = {
        case.identifier: case
        for case in training_cases(
            plan.sources["tumours"][0], plan, regions=plan.protocol.regions, allow_missing=False
        )
    }
    for row in rows:
        case = cases[row["case"]]
        lesion = float(case.target[("core", "whole").index(row["region"])].sum())
        assert float(row["dsc_before"]) == 0
        brain = float(case.brain.sum())
        assert float(row["dsc"]) == pytest.approx(2 * lesion / (brain + lesion), abs=0.02)
    write_forgetting([tmp_path / "a", tmp_path / "none"], tmp_path, seed=0)
    table = read_table(tmp_path / "forgetting.tsv")
    assert [row["region"] for row in table] == ["core", "whole"]
    for row in table:
        assert float(row["difference_dsc"]) == pytest.approx(float(row["mean_dsc"]))
        assert (row["n_cases"], row["n_cells"]) == ("2", "1")


def test_nothing_is_written_where_nothing_is_shared(plan: ExperimentPlan, tmp_path: Path) -> None:
    source = Source(constant(1), RegionSettings(names=("a", "b")))
    Forgetting(plan).score(
        {"source": "ms"}, constant(1), source=source, head=head("core", "whole"), folder=tmp_path
    )
    assert not list(tmp_path.iterdir())
