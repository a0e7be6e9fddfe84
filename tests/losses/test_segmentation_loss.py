"""Closed forms, MONAI as oracle, and the laws of what is not known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from medseg.errors import ShapeError
from medseg.losses.segmentation import (
    LossSettings,
    segmentation_loss,
    soft_dice_loss,
    voxel_cross_entropy,
)
from medseg.seeding import seeded_torch

#: Where annotations are enforced, jaxtyping may speak first.
REFUSALS = (ShapeError, TypeCheckError)
MODES = ("regions", "classes")


def case(mode: str, *, batch: int = 2, n: int = 3, size=(4, 5, 6), seed: int = 0):
    with seeded_torch(seed, "loss"):
        logits = 2 * torch.randn(batch, n, *size)
        if mode == "classes":
            target = F.one_hot(torch.randint(n, (batch, *size)), n).movedim(-1, 1).float()
        else:
            target = (torch.rand(batch, n, *size) > 0.7).float()
    return logits, target, torch.ones(batch, n, dtype=torch.bool)


def both_terms(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    of_regions = (logits, target, known, "regions")
    return voxel_cross_entropy(*of_regions) + soft_dice_loss(*of_regions)


def test_cross_entropy_of_regions_is_torch_closed_form():
    logits, target, known = case("regions")
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    ours = voxel_cross_entropy(logits, target, known, "regions")
    torch.testing.assert_close(ours, expected.mean((1, 2, 3, 4)))


def test_cross_entropy_of_classes_is_torch_closed_form():
    logits, target, known = case("classes")
    expected = F.cross_entropy(logits, target.argmax(1), reduction="none")
    ours = voxel_cross_entropy(logits, target, known, "classes")
    torch.testing.assert_close(ours, expected.mean((1, 2, 3)))


@pytest.mark.parametrize(("mode", "nats"), [("regions", math.log(2)), ("classes", math.log(3))])
def test_ignorance_costs_log_of_the_choices(mode, nats):
    logits, target, known = case(mode)
    ours = voxel_cross_entropy(torch.zeros_like(logits), target, known, mode)
    torch.testing.assert_close(ours, torch.full((2,), nats))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("smoothing", [1e-5, 1.0])
def test_dice_is_monai_dice(mode, smoothing):
    logits, target, known = case(mode)
    theirs = DiceLoss(
        sigmoid=mode == "regions",
        softmax=mode == "classes",
        include_background=mode == "regions",
        smooth_nr=smoothing,
        smooth_dr=smoothing,
        reduction="none",
    )(logits, target)
    ours = soft_dice_loss(logits, target, known, mode, smoothing_voxels=smoothing)
    torch.testing.assert_close(ours, theirs.flatten(1).mean(1))


@pytest.mark.parametrize("mode", MODES)
def test_the_sum_is_monai_dice_ce(mode):
    # Of several sigmoid channels theirs takes the cross-entropy by softmax, so one is compared.
    logits, target, known = case(mode, n=1 if mode == "regions" else 3)
    theirs = DiceCELoss(
        sigmoid=mode == "regions",
        softmax=mode == "classes",
        include_background=True,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
        lambda_dice=0.3,
        lambda_ce=0.7,
    )
    settings = LossSettings(cross_entropy=0.7, dice=0.3, dice_smoothing_voxels=1e-5)
    ours, terms = segmentation_loss(logits, target, known, mode=mode, settings=settings)
    if mode == "classes":
        # Theirs counts the background in the Dice term; ours leaves it out.
        theirs.dice.include_background = False
    torch.testing.assert_close(ours, theirs(logits, target))
    assert set(terms) == {"cross_entropy_nats", "dice"}
    torch.testing.assert_close(ours, 0.7 * terms["cross_entropy_nats"] + 0.3 * terms["dice"])


@pytest.mark.parametrize("mode", MODES)
def test_a_sure_and_right_answer_costs_nothing(mode):
    _, target, known = case(mode)
    loss, _ = segmentation_loss(
        40 * (2 * target - 1), target, known, mode=mode, settings=LossSettings()
    )
    assert abs(float(loss)) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_nothing_there_and_nothing_found_costs_nothing(mode):
    target = torch.zeros(1, 2, 4, 4)
    if mode == "classes":
        target[:, 0] = 1
    logits = 40 * (2 * target - 1)
    known = torch.ones(1, 2, dtype=torch.bool)
    assert soft_dice_loss(logits, target, known, mode).abs().max() < 1e-5


@given(seed=st.integers(0, 99), bits=st.lists(st.booleans(), min_size=6, max_size=6))
def test_unknown_regions_neither_count_nor_learn(seed, bits):
    logits, target, _ = case("regions", seed=seed)
    known = torch.tensor(bits).reshape(2, 3)
    logits.requires_grad_()
    loss = both_terms(logits, target, known)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.equal(grad.abs().amax((2, 3, 4)) > 0, known)
    for i in range(2):
        keep = known[i]
        if not keep.any():
            assert loss[i] == 0
            continue
        everything = torch.ones(1, int(keep.sum()), dtype=torch.bool)
        expected = both_terms(logits[i, None, keep], target[i, None, keep], everything)
        torch.testing.assert_close(loss[i], expected[0])


def test_an_unknown_class_leaves_the_softmax():
    logits, target, known = case("classes", batch=1, n=4)
    known[0, 2] = False
    kept = [0, 1, 3]
    target = F.one_hot(target[:, kept].argmax(1), 3).movedim(-1, 1).float()
    full = torch.zeros_like(logits)
    full[:, kept] = target
    logits.requires_grad_()
    everything = torch.ones(1, 3, dtype=torch.bool)
    for function in (voxel_cross_entropy, soft_dice_loss):
        ours = function(logits, full, known, "classes")
        torch.testing.assert_close(ours, function(logits[:, kept], target, everything, "classes"))
        (grad,) = torch.autograd.grad(ours.sum(), logits)
        assert grad[:, 2].abs().max() == 0
        assert grad[:, kept].abs().max() > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_case_of_which_nothing_is_known_is_zero_even_with_nan(mode):
    logits, target, known = case(mode)
    known[0], target[0] = False, torch.nan
    logits.requires_grad_()
    loss, terms = segmentation_loss(logits, target, known, mode=mode, settings=LossSettings())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(term) for term in terms.values())
    assert logits.grad is not None
    assert logits.grad[0].abs().max() == 0
    assert logits.grad[1].abs().max() > 0
    one = [x[1:] for x in (logits.detach(), target, known)]
    alone, _ = segmentation_loss(*one, mode=mode, settings=LossSettings())
    torch.testing.assert_close(loss.detach(), alone / 2)


@pytest.mark.parametrize("mode", MODES)
def test_each_case_has_its_own_loss(mode):
    logits, target, known = case(mode)
    for function in (voxel_cross_entropy, soft_dice_loss):
        both = function(logits, target, known, mode)
        each = [function(logits[i, None], target[i, None], known[i, None], mode) for i in range(2)]
        torch.testing.assert_close(both, torch.cat(each))


@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_that_of_finite_differences(mode):
    logits, target, known = case(mode, size=(2, 3), batch=2)
    known[1, -1] = False

    def function(x):
        return segmentation_loss(x, target, known, mode=mode, settings=LossSettings())[0]

    logits.requires_grad_()
    (grad,) = torch.autograd.grad(function(logits), logits)
    way = torch.sign(grad)
    with torch.no_grad():
        slope = (function(logits + 1e-2 * way) - function(logits - 1e-2 * way)) / 2e-2
    torch.testing.assert_close(slope, (grad * way).sum(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_bf16_logits_are_scored_in_float32(mode):
    logits, target, known = case(mode)
    low = logits.bfloat16()
    loss, _ = segmentation_loss(low, target, known, mode=mode, settings=LossSettings())
    same, _ = segmentation_loss(low.float(), target, known, mode=mode, settings=LossSettings())
    assert loss.dtype == torch.float32
    assert loss == same


def test_refuses_shapes_that_do_not_agree():
    logits, target, known = case("regions")
    with pytest.raises(REFUSALS, match="known"):
        voxel_cross_entropy(logits, target[:, :2], known, "regions")
    with pytest.raises(REFUSALS, match="known"):
        soft_dice_loss(logits, target, known[:, :2], "regions")
