"""Samples from a coarse grid: what must hold exactly, and how near they come."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medseg.data.regions import RegionSettings
from medseg.inference.coarse import coarse_twin, resampled_kernels, tap_matrix
from medseg.inference.posterior import Head, predict_prepared, sample_probabilities
from medseg.inference.settings import PredictSettings
from medseg.networks.unet import UNet, UNetSettings
from medseg.seeding import seeded_torch
from medseg.variational.convert import to_deterministic, to_variational, variational_layers
from medseg.variational.sampling import sampled_weights
from medseg.variational.settings import VariationalSettings

REGIONS = Head(RegionSettings(names=("core", "whole")))
CLASSES = Head(RegionSettings(mode="classes", names=("core",)))
SHAPE = (11, 12, 9)


def smooth_image(shape: tuple[int, ...], *, blocks: int = 3) -> Tensor:
    coarse = torch.randn(1, 2, *[blocks] * 3, generator=torch.Generator().manual_seed(3))
    return F.interpolate(coarse, size=shape, mode="trilinear")[0]


def variational(dims: int = 3, *, transposed: bool = False, spread: float = 0.2) -> nn.Module:
    numbers = UNetSettings(
        dims=dims,  # type: ignore[arg-type]
        in_channels=2,
        out_channels=2,
        widths=(4, 6),
        upsampling="transposed" if transposed else "nearest",
        skip="concat" if transposed else "add",
        bias=transposed,
    )
    settings = VariationalSettings(relative_std=spread, max_relative_std=None)
    with seeded_torch(0, "test network"):
        return to_variational(UNet(numbers), settings=settings)


def without_spread(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for layer in variational_layers(network).values():
            layer.posterior.log_std.fill_(-math.inf)
    return network


def pointwise(network: nn.Module) -> nn.Module:
    """Make a network look at single voxels, in every sample too."""
    with torch.no_grad():
        for layer in variational_layers(network).values():
            middle = torch.zeros(layer.posterior.mean.shape[2:], dtype=torch.bool)
            middle[(1,) * middle.ndim] = True
            layer.posterior.mean[..., ~middle] = 0
            layer.posterior.log_std[..., ~middle] = -math.inf
    return network


def draw(net: nn.Module, image: Tensor, head: Head = REGIONS, **changes: object) -> Tensor:
    settings = PredictSettings(**{"samples": 4, "posterior": "coarse", **changes})  # type: ignore[arg-type]
    return torch.stack(list(sample_probabilities(net, image, head=head, settings=settings)))


@pytest.mark.parametrize("shape", [SHAPE, (1, 6, 5), (2, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("head", [REGIONS, CLASSES], ids=["regions", "classes"])
def test_without_spread_every_sample_is_the_pass_of_the_means(
    head: Head, dims: int, shape: tuple[int, ...]
) -> None:
    network = without_spread(variational(dims))
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    head = Head(head.regions, dims=dims, temperature=1.7)
    settings = PredictSettings()
    (expected,) = sample_probabilities(
        to_deterministic(network), image, head=head, settings=settings
    )
    for sample in draw(network, image, head):
        torch.testing.assert_close(sample, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_sample_depends_on_seed_and_number_alone(dims: int) -> None:
    image, head = smooth_image(SHAPE), Head(REGIONS.regions, dims=dims)
    few, many = (draw(variational(dims), image, head, samples=k) for k in (2, 5))
    assert torch.equal(few, many[:2])
    assert not torch.equal(many[0], many[1])
    assert not torch.equal(few, draw(variational(dims), image, head, samples=2, seed=1))


@pytest.mark.parametrize("head", [REGIONS, CLASSES], ids=["regions", "classes"])
@pytest.mark.parametrize("dims", [2, 3])
def test_samples_are_exact_where_neither_network_nor_image_have_shape(
    head: Head, dims: int
) -> None:
    flat = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1) if dims == 2 else nn.Conv3d(2, 3, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 2, 3, padding=1) if dims == 2 else nn.Conv3d(3, 2, 3, padding=1),
    )
    settings = VariationalSettings(relative_std=1.0, max_relative_std=None)
    network = pointwise(to_variational(flat, settings=settings))
    image = torch.tensor([0.7, -1.2]).view(2, 1, 1, 1).expand(2, *SHAPE).contiguous()
    head = Head(head.regions, dims=dims)
    coarse = draw(network, image, head, samples=30)
    full = draw(network, image, head, samples=30, posterior="full")
    torch.testing.assert_close(coarse, full, atol=1e-5, rtol=0)
    assert full.std(dim=0).max() > 0.001


def test_kernels_on_the_coarse_grid_say_the_same_of_a_linear_image() -> None:
    factors = (2.0, 1.5, 3.0)
    kernel = torch.randn(2, 1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    new = (kernel.view(2, 27) @ tap_matrix(factors).T).view_as(kernel)

    def linear(spacing: tuple[float, ...]) -> Tensor:
        axes = [torch.arange(-2.0, 3.0) * length for length in spacing]
        x, y, z = torch.meshgrid(*axes, indexing="ij")
        return (0.3 + x - 2 * y + 0.5 * z)[None, None]

    fine = F.conv3d(linear((1, 1, 1)), kernel, padding=1)
    coarse = F.conv3d(linear(factors), new, padding=1)
    # Both have one voxel in the origin.
    torch.testing.assert_close(coarse[..., 2, 2, 2], fine[..., 2, 2, 2])
    torch.testing.assert_close(tap_matrix((1.0, 1.0)), torch.eye(9))


def test_a_transposed_convolution_becomes_its_mean() -> None:
    layer = nn.ConvTranspose3d(2, 3, 2, 2)
    with torch.no_grad():
        twin = coarse_twin(layer, (2.0, 2.0, 2.0))
        image = torch.randn(1, 2, 3, 3, 3)
        expected = F.interpolate(F.avg_pool3d(layer(image), 2), scale_factor=2.0)
        torch.testing.assert_close(twin(image), expected)
        torch.testing.assert_close(coarse_twin(layer, (1.0, 1.0, 1.0))(image), layer(image))


def test_network_its_mode_and_random_state_are_left_alone() -> None:
    network = variational(transposed=True).train()
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    settings = PredictSettings(samples=3, posterior="coarse")
    samples = sample_probabilities(network, smooth_image(SHAPE), head=REGIONS, settings=settings)
    next(samples)
    assert network.training
    assert all(layer.held_weight is None for layer in variational_layers(network).values())
    list(samples)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_twin_has_no_weights_of_its_own_but_those_it_changes() -> None:
    network = variational(transposed=True)
    mine = {value.data_ptr() for value in network.parameters()}
    twin = coarse_twin(network, (2.0, 2.0, 2.0))
    own = {name for name, value in twin.named_parameters() if value.data_ptr() not in mine}
    assert own == {"decoder.0.project.weight"}


def test_held_weights_come_back_when_a_block_ends() -> None:
    network = variational()
    with sampled_weights(network, torch.Generator().manual_seed(0)):
        held = [layer.held_weight for layer in variational_layers(network).values()]
        with pytest.raises(ZeroDivisionError), resampled_kernels(network, tap_matrix([2.0] * 3)):
            raise ZeroDivisionError
        now = [layer.held_weight for layer in variational_layers(network).values()]
        assert all(a is b for a, b in zip(held, now, strict=True))


def test_the_image_is_seen_once_in_full_and_then_only_coarsely_and_when_asked() -> None:
    network, seen = variational(), []

    def engine(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape[2:]))
        return network(images)

    for layer in variational_layers(network).values():
        layer.register_forward_pre_hook(lambda _, images: seen.append(tuple(images[0].shape[2:])))
        break
    settings = PredictSettings(samples=1000, posterior="coarse")
    samples = sample_probabilities(
        network, smooth_image(SHAPE), head=REGIONS, settings=settings, engine=engine
    )
    next(samples), next(samples)
    # The engine and the layer under it, the coarse reference, two samples.
    assert seen == [SHAPE, SHAPE, *[(6, 6, 5)] * 3]


def test_mean_may_come_from_any_engine() -> None:
    network, image = variational(), smooth_image(SHAPE)
    settings = PredictSettings(samples=3, posterior="coarse")
    compiled = to_deterministic(network).eval()
    own = list(sample_probabilities(network, image, head=REGIONS, settings=settings))
    other = list(
        sample_probabilities(network, image, head=REGIONS, settings=settings, engine=compiled)
    )
    torch.testing.assert_close(torch.stack(own), torch.stack(other), atol=1e-6, rtol=0)


def test_windows_are_kept() -> None:
    network = variational()
    small = PredictSettings(samples=2, posterior="coarse", window=(6, 6, 6), overlap=0.5)
    seen = []
    for layer in variational_layers(network).values():
        layer.register_forward_pre_hook(lambda _, images: seen.append(tuple(images[0].shape[2:])))
        break
    list(sample_probabilities(network, smooth_image(SHAPE), head=REGIONS, settings=small))
    assert max(max(shape) for shape in seen) <= 6


def test_prediction_takes_the_mean_over_samples() -> None:
    network, image = variational(), smooth_image(SHAPE)
    settings = PredictSettings(samples=4, posterior="coarse")
    result = predict_prepared(network, image, head=REGIONS, settings=settings)
    samples = draw(network, image)
    torch.testing.assert_close(result.statistics.probability, samples.mean(0))
    counts = (samples > 0.5).sum(dim=(2, 3, 4))
    assert torch.equal(result.sample_voxels, counts)
