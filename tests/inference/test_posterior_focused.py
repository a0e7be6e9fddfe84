"""Samples inside a box: what must hold exactly, and what the box must hold."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from medseg.data.regions import RegionSettings
from medseg.inference.focused import LARGEST_SHARE, uncertain_box
from medseg.inference.posterior import Head, predict_prepared, sample_probabilities
from medseg.inference.settings import PredictSettings
from medseg.networks.unet import UNet, UNetSettings
from medseg.seeding import seeded_torch
from medseg.variational.convert import to_deterministic, to_variational, variational_layers
from medseg.variational.settings import VariationalSettings

REGIONS = Head(RegionSettings(names=("core", "whole")), temperature=0.5)
CLASSES = Head(RegionSettings(mode="classes", names=("core",)), temperature=0.5)
HEADS = pytest.mark.parametrize("head", [REGIONS, CLASSES], ids=["regions", "classes"])
SHAPE = (28, 26, 25)
#: Where the test network is uncertain of the test image.
SPOT = (slice(10, 13), slice(11, 15), slice(10, 12))


def image() -> Tensor:
    """Return an image that is far from the boundary all over, but for a spot."""
    values = torch.full((2, *SHAPE), -9.0)
    noise = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(3))
    values[(slice(None), *SPOT)] = 0.3 * noise
    return values


def variational(dims: int = 3, *, spread: float = 0.3) -> nn.Module:
    """Return a network whose logits are the image, give or take: certain but in the spot."""
    with seeded_torch(0, "test network"), torch.no_grad():
        conv = nn.Conv2d(2, 2, 3, padding=1) if dims == 2 else nn.Conv3d(2, 2, 3, padding=1)
        conv.weight.mul_(0.05)
        for channel in range(2):
            conv.weight[(channel, channel, *(1,) * dims)] = 1.0 - 2.0 * channel
    return to_variational(
        conv, settings=VariationalSettings(relative_std=spread, max_relative_std=None)
    )


def unet(dims: int = 3) -> nn.Module:
    numbers = UNetSettings(dims=dims, in_channels=2, out_channels=2, widths=(4, 6))  # type: ignore[arg-type]
    with seeded_torch(0, "test network"):
        return to_variational(UNet(numbers), settings=VariationalSettings(relative_std=0.2))


def without_spread(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for layer in variational_layers(network).values():
            layer.posterior.log_std.fill_(-math.inf)
    return network


def draw(net: nn.Module, head: Head = REGIONS, **changes: object) -> Tensor:
    settings = PredictSettings(**{"samples": 4, "posterior": "focused", **changes})  # type: ignore[arg-type]
    return torch.stack(list(sample_probabilities(net, image(), head=head, settings=settings)))


def mean_pass(net: nn.Module, head: Head) -> Tensor:
    settings = PredictSettings()
    (mean,) = sample_probabilities(to_deterministic(net), image(), head=head, settings=settings)
    return mean


def share(box: tuple[slice, ...]) -> float:
    return math.prod(side.stop - side.start for side in box) / math.prod(SHAPE)


@HEADS
@pytest.mark.parametrize("dims", [2, 3])
def test_without_spread_every_sample_is_the_pass_of_the_means(head: Head, dims: int) -> None:
    network, head = without_spread(variational(dims)), replace(head, dims=dims)
    mean = mean_pass(network, head)
    assert share(uncertain_box(mean)) < LARGEST_SHARE
    for sample in draw(network, head):
        torch.testing.assert_close(sample, mean, atol=1e-6, rtol=0)


@HEADS
def test_outside_the_box_samples_are_the_pass_of_the_means(head: Head) -> None:
    network = variational()
    mean = mean_pass(network, head)
    box = uncertain_box(mean)
    samples = draw(network, head)
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[box] = True
    assert 0 < share(box) < LARGEST_SHARE
    assert torch.equal(samples[..., ~inside], mean[:, ~inside].expand(4, -1, -1))
    assert samples.std(dim=0)[:, inside].max() > 0.01


@HEADS
def test_inside_the_box_a_network_that_looks_no_further_gives_full_samples(head: Head) -> None:
    network = variational()
    box = uncertain_box(mean_pass(network, head))
    # One voxel from the border of the box a kernel of 3 sees nothing else.
    core = tuple(slice(side.start + 1, side.stop - 1) for side in box)
    focused, full = draw(network, head), draw(network, head, posterior="full")
    torch.testing.assert_close(focused[(..., *core)], full[(..., *core)], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_where_uncertainty_is_all_over_samples_are_full_passes(dims: int) -> None:
    # Noise, and a fresh network: nothing is certain anywhere.
    network, head = unet(dims), replace(REGIONS, dims=dims)
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))

    def samples(kind: str) -> Tensor:
        settings = PredictSettings(samples=3, posterior=kind)  # type: ignore[arg-type]
        return torch.stack(list(sample_probabilities(network, noise, head=head, settings=settings)))

    assert torch.equal(samples("focused"), samples("full"))


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    network = variational()
    few, many = draw(network, samples=2), draw(network, samples=5)
    assert torch.equal(few, many[:2])
    assert not torch.equal(many[0], many[1])
    assert not torch.equal(few, draw(network, samples=2, seed=1))


def test_network_its_mode_and_random_state_are_left_alone() -> None:
    network = variational().train()
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    settings = PredictSettings(samples=3, posterior="focused")
    samples = sample_probabilities(network, image(), head=REGIONS, settings=settings)
    next(samples)
    assert network.training
    assert all(layer.held_weight is None for layer in variational_layers(network).values())
    list(samples)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_image_is_seen_once_in_full_by_any_engine_and_then_only_the_box() -> None:
    network, seen = variational(), []
    compiled = to_deterministic(network)
    network.register_forward_pre_hook(lambda _, images: seen.append(tuple(images[0].shape[2:])))

    def engine(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape[2:]))
        return compiled(images)

    settings = PredictSettings(samples=1000, posterior="focused")
    samples = sample_probabilities(network, image(), head=REGIONS, settings=settings, engine=engine)
    next(samples), next(samples)
    box = uncertain_box(mean_pass(network, REGIONS))
    # The means over the box, and two samples.
    assert seen == [SHAPE, *[tuple(side.stop - side.start for side in box)] * 3]


def test_windows_are_kept() -> None:
    network, seen = variational(), []
    network.register_forward_pre_hook(lambda _, images: seen.append(tuple(images[0].shape[2:])))
    draw(network, window=(6, 6, 6), overlap=0.5)
    assert max(max(shape) for shape in seen) <= 6


def test_prediction_takes_the_mean_over_samples() -> None:
    network = variational()
    settings = PredictSettings(samples=4, posterior="focused")
    result = predict_prepared(network, image(), head=REGIONS, settings=settings)
    samples = draw(network)
    torch.testing.assert_close(result.statistics.probability, samples.mean(0))
    assert torch.equal(result.sample_voxels, (samples > 0.5).sum(dim=(2, 3, 4)))


def test_the_box_holds_the_uncertainty_and_forgets_lone_voxels() -> None:
    probability = torch.zeros(1, 64, 64, 64)
    probability[:, 20:30, 30:40, 40:50] = 0.5
    box = uncertain_box(probability)
    assert box == (slice(8, 36), slice(24, 46), slice(32, 56))
    probability[:, 1, 1, 1] = probability[:, 60, 60, 60] = 0.5
    assert uncertain_box(probability) == box


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(30, 20, 10), (1, 1, 1)])
def test_without_uncertainty_there_is_still_a_box(value: float, shape: tuple[int, ...]) -> None:
    for side, length in zip(uncertain_box(torch.full((2, *shape), value)), shape, strict=True):
        assert 0 <= side.start < side.stop <= length
