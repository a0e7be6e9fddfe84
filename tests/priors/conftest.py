"""Small networks with structured kernels, for tests of harvest and fit."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from medseg.seeding import seeded_torch, torch_generator

MakeNetwork = Callable[..., nn.Module]


class ToyNet(nn.Module):
    """Four convolutions in nested modules, one of size 2 and a head of size 1."""

    def __init__(self, *, dims: int = 3, seed: int = 0, width: int = 8) -> None:
        super().__init__()
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        with seeded_torch(seed, "toy"):
            self.down = nn.Sequential(conv(2, width, 3, padding=1), conv(width, 8, 3, padding=1))
            self.halve = conv(8, 8, 2, stride=2)
            self.up = nn.ModuleDict({"first": conv(8, 8, 3), "second": conv(8, 4, 3)})
            self.head = conv(4, 1, 1)


def structure(layers: Sequence[nn.Module], *, seed: int) -> None:
    """Make neighbours alike, kernels of different sizes, and layers of different scales."""
    generator = torch_generator(seed, "structure")
    for depth, layer in enumerate(layers):
        weight = layer.weight
        noise = torch.randn(weight.shape, generator=generator)  # type: ignore[arg-type]
        smooth = noise + noise.roll(1, -1) + noise.roll(1, -2)
        size = (0.6 * torch.randn(weight.shape[:2], generator=generator)).exp()  # type: ignore[index]
        size = size.reshape(*size.shape, *[1] * (noise.ndim - 2))
        with torch.no_grad():
            weight.copy_(0.02 * (depth + 1) * size * smooth)  # type: ignore[operator]


@pytest.fixture(scope="session")
def make_network() -> MakeNetwork:
    """Return a maker of networks whose 3-kernels are in down.0, down.1, up.first and up.second."""

    def make(*, dims: int = 3, seed: int = 0, width: int = 8) -> nn.Module:
        network = ToyNet(dims=dims, seed=seed, width=width)
        structure([*network.down, *network.up.values()], seed=seed)
        return network

    return make
