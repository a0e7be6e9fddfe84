"""Small lesions with a known truth, and a model learned from them once."""

import pytest
import torch

from medseg.data.regions import WHOLE_TUMOUR
from medseg.seeding import torch_generator
from medseg.synthesis.lesion_model import LesionModel, LesionSettings, learn_lesions
from medseg.synthesis.lesions import LabelledScan

FIT = {"max_steps": 200, "batch_size": 16, "learning_rate": 5e-3, "epochs": 400}
QUICK = LesionSettings(
    side=8,
    shape={"latent": 4, "channels": (8,), "fit": FIT},
    looks={"latent": 4, "channels": (8,), "fit": FIT},
    most_items=60,
)


def ball_scan(seed: int, *, radius: float, lesions: bool = True) -> LabelledScan:
    """A ball of brain with a ball of label 2 in it, round a ball of label 4; 2 mm voxels."""
    generator = torch_generator(seed, "ball scan")
    axes = torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij")
    place = torch.stack(axes)
    brain = (place - 11.5).norm(dim=0) < 11.0
    centre = 9.5 + 4 * torch.rand(3, generator=generator)
    distance = (place - centre.view(3, 1, 1, 1)).norm(dim=0)
    label = torch.zeros(24, 24, 24, dtype=torch.int64)
    if lesions:
        label[distance < radius] = 2
        label[distance < radius / 2] = 4
    image = torch.randn(2, 24, 24, 24, generator=generator) * 0.3
    image[0] += 3.0 * (label > 0)
    image[1] += 5.0 * (label == 4)
    return LabelledScan(f"ball{seed}", image * brain, label, brain, (2.0, 2.0, 2.0))


@pytest.fixture(scope="session")
def scans() -> list[LabelledScan]:
    return [ball_scan(seed, radius=3.0 + 0.3 * seed) for seed in range(6)]


@pytest.fixture(scope="session")
def model(scans: list[LabelledScan]) -> LesionModel:
    return learn_lesions(scans, QUICK, channels=("flair", "t1c"), definition=WHOLE_TUMOUR, seed=3)
