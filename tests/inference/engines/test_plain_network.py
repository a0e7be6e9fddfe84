"""The copy that compilers get computes what the network does, in plain operations."""

import dataclasses

import pytest
import torch
from torch import nn

from medseg.errors import ModelError, ShapeError
from medseg.inference.engines.plain import example_images, image_layout, plain_network
from medseg.networks.convolution import PointwiseConv
from medseg.networks.norm_act import InstanceNormAct
from medseg.networks.unet import UNet, UNetSettings
from medseg.seeding import seeded_torch, torch_generator
from medseg.variational.convert import to_variational, variational_layers
from medseg.variational.settings import VariationalSettings

BASE = UNetSettings(dims=3, in_channels=2, out_channels=3, widths=(4, 6, 6))
VARIANTS = {
    "residual, add, nearest, relu": {},
    "plain, concat, transposed, leaky": {
        "residual": False,
        "skip": "concat",
        "upsampling": "transposed",
        "bias": True,
        "activation": "leaky_relu",
    },
    "linear, elu": {"upsampling": "linear", "activation": "elu", "bias": True},
    "slices": {"dims": 2},
    "slices, linear": {"dims": 2, "upsampling": "linear"},
    "one channel": {"in_channels": 1},
}


def build(name: str) -> UNet:
    with seeded_torch(0, "plain"):
        return UNet(dataclasses.replace(BASE, **VARIANTS[name])).eval()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("size", [(1, 1, 1), (5, 1, 9), (8, 12, 8)])
def test_plain_network_computes_the_same(name: str, size: tuple[int, ...]) -> None:
    network = build(name)
    layout = image_layout(network)
    images = torch.randn(
        2, layout.channels, *size[: layout.dims], generator=torch_generator(0, "images")
    )
    with torch.no_grad():
        torch.testing.assert_close(
            plain_network(network)(images), network(images), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_plain_network_has_no_layer_of_ours(name: str) -> None:
    ours = (InstanceNormAct, PointwiseConv)
    layers = list(plain_network(build(name)).modules())
    assert not [layer for layer in layers if isinstance(layer, ours)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Conv3d)]
    assert {type(layer) for layer in convolutions} <= {nn.Conv2d, nn.Conv3d}


def test_every_level_of_the_example_is_odd() -> None:
    for levels in (2, 3, 5):
        network = UNet(dataclasses.replace(BASE, widths=(2,) * levels))
        side = example_images(network).shape[-1]
        for _ in range(levels - 1):
            assert side % 2 == 1
            side = (side + 1) // 2


def test_a_variational_network_gives_its_means() -> None:
    network = build("linear, elu")
    twin = to_variational(network, settings=VariationalSettings())
    images = torch.randn(1, 2, 7, 8, 9, generator=torch_generator(0, "images"))
    plain = plain_network(twin)
    assert variational_layers(twin)
    assert not variational_layers(plain)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), network(images), rtol=1e-3, atol=1e-4)


def test_the_network_is_not_changed() -> None:
    network = build("linear, elu").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    copy = plain_network(network)
    for parameter in copy.parameters():
        parameter.data += 1
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_networks_of_other_kinds_are_understood() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    assert image_layout(network) == (3, 2)
    images = torch.randn(1, 3, 5, 4)
    torch.testing.assert_close(plain_network(network)(images), network(images))
    with pytest.raises(ModelError, match="eager"):
        image_layout(nn.Linear(2, 2))


def test_images_of_another_layout_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(b, 2, \*s\)"):
        image_layout(build("slices")).check(torch.zeros(1, 3, 4, 4))
