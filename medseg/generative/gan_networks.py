"""The two players of a GAN: dense for vectors and kernels, convolutional for patches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medseg.errors import ShapeError
from medseg.generative.layers import convolution, dense, join, linear, transposed_convolution

#: From a number of samples to that many, (n, d) or (n, *event), and their conditions.
Sampler = Callable[[int], tuple[Tensor, Tensor | None]]
# Batches, and samples in each, by which batch norms are measured.
_NORM_BATCHES, _NORM_BATCH = 20, 128
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class LeakyReLU(nn.LeakyReLU):
    """Leaky rectifier with the slope of DCGAN."""

    def __init__(self) -> None:
        super().__init__(0.2)


class DenseGenerator(nn.Module):
    """From codes (m, latent) and conditions (m, c) to vectors (m, d)."""

    def __init__(self, size: int, *, latent: int, hidden: Sequence[int], told: int) -> None:
        super().__init__()
        self.net = dense([latent + told, *hidden, size], activation=LeakyReLU)

    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Return the made items in the units of the game, (m, *event)."""
        return self.net(join(z, condition))


class DenseDiscriminator(nn.Module):
    """From vectors (m, d) and conditions (m, c) to ``log D / (1 - D)``, (m,)."""

    def __init__(self, size: int, *, hidden: Sequence[int], told: int) -> None:
        super().__init__()
        self.net = dense([size + told, *hidden, 1], activation=LeakyReLU)

    def forward(self, u: Tensor, condition: Tensor | None) -> Tensor:
        """Return ``log D / (1 - D)``, (m,)."""
        return self.net(join(u, condition))[:, 0]


class ConvGenerator(nn.Module):
    """Strided transposed convolutions, each doubling the patch, with batch norm, ReLU, then tanh.

    Condition maps are averaged to the size of every stage and joined to it; a patch whose lengths
    do not halve evenly is cut from a larger one.

    References
    ----------
    Radford, Metz and Chintala (2016), Unsupervised representation learning with deep convolutional
    generative adversarial networks, section 3.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        latent: int,
        channels: Sequence[int],
        told: int,
        maps: int,
    ) -> None:
        super().__init__()
        self.event_shape, self.maps = event_shape, maps
        dims, halvings = len(event_shape) - 1, len(channels)
        self.base = tuple(math.ceil(length / 2**halvings) for length in event_shape[1:])
        widths = [*reversed(channels)]
        self.first = linear(latent + (0 if maps else told), widths[0] * math.prod(self.base))
        self.norms = nn.ModuleList([_NORMS[dims](width) for width in widths])
        self.grow = nn.ModuleList(
            [
                transposed_convolution(dims, a + maps, b, kernel_size=4, stride=2, padding=1)
                for a, b in itertools.pairwise([*widths, event_shape[0]])
            ]
        )

    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """Return the made items in the units of the game, (m, *event)."""
        joined = z if self.maps else join(z, condition)
        patch = self.first(joined).reshape(len(z), -1, *self.base)
        for norm, grow in zip(self.norms, self.grow, strict=True):
            patch = torch.relu(norm(patch))
            if self.maps and condition is not None:
                maps = condition.reshape(len(z), self.maps, *self.event_shape[1:])
                patch = torch.cat([patch, _averaged(maps, patch.shape[2:])], 1)
            patch = grow(patch)
        window = tuple(slice(length) for length in self.event_shape[1:])
        return patch[(slice(None), slice(None), *window)].tanh()


class ConvDiscriminator(nn.Module):
    """Strided convolutions, each halving the patch, with leaky ReLU.

    In place of batch norm, each item is normalised alone: what is said of one item must not depend
    on the others, neither for the energy nor for the gradient penalty.
    """

    def __init__(
        self, event_shape: tuple[int, ...], *, channels: Sequence[int], told: int, maps: int
    ) -> None:
        super().__init__()
        self.lengths, self.maps = event_shape[1:], maps
        dims = len(self.lengths)
        if min(self.lengths) < 2 ** len(channels):
            raise ShapeError(
                f"{len(channels)} convolutions that halve a patch need lengths of "
                f"{2 ** len(channels)} or more, but they are {self.lengths}.",
                hint="Give fewer channels, or use the network 'dense'.",
            )
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise([event_shape[0] + told, *channels])):
            layers.append(convolution(dims, a, b, kernel_size=4, stride=2, padding=1))
            if i:
                layers.append(nn.GroupNorm(1, b))
            layers.append(LeakyReLU())
        left = math.prod(length // 2 ** len(channels) for length in self.lengths)
        self.net = nn.Sequential(*layers, nn.Flatten(), linear(channels[-1] * left, 1))

    def forward(self, u: Tensor, condition: Tensor | None) -> Tensor:
        """Return ``log D / (1 - D)``, (m,)."""
        if condition is not None and condition.shape[1]:
            maps = (
                condition.reshape(len(u), self.maps, *self.lengths)
                if self.maps
                else condition.reshape(*condition.shape, *[1] * len(self.lengths)).expand(
                    -1, -1, *self.lengths
                )
            )
            u = torch.cat([u, maps.to(u)], 1)
        return self.net(u)[:, 0]


@torch.no_grad()
def refresh_norms(network: nn.Module, sampler: Sampler) -> None:
    """Give the batch norms of a network the statistics of what ``sampler`` makes with it.

    Those they ran along with belong to other weights where the weights were averaged.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for _ in range(_NORM_BATCHES):
        sampler(_NORM_BATCH)
    for norm in norms:
        norm.momentum = 0.1


def _averaged(maps: Tensor, lengths: Sequence[int]) -> Tensor:
    pool = {
        1: nn.functional.adaptive_avg_pool1d,
        2: nn.functional.adaptive_avg_pool2d,
        3: nn.functional.adaptive_avg_pool3d,
    }
    return pool[len(lengths)](maps, list(lengths))
