"""Masks of a known family, half of each hidden: what the model puts there."""

import pytest
import torch
from torch import Tensor

from medseg.errors import ModelError, ShapeError
from medseg.generative.base import GenerativeBase
from medseg.generative.catalog import make_model
from medseg.seeding import torch_generator
from medseg.synthesis.completion import complete_masks

SIDE, TRAINING = 8, 60


def ellipsoids(n: int) -> Tensor:
    """Return ellipsoids of any size and place round others of half the radii, (n, 2, 8, 8, 8)."""
    generator = torch_generator(0, "ellipsoids")
    axis = torch.arange(SIDE).float()
    place = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    centre = 3.5 + 1.5 * (torch.rand(n, 3, 1, 1, 1, generator=generator) - 0.5)
    radius = 1.8 + 1.8 * torch.rand(n, 3, 1, 1, 1, generator=generator)
    distance = ((place - centre) / radius).square().sum(1)
    return torch.stack([distance < 0.25, distance < 1], 1).float()


@pytest.fixture(scope="module")
def masks() -> Tensor:
    return ellipsoids(TRAINING + 30)


def fitted(masks: Tensor) -> GenerativeBase:
    fit = {"max_steps": 400, "epochs": 400, "batch_size": 30, "learning_rate": 0.01}
    options = {
        "visible": "bernoulli",
        "hidden": (60, 40),
        "sample_sweeps": 60,
        "contrastive": {"fit": fit},
    }
    model = make_model("dbn", tuple(masks.shape[1:]), options)
    model.fit(masks[:TRAINING], generator=torch_generator(1))
    return model


def dice(found: Tensor, truth: Tensor) -> float:
    found, truth = found.flatten(1), truth.flatten(1)
    shares = 2 * (found * truth).sum(1) / (found.sum(1) + truth.sum(1)).clamp(min=1)
    return float(shares.mean())


def test_hidden_half_is_nearer_the_truth_than_that_of_the_nearest_mask(
    masks: Tensor,
) -> None:
    """A single layer, fitted as briefly, does not beat the nearest mask."""
    training, unseen = masks[:TRAINING], masks[TRAINING:]
    known = torch.zeros(SIDE, SIDE, SIDE, dtype=torch.bool)
    known[:4] = True
    given = torch.where(known, unseen, torch.nan)
    found = complete_masks(fitted(masks), given, known, generator=torch_generator(2))
    assert torch.equal(found[:, :, :4], unseen[:, :, :4])
    assert bool(((found == 0) | (found == 1)).all())
    assert bool((found[:, 0] <= found[:, 1]).all())
    seen = training[:, :, :4].flatten(1), unseen[:, :, :4].flatten(1)
    nearest = training[torch.cdist(seen[1], seen[0]).argmin(1)]
    hidden = slice(4, None)
    ours = dice(found[:, 1, hidden], unseen[:, 1, hidden])
    # Left as a hole, none of it would be found.
    assert ours > 0.7
    assert ours > dice(nearest[:, 1, hidden], unseen[:, 1, hidden]) + 0.01


def test_what_cannot_complete_is_refused(masks: Tensor) -> None:
    known = torch.ones(SIDE, SIDE, SIDE, dtype=torch.bool)
    pca, rbm = (make_model(kind, (2, SIDE, SIDE, SIDE)) for kind in ("pca", "rbm"))
    with pytest.raises(ModelError, match="shape_kind rbm"):
        complete_masks(pca, masks[:2], known, generator=torch_generator(0))
    with pytest.raises(ShapeError, match="What is known"):
        complete_masks(rbm, masks[:2], known[:4], generator=torch_generator(0))
    with pytest.raises(ShapeError, match="Items must be"):
        complete_masks(rbm, masks[:2, :1], known, generator=torch_generator(0))
