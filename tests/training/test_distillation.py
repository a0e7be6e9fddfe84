"""A student of many: on a toy that it can represent it is its teacher."""

import pytest
import torch
from torch import nn

from medseg.data.training_set import Batch
from medseg.networks.convolution import PointwiseConv
from medseg.training.distillation import (
    DistillationObjective,
    DistillationSettings,
    moments,
    posterior_teacher,
)
from medseg.training.learn import learn, student_of
from medseg.training.objective import SegmentationObjective
from medseg.training.transfer import MethodSettings, finetune
from medseg.variational.convert import to_deterministic

MEMBERS = 7


class Labels:
    """An objective of masks that must not be asked."""

    extra = None

    def loss(self, forward, batch, step):
        raise AssertionError


def image_of_two_values():
    values = torch.rand(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.4
    return values.float() * 2 - 1


def linear_members(image):
    """Return members that are logistic in the image, so each value has an answer of its own."""
    draw = torch.randn(MEMBERS, 2, generator=torch.Generator().manual_seed(1))
    return [torch.sigmoid(slope * image + shift) for slope, shift in draw]


def test_the_student_of_a_linear_teacher_is_the_teacher():
    image = image_of_two_values()
    batch = Batch(image, torch.zeros_like(image), torch.ones(2, 1, dtype=torch.bool))
    objective = DistillationObjective(
        DistillationSettings(), teacher=lambda x, step: iter(linear_members(x)), base=Labels()
    )
    student = PointwiseConv(1, 2, bias=True)
    nn.init.zeros_(student.weight)
    nn.init.zeros_(student.bias)
    search = torch.optim.LBFGS(
        student.parameters(), max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure():
        search.zero_grad()
        loss, _ = objective.loss(student, batch, 0)
        loss.backward()
        return loss

    search.step(closure)
    mean, share = student(image).detach().sigmoid().chunk(2, dim=1)
    wanted, between, within = moments(iter(linear_members(image)))
    torch.testing.assert_close(mean, wanted, atol=1e-3, rtol=0)
    torch.testing.assert_close(share, between / (between + within), atol=1e-3, rtol=0)


def test_the_moments_are_those_of_all_members_whatever_the_number_asked():
    generator = torch.Generator().manual_seed(0)
    every = torch.rand(2000, 1, 3, generator=generator) ** 2
    whole = moments(iter(every))
    some = [moments(iter(every[first : first + 2])) for first in range(0, 2000, 2)]
    for index in range(3):
        mean = torch.stack([one[index] for one in some]).mean(0)
        torch.testing.assert_close(mean, whole[index], atol=0.01, rtol=0)
    torch.testing.assert_close(whole[1] + whole[2], whole[0] * (1 - whole[0]), atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def teacher(toy):
    method = MethodSettings(method="gaussian")
    return finetune(toy.cases(), toy.plan(), method, source=toy.source(with_prior=False))[0]


def test_members_are_a_function_of_the_step_and_leave_the_teacher_as_it_is(toy, teacher):
    image = toy.sampler(toy.plan()).batch(0).image
    before = teacher(image)
    members = posterior_teacher(teacher, samples=2, seed=0)
    first, again, other = (torch.stack(list(members(image, step))) for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(teacher(image), before)


def test_a_student_starts_from_its_teachers_mean_weights(toy, teacher):
    student = student_of(teacher, toy.plan()).eval()
    image = toy.sampler(toy.plan()).batch(0).image
    logits = student(image)
    assert logits.shape[1] == 4
    torch.testing.assert_close(logits[:, :2], to_deterministic(teacher).eval()(image))


def test_the_weight_of_the_masks_adds_their_objective(toy, teacher):
    plan = toy.plan()
    student, batch = student_of(teacher, plan), toy.sampler(plan).batch(0)
    base = SegmentationObjective(mode="regions", settings=plan.loss, network=student)
    members = posterior_teacher(teacher, samples=2, seed=0)
    losses = [
        DistillationObjective(
            DistillationSettings(label_weight=weight), teacher=members, base=base
        ).loss(student, batch, 0)[0]
        for weight in (0.0, 0.5)
    ]
    wanted, _ = base.loss(lambda image: student(image)[:, :2], batch, 0)
    torch.testing.assert_close(losses[1] - losses[0], 0.5 * wanted)


def test_a_distillation_ends_with_one_network_of_twice_the_outputs(toy):
    network, result = learn(
        toy.cases(),
        toy.plan(steps=3),
        MethodSettings(method="gaussian"),
        DistillationSettings(samples=2),
        source=toy.source(with_prior=False),
    )
    assert network.settings.out_channels == 4
    assert {"mean_nats", "share_nats"} <= set(result.history[-1])
