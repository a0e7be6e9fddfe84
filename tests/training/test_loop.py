"""The loop: what it does to weights, and that stopping it in the middle changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medseg.errors import TrainingError
from medseg.training.loop import learning_rate_factor, parameter_groups, train
from medseg.training.objective import SegmentationObjective
from medseg.training.transfer import MethodSettings, finetune, new_network, train_from_scratch
from medseg.variational.convert import to_variational
from medseg.variational.settings import VariationalSettings

SCENARIOS = ("plain", "fresh head", "l2sp", "gaussian", "dwp", "validated", "while saving")


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def differs(found, wanted) -> bool:
    return any(not torch.equal(found[name], value) for name, value in wanted.items())


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def run(toy, objective=None, *, seed=1, validate=None, **changes):
    plan = toy.plan(seed=seed, **changes)
    network = new_network(plan.architecture, seed=seed)
    objective = objective or SegmentationObjective
    goal = objective(mode="regions", settings=plan.loss, network=network)
    result = train(network, goal, toy.sampler(plan), settings=plan.training, validate=validate)
    return network, result


class Watched(SegmentationObjective):
    """Keeps the weights with which each step begins."""

    def __init__(self, *, mode, settings, network):
        super().__init__(mode=mode, settings=settings, network=network)
        self.network, Watched.seen = network, []

    def loss(self, forward, batch, step):
        assert self.network.training
        self.seen.append({k: v.detach().clone() for k, v in self.network.named_parameters()})
        return super().loss(forward, batch, step)


# ------------------------------------------------------------------------------ killed and resumed


def test_every_scenario_is_killed(toy):
    assert set(toy.KILLED_AT) == set(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_and_resumed_ends_with_the_same_bits(toy, killed, tmp_path, scenario):
    assert (killed / f"{scenario}.exit").read_text() == "-9"
    half_way = toy.checkpoints_in(killed, scenario)
    step = json.loads((half_way.folder / "checkpoint.json").read_text())["step"]
    assert 0 < step < toy.STEPS

    whole = toy.checkpoints_in(tmp_path, scenario)
    network, result = toy.run_scenario(scenario, whole)
    torch.manual_seed(99)
    again, resumed = toy.run_scenario(scenario, half_way)

    assert_same(toy.tensors_of(again), toy.tensors_of(network))
    assert without_seconds(resumed.history) == without_seconds(result.history)
    assert (resumed.steps, resumed.best_score) == (result.steps, result.best_score)
    # Not the weights alone: moments, averages, best weights and inference networks too.
    state, tensors = half_way.load()
    other_state, other_tensors = whole.load()
    assert (state.step, state.best_step) == (other_state.step, other_state.best_step)
    assert_same(tensors, other_tensors)


def test_a_kill_while_saving_leaves_no_litter_once_resumed(toy, killed, tmp_path):
    folder = toy.checkpoints_in(killed, "while saving").folder
    toy.run_scenario("while saving", toy.checkpoints_in(killed, "while saving"))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["checkpoint-9.safetensors", "checkpoint.json"]


def test_the_inference_network_is_trained_and_the_decoder_is_not(toy, tmp_path):
    checkpoints = toy.checkpoints_in(tmp_path, "dwp")
    toy.run_scenario("dwp", checkpoints)
    tensors = checkpoints.load()[1]
    before = toy.source().priors.state_dict()
    changed = {name for name, value in before.items() if differs({0: tensors[f"extra.{name}"]},
                                                                 {0: value})}  # fmt: skip
    assert changed
    assert all(".inference." in name for name in changed)


def test_resumed_at_the_end_trains_no_further(toy, tmp_path, monkeypatch):
    network, _ = toy.run_scenario("plain", toy.checkpoints_in(tmp_path, "plain"))
    monkeypatch.setattr("medseg.data.training_set.PatchSampler.batch", None)
    again, _ = toy.run_scenario("plain", toy.checkpoints_in(tmp_path, "plain"))
    assert_same(toy.tensors_of(again), toy.tensors_of(network))


def test_seconds_go_on_after_a_resume(toy, killed):
    _, result = toy.run_scenario("plain", toy.checkpoints_in(killed, "plain"))
    seconds = [row["seconds"] for row in result.history]
    assert seconds == sorted(seconds)


# ------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("method", ["pr", "gaussian"])
def test_a_seed_decides_everything(toy, method):
    found = []
    for seed, noise in ((1, 0), (1, 7), (2, 0)):
        torch.manual_seed(noise)
        network, _ = finetune(
            toy.cases(),
            toy.plan(seed=seed, steps=3),
            MethodSettings(method=method),
            source=toy.source(with_prior=False),
        )
        found.append(toy.tensors_of(network))
    assert_same(found[1], found[0])
    assert differs(found[2], found[0])


def test_training_leaves_the_global_generator_alone(toy):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    toy.run_scenario("gaussian", None)
    assert torch.equal(torch.rand(3), wanted)


# ------------------------------------------------------------------------------------ what it does


def test_the_loss_falls(toy):
    plan = toy.plan(steps=40, log_every=1)
    _, result = train_from_scratch(toy.cases(), plan)
    losses = [row["loss"] for row in result.history]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert [row["step"] for row in result.history] == list(range(1, 41))


@given(steps=st.integers(1, 50), warm_up_steps=st.integers(0, 60))
def test_the_rate_rises_to_one_and_falls(steps, warm_up_steps):
    rates = [
        learning_rate_factor(step, steps=steps, warm_up_steps=warm_up_steps)
        for step in range(steps)
    ]
    assert all(0 < rate <= 1 for rate in rates)
    peak = min(warm_up_steps, steps)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if warm_up_steps < steps:
        assert rates[warm_up_steps] == 1


def test_the_rate_is_applied(toy):
    _, result = run(toy, log_every=1)
    wanted = [
        1e-2 * learning_rate_factor(step, steps=toy.STEPS, warm_up_steps=2)
        for step in range(toy.STEPS)
    ]
    assert [row["learning_rate"] for row in result.history] == pytest.approx(wanted)


def test_the_first_step_of_adam_is_the_rate(toy):
    # Adam's first step is the sign of the gradient times the rate, here half the peak.
    _, _ = run(toy, Watched, steps=2, weight_decay=0.0)
    first, second = Watched.seen
    moved = torch.cat([(second[k] - first[k]).abs().flatten() for k in first])
    assert float(moved.median()) == pytest.approx(5e-3, rel=1e-2)


def groups_of(toy, network, *, extra=None, fresh=()):
    settings = toy.training(learning_rate=1e-2, fresh_head_factor=3.0, weight_decay=0.1)
    return parameter_groups(network, extra, settings=settings, fresh=fresh)


def test_fresh_parts_learn_faster(toy):
    network = new_network(toy.plan().architecture, seed=0)
    body, head = groups_of(toy, network, fresh=("head",))
    assert {id(p) for p in head["params"]} == {id(p) for p in network.head.parameters()}
    assert head["lr"] == pytest.approx(3 * body["lr"])
    assert len(body["params"]) + len(head["params"]) == len(list(network.parameters()))


def test_deviations_and_inference_networks_do_not_decay(toy):
    network = to_variational(
        new_network(toy.plan().architecture, seed=0), settings=VariationalSettings()
    )
    priors = toy.source().priors
    body, aside = groups_of(toy, network, extra=priors)
    deviations = [p for name, p in network.named_parameters() if name.endswith("log_std")]
    wanted = [*deviations, *priors.trainable_parameters()]
    assert deviations
    assert {id(p) for p in aside["params"]} == {id(p) for p in wanted}
    assert (aside["weight_decay"], body["weight_decay"]) == (0.0, 0.1)


def test_frozen_parameters_are_left_as_they_are(toy):
    class Frozen(SegmentationObjective):
        def __init__(self, *, mode, settings, network):
            super().__init__(mode=mode, settings=settings, network=network)
            network.stem.requires_grad_(False)

    network, _ = run(toy, Frozen)
    start = new_network(toy.plan().architecture, seed=1)
    assert_same(network.stem.state_dict(), start.stem.state_dict())
    assert differs(network.head.state_dict(), start.head.state_dict())


def test_the_average_is_returned(toy):
    last = dict(run(toy, Watched, ema_decay=0.0)[0].named_parameters())
    averaged = dict(run(toy, Watched, ema_decay=0.5)[0].named_parameters())
    weights = [*Watched.seen[1:], last]
    for name, start in Watched.seen[0].items():
        mean = start
        for step, now in enumerate(weights):
            decay = min(0.5, (1 + step) / (10 + step))
            mean = decay * mean + (1 - decay) * now[name]
        torch.testing.assert_close(averaged[name], mean.to(averaged[name]), rtol=1e-5, atol=1e-6)
    assert differs(averaged, last)


# -------------------------------------------------------------------------------------- validation


class Scripted:
    """Gives the scores it was told, and keeps the weights it was asked about."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.seen = list(scores), []

    def __call__(self, network: nn.Module) -> float:
        assert not network.training
        self.seen.append({k: v.detach().clone() for k, v in network.named_parameters()})
        return self.scores[len(self.seen) - 1]


def test_the_best_weights_are_kept(toy):
    judge = Scripted(0.1, 0.9, 0.2, 0.3, 0.4)
    network, result = run(toy, validate=judge, validate_every=2)
    assert len(judge.seen) == 5  # steps 2, 4, 6, 8 and the last, 9
    assert result.best_score == 0.9
    assert_same(dict(network.named_parameters()), judge.seen[1])
    scores = {row["step"]: row["validation_dsc"] for row in result.history
              if "validation_dsc" in row}  # fmt: skip
    assert scores == {2: 0.1, 4: 0.9, 6: 0.2, 8: 0.3, 9: 0.4}


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_what_is_scored_is_what_would_be_returned(toy, ema_decay):
    # The last validation sees the network as a training without validation leaves it.
    judge = Scripted(0.1, 0.2, 0.3, 0.4, 0.5)
    run(toy, validate=judge, validate_every=2, ema_decay=ema_decay)
    wanted, _ = run(toy, ema_decay=ema_decay)
    assert_same(judge.seen[-1], dict(wanted.named_parameters()))


def test_validation_does_not_change_the_training(toy):
    _, plain = run(toy, log_every=1)
    _, judged = run(toy, log_every=1, validate=Scripted(*[0.0] * 9), validate_every=1)
    assert [row["loss"] for row in judged.history] == [row["loss"] for row in plain.history]


def test_no_better_score_stops_the_training(toy):
    judge = Scripted(0.5, 0.6, 0.5, 0.6, 0.7)
    network, result = run(toy, validate=judge, validate_every=1, patience=2)
    assert result.steps == 4
    assert_same(dict(network.named_parameters()), judge.seen[1])


def test_a_failed_validation_gives_the_weights_back(toy):
    def fail(network):
        raise RuntimeError("no disk")

    plan = toy.plan(validate_every=2, ema_decay=0.99)
    network = new_network(plan.architecture, seed=1)
    goal = Watched(mode="regions", settings=plan.loss, network=network)
    with pytest.raises(RuntimeError, match="no disk"):
        train(network, goal, toy.sampler(plan), settings=plan.training, validate=fail)
    run(toy, Watched, steps=toy.STEPS)
    assert_same(dict(network.named_parameters()), Watched.seen[2])


# ------------------------------------------------------------------------------------ what is wrong


class Wrong(SegmentationObjective):
    """A loss that is no number, or one whose gradient is none."""

    kind = "loss"

    def __init__(self, *, mode, settings, network):
        super().__init__(mode=mode, settings=settings, network=network)
        self.network = network

    def loss(self, forward, batch, step):
        loss, terms = super().loss(forward, batch, step)
        if step == 2 and self.kind == "loss":
            return loss * math.nan, terms
        if step == 2:
            loss = loss + (0 * self.network.head.weight.sum()).sqrt()
        return loss, terms


class WrongGradient(Wrong):
    kind = "gradient"


@pytest.mark.parametrize(("objective", "word"), [(Wrong, "loss"), (WrongGradient, "gradient")])
def test_a_loss_that_is_no_number_is_refused(toy, objective, word):
    with pytest.raises(TrainingError, match=f"{word} must be a number, but at step 2 .*nan"):
        run(toy, objective)


def test_a_score_that_is_no_number_is_refused(toy):
    with pytest.raises(TrainingError, match="validation score must be a number, but at step 3"):
        run(toy, validate=Scripted(math.nan), validate_every=3)


def test_another_training_in_the_same_folder_is_refused(toy, killed, tmp_path):
    there: Path = toy.checkpoints_in(killed, "plain").folder
    with pytest.raises(TrainingError, match="data and settings it began with"):
        toy.run_scenario("plain", toy.checkpoints_in(there.parent, "plain", key="another"))
