import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medseg.priors.harvest import harvest
from medseg.variational.convert import to_variational, variational_layers
from medseg.variational.settings import VariationalSettings
from tools.digits.__main__ import main
from tools.digits.learn import new_network, replica, score
from tools.digits.pictures import (
    CLASSES,
    PictureBatches,
    Pictures,
    digits,
    letters,
    side_by_side,
    split_evenly,
)
from tools.digits.plan import PRIORS, QUICK
from tools.digits.report import interval, summary

SIZES = replace(QUICK, widths=(2, 3))


def test_letters_are_pictures_of_the_kind_that_digits_are() -> None:
    drawn, again = letters(60, 12, seed=1), letters(60, 12, seed=1)
    assert torch.equal(drawn.images, again.images)
    assert not torch.equal(drawn.images, letters(60, 12, seed=2).images)
    for pictures in (drawn, digits(12)):
        assert pictures.images.shape[1:] == (1, 12, 12)
        assert -1 <= pictures.images.min() < pictures.images.max() <= 1
        assert set(pictures.labels.tolist()) == set(range(CLASSES))
        # Ink and paper on every one.
        assert (pictures.images.flatten(1).std(dim=1) > 0.2).all()


def test_splits_are_nested_even_and_complete() -> None:
    every = digits(12)
    few, rest = split_evenly(every, 50, seed=3)
    more, _ = split_evenly(every, 100, seed=3)
    assert torch.equal(few.images, more.images[:50])
    assert torch.bincount(few.labels).tolist() == [5] * CLASSES
    assert len(few) + len(rest) == len(every)
    known = {image.numpy().tobytes() for image in every.images}
    split = {image.numpy().tobytes() for image in (*few.images, *rest.images)}
    assert split == known


def test_replicas_side_by_side_compute_what_each_computes_alone() -> None:
    network = new_network(SIZES, seeds=[4, 5, 6]).eval()
    sets = [letters(7, 12, seed=seed) for seed in (7, 8, 9)]
    logits = network(side_by_side(sets).images).view(7, 3, CLASSES)
    together = score(network, sets, samples=1, seed=0)
    for number, pictures in enumerate(sets):
        alone = replica(network, number, SIZES, of=3).eval()
        torch.testing.assert_close(logits[:, number], alone(pictures.images)[..., 0, 0])
        assert score(alone, [pictures], samples=1, seed=0)[0] == pytest.approx(together[number])


def test_a_replica_starts_as_its_seed_says_whoever_stands_beside_it() -> None:
    first, second = (replica(new_network(SIZES, seeds=[s, 5]), 1, SIZES, of=2) for s in (4, 6))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_convolutions_of_three_are_variational_and_harvested() -> None:
    network = new_network(SIZES, seeds=[4, 5])
    twin = to_variational(network, settings=VariationalSettings())
    assert list(variational_layers(twin)) == ["conv1", "conv2"]
    kernels = harvest([replica(network, i, SIZES, of=2) for i in range(2)])
    assert kernels.layer_names == ("conv1", "conv2")
    assert len(kernels) == 2 * (2 + 2 * 3)


def test_batches_keep_pictures_with_their_labels() -> None:
    # Each picture is filled with its label.
    labels = torch.arange(30) % CLASSES
    filled = Pictures(labels.float()[:, None, None, None].expand(-1, 1, 4, 4), labels)
    batch = PictureBatches([filled, filled], 8, [0, 1]).batch(3)
    classes = batch.target[..., 0, 0].argmax(1).view(8, 2)
    assert torch.equal(batch.image[:, :, 0, 0], classes.float())
    assert not torch.equal(classes[:, 0], classes[:, 1])


def test_interval_and_pairs_are_those_of_students_t() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert (found["mean"], found["n"]) == (2.0, 3)
    assert found["high"] - found["mean"] == pytest.approx(4.3026527 / math.sqrt(3))
    common = {"n": 50, "init": "prior", "beta": 1.0}
    rows = [
        {**common, "prior": prior, "seed": seed, "accuracy": base + 0.1 * seed}
        for prior, base in (("vae", 0.5), ("none", 0.4))
        for seed in (0, 1, 2)
    ]
    pair = summary(rows)[1]["dwp_minus_this"]
    assert [pair[name] for name in ("mean", "low", "high")] == pytest.approx([0.1] * 3)


def test_the_tool_measures_every_arm_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tmp_path), "--quick", "--seeds", "0", "1"]
    main(command)
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "digits.json").read_text(encoding="utf-8"))
    arms = {(row["n"], row["prior"], row["init"]) for row in found["rows"]}
    assert {(n, prior, "prior") for n in (20, 40) for prior in PRIORS} <= arms
    assert {(20, prior, init) for prior in PRIORS for init in ("source", "xavier")} <= arms
    assert all(0 <= row["accuracy"] <= 1 for row in found["rows"])
    assert all(row["test_pictures"] == 1797 - row["n"] for row in found["rows"])
    assert all(name in text for name in PRIORS.values())
    assert (tmp_path / "digits.png").stat().st_size > 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/*.json")}
    main([*command, "--report"])
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert capsys.readouterr().out == text
