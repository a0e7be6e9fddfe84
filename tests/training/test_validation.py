"""The score a training is stopped by."""

import pytest
import torch
from torch import nn

from medseg.data.regions import RegionSettings
from medseg.data.training_set import TrainingCase
from medseg.errors import DataError
from medseg.inference.posterior import Head
from medseg.training.validation import mean_dice_of

HEAD = Head(RegionSettings(names=("core", "whole")), 3, 1.0)


class Copies(nn.Module):
    """Answers each region with the image's channel, as a confident logit."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(20.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.gain * (image - 0.5)


def case(known: tuple[bool, bool], wrong: int = 0) -> TrainingCase:
    target = torch.zeros(2, 8, 8, 8)
    target[:, 2:6, 2:6, 2:6] = 1
    image = target.clone()
    if wrong:
        image[1] = 0
    return TrainingCase(
        identifier="a",
        subject="a",
        image=image,
        present=torch.ones(2, dtype=torch.bool),
        target=target,
        known=torch.tensor(known),
        brain=torch.ones(8, 8, 8, dtype=torch.bool),
    )


def test_a_perfect_network_scores_one():
    assert mean_dice_of([case((True, True))], head=HEAD)(Copies()) == 1


def test_unknown_regions_do_not_count():
    assert mean_dice_of([case((True, True), wrong=1)], head=HEAD)(Copies()) == 0.5
    assert mean_dice_of([case((True, False), wrong=1)], head=HEAD)(Copies()) == 1


def test_nothing_to_score_is_refused():
    with pytest.raises(DataError, match="none of the 1"):
        mean_dice_of([case((False, False))], head=HEAD)
