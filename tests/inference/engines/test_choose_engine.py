"""The choice of an engine: the fastest that agrees, never one that does not, remembered."""

import json
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medseg.data.regions import RegionSettings
from medseg.errors import ConfigError
from medseg.inference.engines import auto
from medseg.inference.engines.auto import EAGER, choose_engine, region_masks
from medseg.inference.engines.engine import EngineChoice
from medseg.networks.unet import UNet
from medseg.seeding import torch_generator

TORCH = EngineChoice(name="torch", device="cpu")
OPENVINO, ONNX = EngineChoice(name="openvino"), EngineChoice(name="onnx")
INT8 = EngineChoice(name="openvino", precision="int8")
REGIONS = RegionSettings(names=("core", "whole"))
DECODE = region_masks(REGIONS)
#: Seconds of a run, by a clock of the tests' own.
EAGER_SECONDS = 10.0


@pytest.fixture
def examples() -> list[Tensor]:
    generator = torch_generator(0, "examples")
    return [torch.randn(1, 2, 8, 8, side, generator=generator) for side in (4, 16, 8)]


class Bench:
    """Engines whose speed and faults are known, on a clock that only they move."""

    def __init__(self, network: UNet) -> None:
        self.network, self.now, self.made = network, 0.0, []
        self.seconds = {TORCH: 6.0, OPENVINO: 3.0, ONNX: 20.0, INT8: 1.0}
        self.faults: dict[EngineChoice, Callable[[Tensor], Tensor]] = {}
        self.missing: dict[EngineChoice, Exception] = {}

    def perf_counter(self) -> float:
        return self.now

    def make(self, choice, network, *, cache=None, calibration=None):
        self.made.append(choice)
        self.calibrated = calibration is not None
        if choice in self.missing:
            raise self.missing[choice]
        fault = self.faults.get(choice, lambda logits: logits)
        seconds = EAGER_SECONDS if choice == EAGER else self.seconds[choice]

        def engine(images: Tensor) -> Tensor:
            self.now += seconds
            with torch.no_grad():
                return fault(network(images))

        return engine


@pytest.fixture
def bench(network: UNet, monkeypatch) -> Bench:
    bench = Bench(network)

    class Eager:
        device = torch.device("cpu")

        def __init__(self, network: UNet) -> None:
            self.run = bench.make(EAGER, network)

        def __call__(self, images: Tensor) -> Tensor:
            return self.run(images)

    monkeypatch.setattr(auto, "make_engine", bench.make)
    monkeypatch.setattr(auto, "EagerEngine", Eager)
    monkeypatch.setattr(auto, "time", bench)
    return bench


def choose(bench: Bench, examples, candidates=(TORCH, OPENVINO, ONNX), **options):
    return choose_engine(
        bench.network, examples=examples, decode=DECODE, candidates=candidates, **options
    )


def verdict(chosen: auto.ChosenEngine, choice: EngineChoice) -> str:
    return next(trial.verdict for trial in chosen.trials if trial.choice == choice)


def test_the_fastest_that_agrees_is_chosen(bench, examples) -> None:
    chosen = choose(bench, examples)
    assert chosen.choice == OPENVINO
    assert verdict(chosen, OPENVINO).startswith("chosen: 3 s")
    assert verdict(chosen, TORCH) == "slower than openvino float32: 6 s, Dice 1.0000"
    assert {trial.choice for trial in chosen.trials} == {EAGER, TORCH, OPENVINO, ONNX}


@pytest.mark.parametrize(
    "fault",
    [
        lambda logits: logits + 0.2,
        lambda logits: -logits,
        lambda logits: torch.roll(logits, 1, dims=-1),
        lambda logits: logits.flip(1),
        lambda logits: logits * torch.nan,
        lambda logits: torch.full_like(logits, -9.0),
    ],
    ids=["shifted", "negated", "moved", "regions swapped", "nan", "empty"],
)
def test_a_wrong_engine_is_never_chosen(bench, examples, fault, caplog) -> None:
    bench.faults[OPENVINO] = fault
    bench.seconds[OPENVINO] = 0.001
    with caplog.at_level(logging.INFO):
        assert choose(bench, examples).choice == TORCH
    assert "openvino float32 refused" in caplog.text or "openvino float32 cannot" in caplog.text


def test_one_wrong_region_is_enough_to_be_refused(bench, examples) -> None:
    bench.faults[OPENVINO] = lambda logits: logits + torch.tensor([0.0, 0.5])[:, None, None, None]
    chosen = choose(bench, examples)
    assert chosen.choice == TORCH
    assert "refused" in verdict(chosen, OPENVINO)


def test_where_none_agrees_eager_is_chosen(bench, examples) -> None:
    bench.faults = {choice: torch.neg for choice in (TORCH, OPENVINO, ONNX)}
    chosen = choose(bench, examples)
    assert chosen.choice == EAGER
    assert chosen.engine.device.type == "cpu"


def test_where_all_are_slower_eager_is_chosen(bench, examples) -> None:
    bench.seconds = dict.fromkeys(bench.seconds, 11.0)
    assert choose(bench, examples).choice == EAGER


def test_what_is_missing_or_breaks_is_told_in_words(bench, examples, caplog) -> None:
    bench.missing[OPENVINO] = ConfigError("no openvino", hint="Install it.")
    bench.missing[ONNX] = RuntimeError("opset 17 is not supported")
    with caplog.at_level(logging.INFO):
        assert choose(bench, examples).choice == TORCH
    assert "engine openvino float32 cannot be had: no openvino Hint: Install it." in caplog.text
    assert "engine onnx float32 failed: RuntimeError: opset 17" in caplog.text


def test_int8_is_tried_only_where_allowed_and_may_differ_more(bench, examples) -> None:
    candidates = (TORCH, INT8)
    assert "int8 was not allowed" in verdict(choose(bench, examples, candidates), INT8)
    assert INT8 not in bench.made
    assert choose(bench, examples, candidates, allow_int8=True).choice == INT8
    # Right in all but a few of a thousand voxels.
    bench.faults[INT8] = bench.faults[TORCH] = lambda logits: logits + 0.01 * logits.std()
    least = {"float32": 0.9999, "int8": 0.98}
    chosen = choose(bench, examples, candidates, allow_int8=True, least_dice=least)
    assert chosen.choice == INT8
    assert "refused" in verdict(chosen, TORCH)


def test_masks_that_are_all_empty_prove_nothing(bench, examples, tmp_path, caplog) -> None:
    with torch.no_grad():
        bench.network.head.weight.zero_()
    chosen = choose(bench, examples, cache=tmp_path)
    assert chosen.choice == EAGER
    assert "nothing" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_choice_is_remembered_for_this_network_machine_and_question(
    bench, examples, tmp_path, monkeypatch
) -> None:
    first = choose(bench, examples, cache=tmp_path)
    bench.made.clear()
    again = choose(bench, examples, cache=tmp_path)
    assert (again.choice, again.trials) == (first.choice, first.trials)
    assert bench.made == [EAGER, OPENVINO]
    for change in ("network", "machine", "versions", "candidates"):
        bench.made.clear()
        candidates = (TORCH, OPENVINO, ONNX)
        with monkeypatch.context() as patch:
            if change == "network":
                with torch.no_grad():
                    bench.network.head.weight *= 1.1
            elif change == "machine":
                patch.setattr(auto, "describe_machine", lambda device: {"processor": "other"})
            elif change == "versions":
                patch.setattr(auto, "versions", lambda: {"torch": "other"})
            else:
                candidates = (OPENVINO, TORCH)
            choose(bench, examples, candidates, cache=tmp_path)
        assert EAGER in bench.made, change


def test_a_remembered_int8_engine_is_never_calibrated_anew(bench, examples, tmp_path) -> None:
    """It would be another one than that whose masks were compared."""
    assert choose(bench, examples, (INT8,), allow_int8=True, cache=tmp_path).choice == INT8
    assert bench.calibrated
    choose(bench, examples, (INT8,), allow_int8=True, cache=tmp_path)
    assert not bench.calibrated


def test_what_is_kept_can_be_read_by_people(bench, examples, tmp_path) -> None:
    choose(bench, examples, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["choice"]["name"] == "openvino"
    assert record["machine"]["processor"]
    assert [trial["seconds"] for trial in record["trials"]] == [10.0, 6.0, 3.0, 20.0]


@pytest.mark.parametrize("content", ["", "{}", '{"choice": {"name": "abacus"}, "trials": []}'])
def test_a_damaged_record_is_measured_again(bench, examples, tmp_path, content) -> None:
    choose(bench, examples, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    assert choose(bench, examples, cache=tmp_path).choice == OPENVINO
    assert json.loads(path.read_text())["choice"]["name"] == "openvino"


def test_an_engine_that_is_gone_is_chosen_again(bench, examples, tmp_path) -> None:
    choose(bench, examples, cache=tmp_path)
    bench.missing[OPENVINO] = ConfigError("gone")
    assert choose(bench, examples, cache=tmp_path).choice == TORCH


def test_a_folder_that_cannot_be_written_to_is_done_without(bench, examples, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert choose(bench, examples, cache=tmp_path / "file").choice == OPENVINO


def test_examples_are_needed(bench) -> None:
    with pytest.raises(ConfigError, match="examples"):
        choose(bench, [])


def test_classes_are_decided_by_the_most_probable() -> None:
    masks = region_masks(RegionSettings(mode="classes", names=("a", "b")))
    logits = torch.tensor([[0.0, 9.0], [1.0, 0.0], [0.5, 0.0]]).reshape(1, 3, 2, 1)
    assert masks(logits).flatten(2).tolist() == [[[True, False], [False, False]]]


def test_engines_that_are_installed_are_chosen_from(network: UNet, examples, tmp_path) -> None:
    """Nothing replaced: whatever wins agrees, and comes back the second time."""
    first = choose_engine(network, examples=examples, decode=DECODE, cache=tmp_path)
    again = choose_engine(network, examples=examples, decode=DECODE, cache=tmp_path)
    assert again.choice == first.choice
    for images in examples:
        torch.testing.assert_close(
            again.engine(images), network(images).detach(), rtol=1e-3, atol=1e-3
        )
