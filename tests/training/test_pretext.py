"""Learning without masks: what is asked, what is not, and that it can be answered."""

import pytest
import torch

from medseg.data.training_set import AugmentSettings, Batch, PatchSampler, PatchSettings
from medseg.errors import TrainingError
from medseg.networks.unet import UNet, UNetSettings
from medseg.seeding import seeded_torch, torch_generator
from medseg.training.loop import train
from medseg.training.objectives import pretext, pretext_regions, without_masks
from medseg.training.pretext import (
    EncoderView,
    MaskedAutoencoderObjective,
    MaskedAutoencoderSettings,
    RelativePositionObjective,
    RelativePositionSettings,
    block_mask,
)

SIDE, CASES = 24, 4


def batch_of(image):
    return Batch(image, torch.zeros(len(image), 1, *image.shape[2:]), torch.zeros(len(image), 1))


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 7, 9, 5)])
def test_whole_blocks_are_hidden_as_many_in_each_patch(shape, fraction):
    mask = block_mask(shape, block=4, fraction=fraction, generator=torch_generator(0))
    assert mask.shape == (shape[0], 1, *shape[1:])
    corners = (slice(None), 0, *[slice(None, None, 4)] * (len(shape) - 1))
    blocks = mask[corners].flatten(1)
    wanted = min(max(1, round(fraction * blocks.shape[1])), blocks.shape[1] - 1)
    assert blocks.sum(1).tolist() == [wanted] * shape[0]
    again = mask[corners].unsqueeze(1)
    for axis, side in enumerate(shape[1:], start=2):
        again = again.repeat_interleave(4, dim=axis).narrow(axis, 0, side)
    assert torch.equal(mask, again)


def test_the_loss_sees_hidden_voxels_of_the_head_alone():
    image = torch.randn(2, 2, 8, 8, generator=torch_generator(1))
    image[:, :, :2] = 0.0  # outside the head
    image[1, 1] = 0.0  # a channel that is absent
    objective = MaskedAutoencoderObjective(MaskedAutoencoderSettings(block=2), seed=3)
    answer = torch.randn(image.shape, generator=torch_generator(2)).requires_grad_()
    shown = []

    def forward(seen):
        shown.append(seen)
        return answer

    loss, _ = objective.loss(forward, batch_of(image), 5)
    hidden = objective.hidden(image, 5).expand_as(image)
    assert torch.equal(shown[0][hidden], torch.zeros(int(hidden.sum())))
    assert torch.equal(shown[0][~hidden], image[~hidden])
    asked = hidden & (image != 0)
    gradient = torch.autograd.grad(loss, answer)[0]
    assert torch.equal(gradient != 0, asked)
    assert float(loss.detach()) == pytest.approx(
        float((answer - image)[asked].square().mean().detach())
    )


def test_blocks_are_a_function_of_the_step():
    image = torch.ones(2, 1, 16, 16)
    objective = MaskedAutoencoderObjective(MaskedAutoencoderSettings(), seed=3)
    assert torch.equal(objective.hidden(image, 1), objective.hidden(image, 1))
    assert not torch.equal(objective.hidden(image, 1), objective.hidden(image, 2))


def disc_cases(toy, *, seed):
    """Return discs, whose edge shows which way the middle is."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    disc = (axis[:, None].square() + axis.square()).sqrt() < 9
    made = []
    for case in toy.cases(CASES, seed=seed):
        noise = torch_generator(seed, "disc", case.identifier)
        image = disc[None, :, :, None] + 0.1 * torch.randn(2, SIDE, SIDE, 2, generator=noise)
        made.append(
            type(case)(
                identifier=case.identifier,
                subject=case.subject,
                image=image,
                present=case.present,
                target=torch.zeros(2, SIDE, SIDE, 2),
                known=case.known,
                brain=torch.ones(SIDE, SIDE, 2, dtype=torch.bool),
            )
        )
    return made


def small(dims=2):
    with seeded_torch(0):
        return UNet(UNetSettings(dims=dims, in_channels=2, out_channels=1, widths=(8, 16)))


def test_positions_are_told_far_above_chance_on_unseen_scans(toy):
    settings = RelativePositionSettings(side=6, gap=1, jitter=1, neighbours=4, hidden=32)
    view = EncoderView(small())
    objective = RelativePositionObjective(settings, view=view, seed=0)

    def batches(seed):
        return PatchSampler(
            disc_cases(toy, seed=seed),
            patch=PatchSettings(size=(SIDE, SIDE), batch_size=4),
            augment=AugmentSettings(enabled=False),
            seed=seed,
        )

    train(view, objective, batches(0), settings=toy.training(steps=60))
    right = []
    with torch.no_grad():
        for step in range(10):
            logits, places = objective.answers(view, batches(1).batch(step), 1000 + step)
            right.append((logits.argmax(1) == places).float().mean())
    assert float(torch.stack(right).mean()) > 0.5  # chance is 1 in 8


@pytest.mark.parametrize("dims", [2, 3])
def test_a_cut_lies_where_its_place_says(dims):
    places = torch.stack(torch.meshgrid(*[torch.arange(14.0)] * dims, indexing="ij"))
    settings = RelativePositionSettings(side=4, gap=1, jitter=0, neighbours=300)
    view = EncoderView(small(dims))
    objective = RelativePositionObjective(settings, view=view, seed=0)
    seen = []

    def forward(cut):
        seen.append(cut)
        return torch.zeros(len(cut), view.width)

    _, answers = objective.answers(forward, batch_of(places[None]), 0)
    middles = seen[0].flatten(2).mean(2)
    ways = ((middles[1:] - middles[0]) / 5).round().int()  # a side of four and a gap of one
    assert len(ways.unique(dim=0)) == 3**dims - 1
    assert int(ways.abs().amax()) == 1
    assert bool(ways.any(1).all())
    told = {place: way for place, way in zip(answers.tolist(), ways.tolist(), strict=True)}
    assert all(told[p] == w for p, w in zip(answers.tolist(), ways.tolist(), strict=True))
    assert len({tuple(way) for way in told.values()}) == len(told)


def test_patches_too_small_to_cut_are_refused(toy):
    settings = RelativePositionSettings(gap=2, jitter=1)
    objective = RelativePositionObjective(settings, view=EncoderView(small()), seed=0)
    with pytest.raises(TrainingError, match=r"patch\.size"):
        objective.loss(objective, batch_of(torch.zeros(1, 2, 10, 10)), 0)


def test_positions_train_the_way_down_alone():
    network = small()
    module, objective = pretext(RelativePositionSettings(side=8, gap=0, jitter=0), network, seed=0)
    image = torch.randn(2, 2, 24, 24, generator=torch_generator(0))
    objective.loss(module, batch_of(image), 0)[0].backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    assert reached == {
        name for name, _ in network.named_parameters() if name.startswith(("stem", "encoder"))
    }
    assert all(p.grad is not None for p in objective.extra.parameters())


def test_no_fine_tuning_takes_the_head_of_a_pretext_for_its_own():
    for settings in (MaskedAutoencoderSettings(), RelativePositionSettings()):
        names = pretext_regions(settings, ("flair", "t1c")).names
        assert not set(names) & {"flair", "t1c", "core", "whole", "lesion"}


def test_a_case_without_masks_knows_nothing(toy):
    bare = without_masks(toy.cases()[0])
    assert not bare.known.any()
    assert not bare.target.any()
