"""Objectives that learn from more than the target's masks: their limits."""

import math
from dataclasses import replace

import pytest
import torch

from medseg.errors import TrainingError
from medseg.training.co_learning import CoLearningNetwork, CoLearningObjective, CoLearningSettings
from medseg.training.distillation import DistillationSettings
from medseg.training.learn import learn
from medseg.training.objective import SegmentationObjective
from medseg.training.objectives import (
    MoreScans,
    in_turns,
    widened,
    with_fewer_outputs,
    with_more_outputs,
    without_masks,
)
from medseg.training.privileged import PrivilegedObjective, PrivilegedSettings, hide
from medseg.training.sharing import (
    HardSharingSettings,
    SharingNetwork,
    SharingObjective,
    SoftSharingSettings,
)
from medseg.training.transfer import MethodSettings, finetune, new_network

CHANNELS = ("flair", "t1c")


@pytest.fixture
def network(toy):
    return new_network(toy.plan().architecture, seed=0)


@pytest.fixture(scope="module")
def batch(toy):
    return toy.sampler(toy.plan()).batch(0)


def plain(toy, network):
    return SegmentationObjective(mode="regions", settings=toy.plan().loss, network=network)


def both_diseases(toy):
    """Return the toy's cases, and others that know one more region and not the toy's."""
    regions = toy.regions("core", "whole", "lesion")
    others = [
        replace(
            case,
            identifier=f"other {case.identifier}",
            target=torch.cat([torch.zeros_like(case.target), case.target[1:]]),
            known=torch.tensor([False, False, True]),
        )
        for case in toy.cases(3, seed=5)
    ]
    return MoreScans(others, regions)


def unlabelled(toy):
    return MoreScans([without_masks(case) for case in toy.cases(3, seed=5)], toy.regions())


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)


def same(first, second):
    return all(
        (a is None and b is None) or torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


def test_without_weight_co_learning_is_the_plain_objective(toy, network, batch):
    pair = CoLearningNetwork(network, seed=1)
    objective = CoLearningObjective(plain(toy, network), CoLearningSettings(weight=0.0))
    found, terms = objective.loss(pair, batch, 0)
    wanted, _ = plain(toy, network).loss(network, batch, 0)
    assert torch.equal(found, wanted)
    assert same(gradients(found, network), gradients(wanted, network))
    assert terms["reconstruction"] > 0


def test_a_scan_without_mask_teaches_the_way_down_alone(toy, network, batch):
    pair = CoLearningNetwork(network, seed=1)
    objective = CoLearningObjective(plain(toy, network), CoLearningSettings(weight=0.5))
    bare = replace(batch, known=torch.zeros_like(batch.known))
    loss, terms = objective.loss(pair, bare, 0)
    assert float(loss.detach()) == pytest.approx(0.5 * terms["reconstruction"])
    for name, gradient in zip(
        dict(network.named_parameters()), gradients(loss, network), strict=True
    ):
        taught = gradient is not None and bool(gradient.any())
        assert taught == name.startswith(("stem", "encoder")), name


def test_the_reconstruction_knows_only_the_deepest_features(toy, network, batch):
    pair = CoLearningNetwork(network, seed=1).eval()
    levels = network.encode(batch.image)
    network.encode = lambda image: [torch.randn_like(levels[0]), levels[1]]
    assert torch.equal(pair(batch.image)[1], pair(batch.image)[1])


def test_without_weight_a_privileged_channel_is_just_hidden(toy, network, batch):
    settings = PrivilegedSettings(channels=("t1c",), weight=0.0)
    objective = PrivilegedObjective(
        plain(toy, network), settings, channels=[1], teacher=None, seed=0
    )
    found, _ = objective.loss(network, batch, 0)
    seen = replace(batch, image=hide(batch.image, [1]))
    assert not seen.image[:, 1].any()
    assert torch.equal(seen.image[:, 0], batch.image[:, 0])
    wanted, _ = plain(toy, network).loss(network, seen, 0)
    assert torch.equal(found, wanted)


def test_a_student_that_agrees_with_its_teacher_loses_nothing(toy, network, batch):
    settings = PrivilegedSettings(channels=("t1c",), weight=2.0)
    hidden = PrivilegedObjective(
        plain(toy, network),
        settings,
        channels=[1],
        teacher=lambda image: network(hide(image, [1])),
        seed=0,
    )
    loss, terms = hidden.loss(network, batch, 0)
    wanted, _ = plain(toy, network).loss(network, replace(batch, image=hide(batch.image, [1])), 0)
    assert terms["teacher_gap"] == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(loss, wanted)
    own = PrivilegedObjective(plain(toy, network), settings, channels=[1], teacher=None, seed=0)
    assert own.loss(network, batch, 0)[1]["teacher_gap"] > 1e-6


def test_half_the_patches_keep_the_channel():
    image = torch.ones(2000, 2, 2, 2)
    chance = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    seen = hide(image, [1], chance < 0.5)
    assert seen[:, 0].all()
    assert 900 < int(seen[:, 1, 0, 0].sum()) < 1100


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_bodies_that_are_alike_are_one(toy, network, strength):
    more = both_diseases(toy)
    wide = with_more_outputs(network, 3, seed=0)
    cases = in_turns([widened(c, toy.regions(), more.regions) for c in toy.cases()], more.cases)
    sampler = toy.PatchSampler(cases, patch=toy.plan().patch, augment=toy.plan().augment, seed=0)
    batches = (sampler.batch(step) for step in range(9))
    batch = next(one for one in batches if one.known[:, 2].sum() == 1)
    found = {}
    for divided in (False, True):
        both = SharingNetwork(wide, divided=divided)
        objective = SharingObjective(
            plain(toy, wide),
            network=both,
            regions=2,
            strength=strength if divided else math.inf,
        )
        loss, _ = objective.loss(both, batch, 0)
        found[divided] = loss, torch.autograd.grad(loss, list(wide.parameters()))
    torch.testing.assert_close(found[True], found[False])


def trained(toy, objective, more, **changes):
    plan = toy.plan(**changes)
    return learn(toy.cases(), plan, MethodSettings(method="ri"), objective, more=more)[0]


def test_infinite_strength_is_hard_sharing_and_none_lets_bodies_part(toy):
    more = both_diseases(toy)
    hard = toy.tensors_of(trained(toy, HardSharingSettings(), more))
    infinite = toy.tensors_of(trained(toy, SoftSharingSettings(strength=math.inf), more))
    assert all(torch.equal(hard[name], infinite[name]) for name in hard)
    weak = toy.tensors_of(trained(toy, SoftSharingSettings(strength=0.0), more))
    assert not all(torch.equal(hard[name], weak[name]) for name in hard)


def test_the_penalty_is_the_squared_distance_of_the_bodies(toy, network):
    both = SharingNetwork(network, divided=True)
    with torch.no_grad():
        for half in both.halves:
            half.normal_(generator=torch.Generator().manual_seed(0))
    first = both.first()
    shared = dict(network.named_parameters())
    distance = sum(
        float((2 * (value - shared[name])).detach().square().sum())
        for name, value in first.named_parameters()
    )
    assert float(both.squared_distance().detach()) == pytest.approx(distance, rel=1e-5)
    image = torch.randn(3, 2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    mixed = both(image, torch.tensor([False, True, False]))
    torch.testing.assert_close(mixed[[0, 2]], first(image[[0, 2]]))
    assert float((mixed[1:2] - first(image[1:2])).detach().abs().max()) > 1e-3


def test_more_outputs_and_fewer_again_change_nothing(network):
    image = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    wide = with_more_outputs(network, 5, seed=0)
    torch.testing.assert_close(wide(image)[:, :2], network(image))
    torch.testing.assert_close(with_fewer_outputs(wide, 2)(image), network(image))
    assert wide.stem is network.stem


def test_what_another_disease_knows_leaves_the_first_ones_regions_alone(toy):
    case = widened(toy.cases()[0], toy.regions(), toy.regions("core", "whole", "lesion"))
    assert case.known.tolist() == [True, True, False]
    assert case.target.shape[0] == 3


def test_without_an_objective_learning_is_fine_tuning(toy):
    for method in ("ri", "pr"):
        chosen = MethodSettings(method=method)
        source = None if method == "ri" else toy.source(with_prior=False)
        found = toy.tensors_of(learn(toy.cases(), toy.plan(), chosen, source=source)[0])
        wanted = toy.tensors_of(finetune(toy.cases(), toy.plan(), chosen, source=source)[0])
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_trained_teacher_of_no_weight_is_not_trained(toy):
    nothing = PrivilegedSettings(channels=("t1c",), weight=0.0)
    bare = [replace(case, image=hide(case.image[None], [1])[0]) for case in toy.cases()]
    method, plan = MethodSettings(method="ri"), toy.plan()
    plan = replace(plan, augment=replace(plan.augment, enabled=False))
    found = toy.tensors_of(learn(toy.cases(), plan, method, nothing, channels=CHANNELS)[0])
    wanted = toy.tensors_of(finetune(bare, plan, method)[0])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("method", "objective", "words"),
    [
        ("ri", CoLearningSettings(), "scans"),
        ("ri", HardSharingSettings(), "scans"),
        ("ri", PrivilegedSettings(channels=("t9",)), "t9"),
        ("ri", PrivilegedSettings(channels=CHANNELS), "not all"),
        ("ri", DistillationSettings(), "variational"),
        ("dwp", CoLearningSettings(), "variational"),
        ("pr", PrivilegedSettings(channels=("t1c",), teacher="self"), "source"),
    ],
)
def test_what_is_missing_is_named(toy, method, objective, words):
    with pytest.raises(TrainingError, match=words):
        learn(toy.cases(), toy.plan(), MethodSettings(method=method), objective, channels=CHANNELS)


def test_the_methods_go_together_with_the_objectives(toy):
    source = toy.source(with_prior=False)
    for method in ("pr", "wise", "l2sp", "prf"):
        network, result = learn(
            toy.cases(),
            toy.plan(steps=2),
            MethodSettings(method=method),
            CoLearningSettings(),
            source=source,
            more=unlabelled(toy),
        )
        assert result.steps == 2
        assert type(network).__name__ == "UNet"
