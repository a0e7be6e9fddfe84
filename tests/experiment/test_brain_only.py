"""What a network says outside the brain is no part of an experiment's numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medseg.config.build import load_plan
from medseg.data.training_set import TrainingCase
from medseg.experiment.cell import Cell, CellData, CellWriter, run_network
from medseg.inference.posterior import Head
from medseg.io.atomic import read_table

CONFIG = """
title: brain
sources: {}
target: {kind: phantom, settings: {disease: tumour, n_subjects: 2, spacing_mm: 8.0}}
arms: [{method: {method: ri}}]
protocol: {preprocess: {spacing_mm: [10.0, 10.0, 10.0]}}
"""


class Everywhere(nn.Module):
    """Sees lesion in every voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(3.0))

    def forward(self, image: Tensor) -> Tensor:
        return self.logit.expand(len(image), 2, *image.shape[2:])


def test_volumes_end_where_the_brain_does(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    plan, shape = load_plan(str(tmp_path / "c.yaml")), (4, 5, 6)
    brain = torch.zeros(shape, dtype=torch.bool)
    brain[1:3, 1:4, 2:5] = True
    case = TrainingCase(
        identifier="a",
        subject="a",
        image=torch.ones(2, *shape),
        present=torch.ones(2, dtype=torch.bool),
        target=brain.float().expand(2, *shape).clone(),
        known=torch.ones(2, dtype=torch.bool),
        brain=brain,
    )
    writer = CellWriter(Cell("ri", "none", 1, "0"), plan, tmp_path, keep_example=False)
    head = Head(plan.protocol.regions, 3, 1.0)
    run_network(Everywhere(), CellData((), [case]), writer, plan, channels=[0, 1], head=head)
    # A voxel is a millilitre.
    for row in read_table(writer.folder / "scores.tsv"):
        assert float(row["dsc"]) == 1.0
        for column in ("volume_low_ml", "volume_high_ml", "reference_volume_ml"):
            assert float(row[column]) == pytest.approx(18.0)
