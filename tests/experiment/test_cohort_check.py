"""A run goes on with the cases that it began with, in the precision that it began in."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medseg.data.training_set import TrainingCase
from medseg.errors import DataError
from medseg.experiment.cohort_check import require_same_cases


def case(name: str, *, voxels: int = 60) -> TrainingCase:
    shape = (10, 10, 10)
    target = torch.zeros(1, *shape)
    target.view(-1)[:voxels] = 1
    return TrainingCase(
        identifier=name,
        subject=name,
        image=torch.randn(2, *shape, generator=torch.Generator().manual_seed(len(name))),
        present=torch.ones(2, dtype=torch.bool),
        target=target,
        known=torch.ones(1, dtype=torch.bool),
        brain=torch.ones(shape, dtype=torch.bool),
    )


def test_the_same_cases_go_on_in_any_order_and_rounding_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cases.tsv"
    require_same_cases([case("a"), case("bb", voxels=600)], ["core"], path)
    before = path.read_text()
    require_same_cases([case("bb", voxels=604), case("a")], ["core"], path)
    assert path.read_text() == before


def test_a_new_case_a_lost_one_and_another_mask_or_head_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cases.tsv"
    require_same_cases([case("a"), case("bb")], ["core"], path)
    with pytest.raises(DataError, match="ccc is new"):
        require_same_cases([case("a"), case("bb"), case("ccc")], ["core"], path)
    with pytest.raises(DataError, match="a is gone"):
        require_same_cases([case("bb")], ["core"], path)
    with pytest.raises(DataError, match="core_voxels of a was 60 and is 90"):
        require_same_cases([case("a", voxels=90), case("bb")], ["core"], path)
    head = replace(case("a"), brain=torch.arange(1000).view(10, 10, 10) < 700)
    with pytest.raises(DataError, match="brain_voxels of a was 1000 and is 700"):
        require_same_cases([head, case("bb")], ["core"], path)
    louder = replace(case("a"), image=case("a").image * 1.1)
    with pytest.raises(DataError, match=r"mean_size of a was 0\.\d+ and is 0\.\d+"):
        require_same_cases([louder, case("bb")], ["core"], path)
    with pytest.raises(DataError, match="subject of a was a and is p1"):
        require_same_cases([replace(case("a"), subject="p1"), case("bb")], ["core"], path)
