"""From generative models to masks with whole borders and looks with a texture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Generator, Tensor

from medseg.generative.base import GenerativeBase
from medseg.generative.vae import Vae

# Roughness of a drawn border, in voxels of the cube.
_BORDER_VOXELS = 2.0
_FEWEST_SHARE = 0.004
_TRIES = 8


@dataclass(frozen=True, eq=False)
class CodeSpread:
    """Where the codes of the training items lie: a Gaussian with their moments.

    A VAE fitted to a few dozen lesions leaves large parts of N(0, I) without any of their codes,
    and what it decodes there is no lesion. Codes are therefore drawn from their own distribution,
    fitted after the VAE.

    References
    ----------
    Ghosh et al. (2020), From variational to deterministic autoencoders, section 4.

    Parameters
    ----------
    mean : Tensor, shape (k,)
    root : Tensor, shape (k, k)
        Lower triangular; times its transpose it is the covariance.
    """

    mean: Tensor
    root: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: Vae, items: Tensor, condition: Tensor | None = None) -> CodeSpread:
        """Return the moments of the codes of ``items``, each with its own uncertainty."""
        u = model.standardiser(model.vectors(items, condition))
        means, log_stds = model.encoder(u, condition)
        own = (2 * log_stds).exp().mean(0)
        covariance = torch.cov(means.T).reshape(len(own), -1) + torch.diag(own)
        root = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(len(own)))
        # Row by row, as it is after loading: products then round alike.
        return cls(means.mean(0), root.contiguous())

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Return ``n`` codes, (n, k)."""
        return self.mean + torch.randn(n, len(self.mean), generator=generator) @ self.root.T

    def describe(self) -> dict[str, Any]:
        """Return the moments as JSON."""
        return {"mean": self.mean.tolist(), "root": self.root.tolist()}

    @classmethod
    def restore(cls, text: Mapping[str, Any]) -> CodeSpread:
        """Return what :meth:`describe` gave."""
        return cls(torch.tensor(text["mean"]), torch.tensor(text["root"]))


def smooth_normal(shape: tuple[int, ...], voxels: float, generator: Generator) -> Tensor:
    """Return standard normal numbers, correlated over about ``voxels`` along the last three axes.

    White noise under a Gaussian of deviation s is correlated by ``exp(-d^2 / 4 s^2)`` at distance
    d; what is returned has mean 0 and variance 1 in every place.
    """
    white = torch.randn(shape, generator=generator)
    if voxels <= 0:
        return white
    sigma = [0.0] * (len(shape) - 3) + [voxels] * 3
    field = ndimage.gaussian_filter(white.numpy(), sigma, mode="wrap", truncate=3.0)
    unit = np.zeros((1,) * (len(shape) - 3) + shape[-3:], dtype=np.float32)
    unit[..., 0, 0, 0] = 1.0
    kernel = ndimage.gaussian_filter(unit, sigma, mode="wrap", truncate=3.0)
    return torch.from_numpy(field / np.sqrt(np.square(kernel).sum()))


@torch.no_grad()
def draw_levels(
    shape: GenerativeBase, codes: CodeSpread | None, n: int, *, generator: Generator
) -> Tensor:
    """Return ``n`` masks as levels above 0 inside, (n, k, s, s, s), innermost part first.

    Where the model tells the chance p of each voxel, all coins are thrown with one correlated
    number U per place: inside is U < p. Each voxel keeps its chance, and neighbours agree, which
    independent coins would not. Of other kinds the sample itself is taken, smoothed and cut at one
    half. Empty masks are drawn again.
    """
    found: list[Tensor] = []
    for _ in range(_TRIES):
        chance = _chances(shape, codes, n, generator)
        numbers = smooth_normal((n, 1, *chance.shape[2:]), _BORDER_VOXELS, generator)
        uniform = torch.special.ndtr(numbers)
        levels = chance.cummax(dim=1).values - uniform
        filled = (levels[:, -1] > 0).float().mean(dim=(1, 2, 3)) > _FEWEST_SHARE
        found += [_largest(level) for level in levels[filled]]
        if len(found) >= n:
            return torch.stack(found[:n])
    missing = n - len(found)
    ball = _ball(shape.event_shape)
    return torch.stack([*found, *[ball] * missing])


def _chances(
    shape: GenerativeBase, codes: CodeSpread | None, n: int, generator: Generator
) -> Tensor:
    if codes is not None:
        return shape.decode(codes.draw(n, generator)).clamp(0.0, 1.0)
    drawn = shape.sample(n, generator=generator).clamp(0.0, 1.0).numpy()
    return torch.from_numpy(ndimage.gaussian_filter(drawn, (0, 0, 0.7, 0.7, 0.7)))


def _largest(level: Tensor) -> Tensor:
    """Return levels without islands: a drawn lesion is one body."""
    names, count = ndimage.label((level[-1] > 0).numpy(), structure=np.ones((3, 3, 3)))  # type: ignore[misc]
    if count < 2:
        return level
    largest = int(np.bincount(names.ravel())[1:].argmax()) + 1
    outside = torch.from_numpy(names != largest)
    return torch.where(outside, level.clamp(max=-0.05), level)


def _ball(event_shape: tuple[int, ...]) -> Tensor:
    axes = [torch.linspace(-1, 1, length) for length in event_shape[1:]]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
    return torch.stack([0.7 * (k + 1) / event_shape[0] - radius for k in range(event_shape[0])])


@torch.no_grad()
def draw_images(
    looks: GenerativeBase,
    codes: CodeSpread | None,
    condition: Tensor,
    *,
    texture: float,
    generator: Generator,
) -> Tensor:
    """Return looks under conditions (m, maps), (m, c, s, s, s).

    A VAE's mean is a blurred picture, and its noise knows no neighbours: the noise is drawn with
    the correlation that was measured.
    """
    n = len(condition)
    if codes is None or not isinstance(looks, Vae):
        return looks.sample(n, generator=generator, condition=condition)
    mean, log_std = looks.decoder(codes.draw(n, generator), condition)
    noise = smooth_normal((n, *looks.event_shape), correlation_to_voxels(texture), generator)
    u = mean + log_std.exp() * noise.flatten(1)
    return looks.standardiser.inverse(u).reshape(n, *looks.event_shape)


def correlation_to_voxels(correlation: float) -> float:
    """Return the deviation of the Gaussian under which neighbours are correlated this much.

    Examples
    --------
    >>> round(math.exp(-1 / (4 * correlation_to_voxels(0.7) ** 2)), 6)
    0.7
    """
    if correlation <= 0.0:
        return 0.0
    return 1.0 / math.sqrt(-4.0 * math.log(min(correlation, 0.99)))


@torch.no_grad()
def texture_correlation(
    looks: GenerativeBase, images: Tensor, condition: Tensor, inside: Tensor
) -> float:
    """Return the correlation between neighbours of what the mean leaves open inside lesions."""
    if not isinstance(looks, Vae):
        return 0.0
    rest = (images - looks.reconstruct(images, condition=condition)) * inside
    products, squares = 0.0, 0.0
    for axis in (2, 3, 4):
        length = rest.shape[axis] - 1
        first, second = rest.narrow(axis, 0, length), rest.narrow(axis, 1, length)
        both = (inside.narrow(axis, 0, length) & inside.narrow(axis, 1, length)).float()
        products += float((first * second * both).sum())
        squares += float(((first.square() + second.square()) / 2 * both).sum())
    return min(max(products / squares, 0.0), 0.95) if squares > 0 else 0.0
