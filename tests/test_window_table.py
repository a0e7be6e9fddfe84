"""The table of windows compares ways of looking that differ as they are named."""

import pytest
import torch

from medseg.data.regions import RegionSettings
from medseg.data.training_set import TrainingCase
from medseg.inference.posterior import Head
from tools import window_table


class Shown(torch.nn.Module):
    """Has the voxels that it is shown, in hundreds, for a logit everywhere."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * 0 + image[0, 0].numel() / 100


def case() -> TrainingCase:
    image = torch.zeros(1, 8, 8, 8)
    image[:, 2:6, 2:6, 2:6] = 2.0
    return TrainingCase(
        identifier="a",
        subject="a",
        image=image,
        present=torch.ones(1, dtype=torch.bool),
        target=(image > 1).float(),
        known=torch.ones(1, dtype=torch.bool),
        brain=image[0] > 1,
    )


def test_each_way_shows_what_its_name_says() -> None:
    head, shown = Head(RegionSettings(names=("core",))), []
    for margin, settings in window_table.ways((3, 3, 3)).values():
        found = window_table.seen(Shown(), case(), head=head, margin=margin, settings=settings)
        shown.append(found[0, 3, 3, 3].logit().item())
    # 8^3 voxels, the box of 4^3, and what the windows say.
    assert shown == pytest.approx([5.12, 0.64, 0.64, 0.27], abs=1e-3)
    assert list(window_table.ways((3, 3, 3)))[-1] == "windows of 3 x 3 x 3, as in training"


def test_own_cases_are_kept_apart() -> None:
    row = {"network": "n", "way": "w", "region": "core", "subset": 0, "nll_nats": 0.1}
    rows = [
        {**row, "subject": "a", "own": True, "dsc": 0.9},
        {**row, "subject": "b", "own": False, "dsc": 0.5},
        {**row, "subject": "c", "own": False, "dsc": 0.7},
    ]
    assert "| n | w | 0.600 [0.500, 0.700] | 0.1000 | 0.900 |" in window_table.table(rows)
