"""Members of an arm: their seeds and starts, and that none is trained twice."""

from pathlib import Path

import pytest
from torch import nn

from medseg.config.build import load_arm, load_plan
from medseg.data.regions import RegionSettings
from medseg.errors import ConfigError
from medseg.experiment import cell as cell_module
from medseg.experiment.cell import Cell, CellData, CellTraining
from medseg.inference.ensemble import members_of
from medseg.training.loop import TrainingResult
from medseg.training.method import Source

CONFIG = """
title: members
sources: {made: [{kind: phantom, settings: {disease: tumour, n_subjects: 2, spacing_mm: 8.0}}]}
target: {kind: phantom, settings: {disease: tumour, n_subjects: 3, spacing_mm: 8.0}}
arms:
  - {method: {method: pr}, sources: [made]}
  - {method: {method: pr, members: 3}, sources: [made]}
  - {method: {method: wise, members: 2}, sources: [made]}
  - {method: {method: l2sp}, sources: [made]}
"""


def linear(weight: float) -> nn.Module:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return layer


def test_members_are_shared_by_the_arms_that_train_them_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    plan, calls = load_plan(str(tmp_path / "c.yaml")), []

    def learned(cases, training, method, objective, *, source, **_):
        calls.append((method.method, training.seed, source.network))
        return linear(len(calls)), TrainingResult([{"step": 1.0}], 1, None)

    monkeypatch.setattr(cell_module, "learn", learned)
    monkeypatch.setattr(cell_module, "after_training", lambda network, *_, **__: network)
    networks = [linear(-1), linear(-2)]
    source = Source(networks[0], RegionSettings(names=("core",)), networks=networks)
    training, found = CellTraining(plan, tmp_path), []
    for arm in plan.arms:
        cell = Cell(arm.label, "made", 1, "0")
        found.append(training.network(cell, CellData([], []), arm, source=source)[0])
    one, three, wise, other = (members_of(network) for network in found)
    assert [call[0] for call in calls] == ["pr", "pr", "pr", "l2sp"]
    assert three[:1] == one
    assert wise == three[:2]
    assert other != one
    assert calls[0][1] == calls[3][1] == training.training_plan(cell).seed
    assert len({seed for _, seed, _ in calls[:3]}) == 3
    assert [call[2] for call in calls[:3]] == [networks[0], networks[1], networks[0]]
    assert (tmp_path / "histories" / "pr_x3_made_n1_0_member2.tsv").is_file()


def test_members_start_from_the_network_at_hand() -> None:
    networks = [linear(k) for k in range(3)]
    source = Source(networks[1], RegionSettings(names=("core",)), networks=networks)
    assert [networks.index(source.member(k).network) for k in range(4)] == [1, 2, 0, 1]
    alone = Source(networks[1], RegionSettings(names=("core",)))
    assert alone.member(2).network is networks[1]


def test_several_members_are_no_student() -> None:
    with pytest.raises(ConfigError, match="distillation gives one network"):
        load_arm("gaussian", ["members=2"], objective="distillation")
    with pytest.raises(ConfigError, match=r"cannot go back to it, but wise_share is 0\.5"):
        load_arm("gaussian", ["wise_share=0.5"], objective="distillation")
    assert load_arm("gaussian", ["wise_share=0"], objective="distillation").distils
    assert load_arm("gaussian", ["members=2"]).label == "gaussian_x2"
