"""Checkpoints: whole or refused, and never a pickle."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from medseg.errors import TrainingError
from medseg.training.checkpoint import (
    Checkpoints,
    TrainingState,
    load_module,
    load_optimiser,
    module_tensors,
    optimiser_tensors,
)

TENSORS = {"network.weight": torch.arange(6.0).view(2, 3), "ema.weight": torch.ones(2)}


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(folder=tmp_path / "state", key="k")
    state = TrainingState(step=3, best_score=0.1 + 0.2, best_step=2, history=[{"loss": 1 / 3}])
    checkpoints.save(state, TENSORS)
    return checkpoints


def test_what_is_saved_comes_back_to_the_last_bit(saved):
    state, tensors = saved.load()
    wanted = TrainingState(step=3, best_score=0.1 + 0.2, best_step=2, history=[{"loss": 1 / 3}])
    assert state == wanted
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_a_training_without_validation_has_no_best_score(tmp_path):
    checkpoints = Checkpoints(folder=tmp_path, key="k")
    checkpoints.save(TrainingState(step=1), TENSORS)
    assert json.loads((tmp_path / "checkpoint.json").read_text())["best_score"] is None
    assert checkpoints.load()[0] == TrainingState(step=1)


def test_only_the_newest_state_is_kept(saved):
    saved.save(TrainingState(step=6), {"only": torch.zeros(1)})
    names = sorted(path.name for path in saved.folder.iterdir())
    assert names == ["checkpoint-6.safetensors", "checkpoint.json"]
    assert saved.load()[0].step == 6


def test_nothing_is_pickled(toy, killed):
    files = [path for path in killed.rglob("*") if path.is_file() and path.suffix != ".exit"]
    whole = [path for path in files if not path.name.startswith(".")]
    assert {path.suffix for path in whole} == {".json", ".safetensors"}
    for path in whole:
        assert path.read_bytes()[:2] != b"\x80\x02"
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            with safe_open(path, "pt") as opened:
                assert list(opened.keys())


def test_nothing_saved_is_nothing_to_resume(tmp_path):
    assert Checkpoints(folder=tmp_path / "new", key="k").load() is None


def test_a_state_of_another_training_is_refused(saved):
    other = Checkpoints(folder=saved.folder, key="other")
    with pytest.raises(TrainingError, match="data and settings it began with") as caught:
        other.load()
    assert "Give another output folder" in str(caught.value.hint)


def test_a_state_of_other_cases_is_left_and_said(saved, caplog):
    other = replace(saved, data="changed")
    assert other.load() is None
    assert "starts anew" in caplog.text
    other.save(TrainingState(step=1), TENSORS)
    assert other.load()[0].step == 1
    assert saved.load() is None


def test_damaged_tensors_are_refused(saved):
    path = saved.folder / "checkpoint-3.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"checkpoint-3\.safetensors is not"):
        saved.load()


def test_lost_tensors_are_refused(saved):
    (saved.folder / "checkpoint-3.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"checkpoint-3\.safetensors is not"):
        saved.load()


def test_damaged_json_is_refused(saved):
    path = saved.folder / "checkpoint.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(TrainingError, match=r"described in JSON, but .*checkpoint\.json"):
        saved.load()


def test_a_new_start_may_be_asked_for(toy, killed):
    anew = toy.checkpoints_in(killed, "plain", resume=False)
    assert anew.load() is None
    network, result = toy.run_scenario("plain", anew)
    wanted, _ = toy.run_scenario("plain", None)
    found = network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.state_dict().items())
    assert result.history[0]["step"] == 2


def test_clear_removes_all_of_it(saved):
    (saved.folder / ".ab12.part-checkpoint-6.safetensors").write_bytes(b"half")
    saved.clear()
    assert list(saved.folder.iterdir()) == []
    saved.clear()


def test_modules_come_back_by_prefix():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    tensors = {**module_tensors("a", first), **module_tensors("b", None)}
    assert set(tensors) == {"a.weight", "a.bias"}
    load_module("a", second, tensors)
    load_module("b", None, tensors)
    assert torch.equal(second.weight, first.weight)


def stepped(parameter, gradients, *, interrupted_at):
    """Return the parameter after Adam, whose state goes through names and back on the way."""
    parameter = nn.Parameter(parameter.detach().clone())
    scalar = nn.Parameter(torch.tensor(1.0))
    optimiser = torch.optim.AdamW([parameter, scalar], lr=0.1, fused=True)
    for step, gradient in enumerate(gradients):
        if step == interrupted_at:
            kept = {
                name: value.clone(memory_format=torch.contiguous_format)
                for name, value in optimiser_tensors(optimiser).items()
            }
            optimiser = torch.optim.AdamW([parameter, scalar], lr=0.1, fused=True)
            load_optimiser(optimiser, kept)
        parameter.grad = gradient.clone(memory_format=torch.preserve_format)
        scalar.grad = gradient.sum()
        optimiser.step()
    assert {float(state["step"]) for state in optimiser.state.values()} == {len(gradients)}
    return torch.cat([parameter.detach().flatten(), scalar.detach()[None]])


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_fused_optimiser_goes_on_exactly(order):
    generator = torch.Generator().manual_seed(0)
    start, *gradients = (
        torch.randn(3, 4, 2, 2, generator=generator).contiguous(memory_format=order)
        for _ in range(5)
    )
    wanted = stepped(start, gradients, interrupted_at=None)
    assert torch.equal(stepped(start, gradients, interrupted_at=2), wanted)
