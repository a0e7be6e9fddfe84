"""Whose weights each loss moves, and where each loss is nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.data.training_set import Batch
from medseg.translation.adversary import PatchDiscriminator, discriminator_loss, judge, towards
from medseg.translation.generator import CyclePair, Generator
from medseg.translation.objectives import CycleObjective, PairedObjective, brain_l1


def batch_of(image: torch.Tensor) -> Batch:
    return Batch(image, torch.ones(len(image), 2, *image.shape[2:]), torch.ones(len(image), 2) > 0)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def test_an_untrained_generator_is_the_identity_and_keeps_the_background(images) -> None:
    images[:, :, :4] = 0
    for modalities, reach in (((1, 1), 1), ((2, 1), 1), ((1, 1), 0)):
        size = 2 * reach + 1
        stack = torch.cat([images, images], 1)[:, : modalities[0] * size]
        made = Generator(modalities, reach=reach, widths=(4, 8))(stack)
        assert torch.equal(made, stack[:, reach : reach + 1])
    pair = CyclePair((1, 1), reach=1, widths=(4, 8))
    both = torch.cat([images, images], 1)[:, :6]
    assert (pair.translate(both[:, :3])[:, :, :4] == 0).all()
    assert (pair.translate(both[:, :3])[:, :, 4:] != 0).any()


def test_there_and_back_of_a_perfect_pair_costs_nothing(images) -> None:
    """y = 2 x + 0.5 and its inverse: the cycle is closed, and a true identity is not asked for."""
    pair = CyclePair((1, 1), reach=0, widths=(4, 8), identity=True).double()
    with torch.no_grad():
        pair.there.unet.head.weight.zero_()
        pair.back.unet.head.weight.zero_()
        pair.there.linear.weight.fill_(2.0)
        pair.there.linear.bias.fill_(0.5)
        pair.back.linear.weight.fill_(0.5)
        pair.back.linear.bias.fill_(-0.25)
    discriminators = nn.ModuleList(PatchDiscriminator(1, widths=(4,)) for _ in range(2)).double()
    objective = CycleObjective(pair, discriminators, game="logistic", weights=(0.0, 10.0, 0.0))
    _, terms = objective.loss(pair, batch_of(images[:, :2].double()), 0)
    assert terms["cycle_l1"] < 1e-12
    assert terms["identity_l1"] > 0.1
    with torch.no_grad():
        pair.back.linear.bias.fill_(0.0)
    _, worse = objective.loss(pair, batch_of(images[:, :2].double()), 0)
    # |F(G(x)) - x| is 0.25 everywhere, |G(F(y)) - y| twice that.
    assert worse["cycle_l1"] == pytest.approx(0.75)


def test_one_step_moves_each_player_by_its_own_loss(images) -> None:
    """The gradient of the sum is that of two losses, descended by two optimisers."""
    torch.manual_seed(0)
    generator, discriminator = (
        Generator((1, 1), reach=1, widths=(4, 8)).double(),
        PatchDiscriminator(4, widths=(4, 8)).double(),
    )
    nn.init.normal_(generator.unet.head.weight)
    x, y = images[:, :3].double(), images[:, 3:].double()
    objective = PairedObjective(discriminator, inputs=3, game="logistic", weights=(2.0, 8.0))
    loss, _ = objective.loss(generator, batch_of(images.double()), 0)
    loss.backward()
    found = [p.grad.clone() for p in (*generator.parameters(), *discriminator.parameters())]

    made = generator(x)
    fooled = towards(discriminator(torch.cat([x, made], 1)), real=True, game="logistic")
    of_generator = (2 * fooled + 8 * brain_l1(made, y)) / 8
    expected = list(torch.autograd.grad(of_generator, list(generator.parameters())))
    pair = torch.cat([x, made], 1)
    of_discriminator = discriminator_loss(
        discriminator, real=images.double(), made=pair, game="logistic"
    )
    expected += torch.autograd.grad(of_discriminator, list(discriminator.parameters()))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))


def test_judging_leaves_the_discriminator_alone(images) -> None:
    discriminator = PatchDiscriminator(4, widths=(4,))
    image = images.requires_grad_()
    judge(discriminator, image).sum().backward()
    assert image.grad is not None
    assert all(p.grad is None for p in discriminator.parameters())
    assert torch.equal(judge(discriminator, images), discriminator(images))


@pytest.mark.parametrize("game", ["logistic", "least_squares"])
def test_a_discriminator_learns_what_is_real(images, game) -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(4, widths=(4,))
    optimiser = torch.optim.Adam(discriminator.parameters(), 0.01)
    for _ in range(30):
        loss = discriminator_loss(discriminator, real=images, made=images + 2, game=game)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert discriminator(images).mean() > discriminator(images + 2).mean() + 0.3
