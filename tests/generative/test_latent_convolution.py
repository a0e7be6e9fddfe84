"""Each item's code is a network of its own, and a part of an item is enough to find it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from medseg.errors import ShapeError
from medseg.generative.fitting import FitSettings
from medseg.generative.latent_convolution import LatentConvolution, LatentConvolutionSettings
from medseg.generative.restoration import RestorationSettings, restore
from medseg.seeding import torch_generator

FIT = FitSettings(
    max_steps=150,
    epochs=1000,
    batch_size=32,
    learning_rate=2e-2,
    weight_decay=0.0,
    validation_fraction=0.0,
)


def blobs(n: int, *, seed: int) -> Tensor:
    """Return discs of random place and size, (n, 1, 8, 8)."""
    generator = torch_generator(seed, "blobs")
    axis = torch.linspace(-1, 1, 8)
    centre = torch.rand(n, 2, 1, 1, generator=generator) - 0.5
    radius = 0.4 + 0.3 * torch.rand(n, 1, 1, generator=generator)
    y, x = axis[:, None] - centre[:, 0], axis[None] - centre[:, 1]
    return torch.sigmoid(8 * (radius - (x.square() + y.square()).sqrt()))[:, None]


def model_of(code: str, shape: tuple[int, ...] = (1, 8, 8)) -> LatentConvolution:
    settings = LatentConvolutionSettings(code=code, channels=(8,), maps=3, pull=0.1, fit=FIT)
    return LatentConvolution(shape, settings)


@pytest.fixture(scope="module")
def fitted() -> LatentConvolution:
    model = model_of("network")
    model.fit(blobs(64, seed=0), generator=torch_generator(0, "fit"))
    return model


@pytest.mark.parametrize("shape", [(1, 9), (1, 8, 6), (2, 5, 4, 6)])
def test_each_code_is_a_network_of_two_convolutions(shape) -> None:
    model = model_of("network", shape)
    noise = torch_generator(0, "noise")
    model.noise_maps.normal_(generator=noise)
    codes = torch.randn(3, len(model.start), generator=noise)
    dims = len(shape) - 1
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    for code, found in zip(codes, model.latent_maps(codes), strict=True):
        kernel = 3**dims
        sizes = [kernel * 4 * 4, 4, kernel * 4 * 3, 3]
        first, bias, second, last = code.split(sizes)
        maps = model.noise_maps[None]
        maps = convolve(maps, first.reshape(4, 4, *[3] * dims), bias, padding=1)
        maps = F.leaky_relu(maps, 0.2)
        maps = convolve(maps, second.reshape(3, 4, *[3] * dims), last, padding=1)
        assert torch.allclose(maps[0], found, atol=1e-4)
    assert model.decode(codes).shape == (3, *shape)


@pytest.mark.parametrize("code", ["network", "maps"])
def test_a_hidden_part_is_found_from_the_rest(code, fitted) -> None:
    items, unseen = blobs(64, seed=0), blobs(12, seed=1)
    model = fitted
    if code == "maps":
        model = model_of(code)
        model.fit(items, generator=torch_generator(0, "fit"))
    observed = torch.ones_like(unseen).bool()
    observed[..., 3:6, 3:6] = False
    chosen = RestorationSettings(iterations=40)
    made = restore(model, unseen, observed, settings=chosen, generator=torch_generator(0, "z"))
    error = (made.filled - unseen)[~observed].square().mean()
    assert error < 0.6 * (items.mean(0) - unseen)[~observed].square().mean()


def test_same_generator_same_model_and_a_folder_keeps_it(fitted, tmp_path) -> None:
    again = model_of("network")
    again.fit(blobs(64, seed=0), generator=torch_generator(0, "fit"))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in fitted.state_dict().items())
    fitted.save(tmp_path)
    loaded = LatentConvolution.load(tmp_path)
    codes = fitted.code_mean[None] + 0.1
    assert torch.equal(loaded.decode(codes), fitted.decode(codes))


def test_events_without_channels_are_refused() -> None:
    with pytest.raises(ShapeError, match="one channel"):
        model_of("network", (8,))
