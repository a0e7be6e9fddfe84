from dataclasses import dataclass, replace

import pytest
import torch

from medseg.data.regions import RegionSettings
from medseg.data.training_set import Batch, TrainingCase
from medseg.errors import TrainingError
from medseg.training import learn as learning
from medseg.training.learn import learn
from medseg.training.objectives import MoreScans
from medseg.training.rehearsal import RehearsalSettings, Rehearsed, rehearsed_cases
from medseg.training.transfer import MethodSettings, patch_sampler

WANTED = RegionSettings(names=("core", "whole"))


@dataclass
class Numbered:
    """Batches that only say who was asked, and for which."""

    name: str

    def batch(self, step: int) -> Batch:
        return (self.name, step)  # type: ignore[return-value]


def case(known: tuple[bool, ...]) -> TrainingCase:
    n = len(known)
    return TrainingCase(
        identifier="one",
        subject="one",
        image=torch.zeros(1, 2, 2, 2),
        present=torch.ones(1, dtype=torch.bool),
        target=torch.arange(n).view(n, 1, 1, 1).expand(n, 2, 2, 2).float(),
        known=torch.tensor(known),
        brain=torch.ones(2, 2, 2, dtype=torch.bool),
        has_background=False,
    )


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5, 0.85])
def test_each_sampler_is_asked_for_every_batch_once_and_in_order(share: float) -> None:
    mixed = Rehearsed(Numbered("target"), Numbered("source"), share)
    asked = [mixed.batch(step) for step in range(200)]
    for name in ("target", "source"):
        mine = [entry for entry in asked if entry[0] == name]  # type: ignore[index]
        assert mine == [(name, number) for number in range(len(mine))]
    for length in (50, 200):
        of_source = sum(entry[0] == "source" for entry in asked[:length])  # type: ignore[index]
        assert abs(of_source - share * length) <= 1


def test_targets_come_in_the_order_of_the_target() -> None:
    given = RegionSettings(names=("lesion", "whole", "core"))
    (found,) = rehearsed_cases([case((False, True, True))], given=given, wanted=WANTED)
    assert found.target[:, 0, 0, 0].tolist() == [2, 1]
    assert found.known.tolist() == [True, True]


def test_scans_that_know_no_region_of_the_target_are_refused() -> None:
    given = RegionSettings(names=("core", "whole", "lesion"))
    with pytest.raises(TrainingError, match="one"):
        rehearsed_cases([case((False, False, True))], given=given, wanted=WANTED)
    with pytest.raises(TrainingError, match="there are none"):
        rehearsed_cases([], given=WANTED, wanted=WANTED)
    with pytest.raises(TrainingError, match="encoded as the target"):
        rehearsed_cases(
            [case((True, True))], given=replace(WANTED, names=("lesion", "whole")), wanted=WANTED
        )


def test_looks_of_the_target_change_the_sources_patches_alone(toy) -> None:
    plan, own, old = toy.plan(), toy.cases(2), toy.cases(2, seed=1)
    plain, looks = patch_sampler(old, plan), patch_sampler(old, plan, in_looks_of=own)
    for step in range(3):
        as_it_is, changed = plain.batch(step), looks.batch(step)
        assert torch.equal(as_it_is.target, changed.target)
        assert not torch.equal(as_it_is.image, changed.image)


@pytest.mark.parametrize("looks", ["own", "target"])
def test_only_rehearsed_patches_take_other_looks(toy, monkeypatch, looks) -> None:
    plan, own, old = toy.plan(), toy.cases(2), toy.cases(2, seed=1)
    monkeypatch.setattr(learning, "finetune", lambda *_, batches, **__: batches)
    batches = learn(
        own,
        plan,
        MethodSettings(method="pr"),
        RehearsalSettings(looks=looks),
        more=MoreScans(old, plan.regions),
    )
    pixels = batches.source.batch(0).image
    for given, wanted in (((), looks == "own"), (own, looks == "target"), (old, False)):
        other = patch_sampler(old, plan, in_looks_of=given).batch(0).image
        assert torch.equal(pixels, other) == wanted
    assert torch.equal(batches.target.batch(0).image, patch_sampler(own, plan).batch(0).image)
