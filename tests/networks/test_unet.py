"""Laws of the U-Net beyond the contract every network has."""

import dataclasses
import itertools

import pytest
import torch
from jaxtyping import TypeCheckError
from pydantic import ValidationError
from torch import nn

from medseg.errors import ConfigError, ShapeError
from medseg.networks.conv_factory import TorchConvFactory
from medseg.networks.convolution import PointwiseConv
from medseg.networks.norm_act import InstanceNormAct
from medseg.networks.presets import unet_2d, unet_3d, unet_short_3d
from medseg.networks.unet import UNet, UNetSettings
from medseg.seeding import seeded_torch


class CountingFactory:
    """Makes torch's layers and remembers them."""

    def __init__(self, dims: int) -> None:
        self.make = TorchConvFactory(dims)  # pyright: ignore[reportArgumentType]
        self.made: list[nn.Module] = []

    def __call__(self, in_channels, out_channels, *, kernel_size, stride=1, bias):
        layer = self.make(
            in_channels, out_channels, kernel_size=kernel_size, stride=stride, bias=bias
        )
        self.made.append(layer)
        return layer


def kernel_3_layers(network: nn.Module) -> set[nn.Module]:
    return {
        layer
        for layer in network.modules()
        if isinstance(layer, nn.modules.conv._ConvNd) and set(layer.kernel_size) == {3}
    }


@pytest.mark.parametrize(
    ("preset", "count"), [(unet_short_3d, 8 + 3), (unet_3d, 12 + 10), (unet_2d, 10 + 8)]
)
def test_every_3_kernel_comes_from_the_factory(preset, count):
    settings = preset(2, 2)
    factory = CountingFactory(settings.dims)
    network = UNet(settings, factory)
    assert len(factory.made) == count
    assert set(factory.made) == kernel_3_layers(network)


def small(**changes) -> UNet:
    settings = UNetSettings(in_channels=2, out_channels=3, widths=(4, 6, 8))
    with seeded_torch(0, "network"):
        return UNet(dataclasses.replace(settings, **changes))


@pytest.mark.parametrize(
    ("dims", "skip", "upsampling", "residual"),
    itertools.product((2, 3), ("add", "concat"), ("nearest", "linear", "transposed"), (0, 1)),
)
def test_every_combination_of_settings_runs(dims, skip, upsampling, residual):
    network = small(dims=dims, skip=skip, upsampling=upsampling, residual=bool(residual), bias=True)
    image = torch.randn(1, 2, *(9, 8, 10)[:dims])
    out = network(image)
    out.square().sum().backward()
    assert out.shape == (1, 3, *image.shape[2:])
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_bias_free_logits_ignore_the_scale_of_the_image(scale):
    with seeded_torch(0, "network"):
        network = UNet(unet_short_3d(2, 2))
    image = 10 * torch.randn(1, 2, 16, 16, 16)
    torch.testing.assert_close(network(scale * image), network(image), rtol=1e-3, atol=1e-3)
    names = [name for name, _ in network.named_parameters()]
    assert not [name for name in names if "bias" in name or "shift" in name]


def test_biased_logits_do_not():
    network = small(bias=True)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, InstanceNormAct) and layer.shift is not None:
                layer.shift.add_(0.5)
            if isinstance(layer, PointwiseConv) and layer.bias is not None:
                layer.bias.add_(1.0)
    zeros = network(torch.zeros(1, 2, 8, 8, 8))
    assert zeros.abs().min() > 0


def test_no_bias_where_a_normalisation_would_cancel_it():
    assert all(layer.bias is None for layer in kernel_3_layers(UNet(unet_3d(1, 1))))


@pytest.mark.parametrize("channels", [1, 2])
def test_stays_channels_last_inside(channels):
    network = small(in_channels=channels)
    orders = []
    for layer in kernel_3_layers(network):
        layer.register_forward_hook(
            lambda module, inputs, out: orders.append(
                out.is_contiguous(memory_format=torch.channels_last_3d) and not out.is_contiguous()
            )
        )
    network(torch.randn(2, channels, 8, 8, 8))
    assert len(orders) == 10
    assert all(orders)


def test_starts_with_logits_of_order_one():
    for seed in range(3):
        with seeded_torch(seed, "network"):
            network = UNet(unet_short_3d(2, 2))
            logits = network(torch.randn(1, 2, 16, 16, 16))
        assert 0.2 < logits.std() < 5


def test_a_step_down_the_gradient_lowers_the_loss():
    network = small()
    image = torch.randn(2, 2, 8, 8, 8)
    target = (image[:, :1] > 0.5).float().expand(-1, 3, -1, -1, -1)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = nn.functional.binary_cross_entropy_with_logits(network(image), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("shape", [(1, 3, 8, 8, 8), (1, 2, 8, 8), (2, 8, 8, 8), (1, 2, 0, 8, 8)])
def test_refuses_images_of_another_kind(shape):
    with pytest.raises((ShapeError, TypeCheckError), match=r"\d"):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(
    "wrong", [{"dims": 4}, {"widths": (4,)}, {"skip": "multiply"}, {"depth": 3}, {"in_channels": 0}]
)
def test_settings_refuse_what_they_do_not_know(wrong):
    values = {"in_channels": 1, "out_channels": 1, **wrong}
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        UNetSettings(**values)


def test_refuses_widths_without_channels():
    with pytest.raises(ConfigError, match="0"):
        UNet(UNetSettings(in_channels=1, out_channels=1, widths=(4, 0)))
