import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from medseg.errors import ModelError, ShapeError
from medseg.generative.conv_vae import ConvVae, ConvVaeSettings
from medseg.generative.fitting import FitSettings
from medseg.seeding import torch_generator

QUICK = FitSettings(max_steps=150, epochs=1000, batch_size=32, learning_rate=1e-2)


def discs(n: int, length: int = 9) -> Tensor:
    """Return masks of discs anywhere, (n, 1, length, length)."""
    generator = torch_generator(0, "discs")
    axis = torch.arange(length).float()
    centre = 2 + (length - 5) * torch.rand(n, 2, 1, 1, generator=generator)
    radius = 1.5 + 1.5 * torch.rand(n, 1, 1, generator=generator)
    distance = (axis[:, None] - centre[:, 0]) ** 2 + (axis - centre[:, 1]) ** 2
    return (distance < radius**2).float()[:, None]


@pytest.mark.parametrize("event", [(2, 11), (1, 7, 4), (2, 5, 6, 3), (1, 1, 1)])
@pytest.mark.parametrize("told", [0, 3])
def test_any_lengths_in_one_to_three_dimensions(event: tuple[int, ...], told: int) -> None:
    settings = ConvVaeSettings(latent=2, channels=(3, 4), condition_size=told)
    model = ConvVae(event, settings)
    items = torch.randn(4, *event, generator=torch_generator(0))
    condition = torch.randn(4, told, generator=torch_generator(1)) if told else None
    assert model.elbo(items, condition=condition).shape == (4,)
    assert model.reconstruct(items, condition=condition).shape == items.shape
    assert model.sample(4, generator=torch_generator(0), condition=condition).shape == items.shape


def test_masks_come_back_and_samples_are_masks() -> None:
    masks = discs(500)
    settings = ConvVaeSettings(latent=3, channels=(8, 16), likelihood="bernoulli", fit=QUICK)
    model = ConvVae((1, 9, 9), settings)
    model.fit(masks, generator=torch_generator(0))
    with torch.no_grad():
        bound = model.bound(masks[:100], generator=torch_generator(0)).mean()
        back = model.reconstruct(masks) > 0.5
    share = masks.mean(0).clamp(1e-3, 1 - 1e-3)
    alone = (masks * share.log() + (1 - masks) * (1 - share).log()).flatten(1).sum(1).mean()
    assert bound > alone + 8
    overlap = 2 * (back * masks).sum() / (back.sum() + masks.sum())
    assert overlap > 0.9
    drawn = model.sample(200, generator=torch_generator(1))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    # Nearer with more steps; these few leave the samples somewhat small.
    assert float(drawn.mean()) == pytest.approx(float(masks.mean()), rel=0.4)


def test_patches_are_told_where_the_lesion_is() -> None:
    masks = discs(400)
    noise = torch.randn(masks.shape, generator=torch_generator(1))
    items = 2 * masks + 0.3 * noise
    settings = ConvVaeSettings(latent=1, channels=(4,), condition_maps=1, fit=QUICK)
    model = ConvVae((1, 9, 9), settings)
    told = masks.flatten(1)
    model.fit(items, generator=torch_generator(0), condition=told)
    with torch.no_grad():
        right = model.bound(items, generator=torch_generator(0), condition=told).mean()
        wrong = model.bound(items, generator=torch_generator(0), condition=told.roll(1, 0)).mean()
    assert right > wrong + 20
    drawn = model.sample(400, generator=torch_generator(2), condition=told)
    inside = masks.bool()
    assert float(drawn[inside].mean()) == pytest.approx(2, abs=0.3)
    assert float(drawn[~inside].mean()) == pytest.approx(0, abs=0.2)


def test_bound_does_not_depend_on_how_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ConvVae((1, 6, 6), ConvVaeSettings(latent=2, channels=(3,)))
    items = torch.randn(7, 1, 6, 6, generator=torch_generator(0))
    with torch.no_grad():
        whole = model.bound(items, generator=torch_generator(1), n_codes=300)
        monkeypatch.setattr(ConvVae, "_rows_at_once", lambda self: 700)
        parts = model.bound(items, generator=torch_generator(1), n_codes=300)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0.1)


def test_what_does_not_go_with_convolutions_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"one to three lengths, but it was given \(27,\)"):
        ConvVae((27,), ConvVaeSettings())
    with pytest.raises(ValidationError, match="leaves convolutions no neighbours"):
        ConvVaeSettings(standardise="whiten")
    with pytest.raises(ValidationError, match="maps or numbers"):
        ConvVaeSettings(condition_maps=1, condition_size=2)
    model = ConvVae((1, 4, 4), ConvVaeSettings(condition_maps=2))
    with pytest.raises(ShapeError, match=r"\(3, 32\), but it is \(3, 0\)"):
        model.elbo(torch.zeros(3, 1, 4, 4))
    with pytest.raises(ModelError, match=r"lie in \[0, 1\], but they range from -1 to 1"):
        ConvVae((1, 4, 4), ConvVaeSettings(likelihood="bernoulli")).fit(
            torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4),
            generator=torch_generator(0),
        )
