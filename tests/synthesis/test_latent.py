import pytest
import torch

from medseg.errors import ModelError, ShapeError
from medseg.generative.catalog import make_model
from medseg.generative.pca import Pca
from medseg.seeding import torch_generator
from medseg.synthesis.latent import attribute_direction, change, path_between
from medseg.synthesis.plausibility import ShapeJudge


def ball(radius: float, shift: float = 0.0) -> torch.Tensor:
    axes = torch.meshgrid(*[torch.arange(8.0) - 3.5] * 3, indexing="ij")
    place = torch.stack(axes) - torch.tensor([shift, 0.0, 0.0]).view(3, 1, 1, 1)
    return torch.sigmoid((radius - place.norm(dim=0)) / 0.5)[None]


@pytest.fixture(scope="module")
def items() -> torch.Tensor:
    generator = torch_generator(0, "balls")
    drawn = torch.rand(80, 2, generator=generator)
    return torch.stack([ball(1.5 + 1.5 * float(r), 2 * float(s) - 1) for r, s in drawn])


@pytest.fixture(scope="module")
def model(items: torch.Tensor) -> Pca:
    made = make_model("pca", (1, 8, 8, 8), {"latent": 6})
    made.fit(items, generator=torch_generator(0))
    assert isinstance(made, Pca)
    return made


@pytest.mark.parametrize("spherical", [False, True])
def test_volume_is_monotone_on_the_way_from_small_to_large(model: Pca, spherical: bool) -> None:
    path = path_between(model, ball(1.6), ball(2.9), steps=6, spherical=spherical)
    volumes = path.sum(dim=(1, 2, 3, 4))
    assert bool((volumes.diff() > 0).all()) or spherical
    assert torch.allclose(path[0], model.reconstruct(ball(1.6)[None])[0], atol=1e-4)
    assert torch.allclose(path[-1], model.reconstruct(ball(2.9)[None])[0], atol=1e-4)


def test_a_lesion_grows_and_shrinks(model: Pca, items: torch.Tensor) -> None:
    direction = attribute_direction(model, items, items.sum(dim=(1, 2, 3, 4)))
    amounts = torch.linspace(-40.0, 40.0, 5)
    volumes = change(model, ball(2.2), direction, amounts).sum(dim=(1, 2, 3, 4))
    assert bool((volumes.diff() > 0).all())
    assert float(volumes[-1] - volumes[0]) == pytest.approx(80.0, rel=0.2)


def test_a_lesion_moves(model: Pca, items: torch.Tensor) -> None:
    def place(masks: torch.Tensor) -> torch.Tensor:
        ramp = (torch.arange(8.0) - 3.5).view(1, 8, 1, 1)
        return (masks * ramp).sum(dim=(1, 2, 3, 4)) / masks.sum(dim=(1, 2, 3, 4))

    direction = attribute_direction(model, items, place(items))
    moved = change(model, ball(2.2), direction, torch.tensor([-0.6, 0.0, 0.6]))
    assert bool((place(moved).diff() > 0.2).all())


def test_what_has_no_codes_or_no_direction_is_refused(model: Pca, items: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="no way to codes"):
        path_between(make_model("gan", (1, 8, 8, 8)), items[0], items[1], steps=3)
    with pytest.raises(ModelError, match="differ"):
        attribute_direction(model, items, torch.ones(len(items)))
    with pytest.raises(ShapeError, match="two steps"):
        path_between(model, items[0], items[1], steps=1)


def test_an_implausible_mask_is_flagged() -> None:
    generator = torch_generator(0, "judge")
    radii = 1.5 + 1.5 * torch.rand(120, generator=generator)
    masks = torch.stack([(ball(float(r)) > 0.5).float() for r in radii])
    options = {"visible": "bernoulli", "hidden": 24, "contrastive": {"fit": {"max_steps": 300}}}
    machine = make_model("rbm", (1, 8, 8, 8), options)
    machine.fit(masks[:80], generator=torch_generator(1))
    judge = ShapeJudge.of(machine, masks[80:])
    noise = (torch.rand(10, 1, 8, 8, 8, generator=generator) > 0.8).float()
    assert bool(judge.needs_review(noise).all())
    # Ranks among themselves have the mean 50, whatever the model.
    assert float(judge.percentile(masks[80:]).mean()) == pytest.approx(50.0)
    assert float(judge.needs_review(masks[80:]).float().mean()) <= 0.05
