"""A prediction held against the scan's own intensities.

A network that learned from a few scans mistakes a brightness it has not seen. The scan itself tells
its tissues apart: a Gaussian mixture of its voxels, with the network's probabilities as the prior
of each voxel and what labelled scans look like as the prior of the mixture, is fitted to every scan
anew by variational Bayes. The network stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from medseg.inference.intensity_prior import IntensityPrior

#: Change of all chances, as a share of what lies inside, below which a mixture has settled.
_SETTLED = 1e-3
#: Voxels whose moments are summed at a time.
_CHUNK = 65_536


@dataclass(eq=False)
class IntensityMixture:
    """Variational posterior of one scan's mixture, and of what each voxel is.

    Each update raises the bound: that of the Gaussians and weights given the voxels (normal-Wishart
    and Dirichlet), and that of the voxels given these and their neighbours, every second voxel at a
    time. The likelihood counts to a power. All six neighbours count alike: voxels are taken to be
    about as long along each axis.

    Parameters
    ----------
    intensities : Tensor, shape (v, c)
        Of the voxels looked at.
    log_prior : Tensor, shape (t, v)
        Log probability of each tissue in each voxel.
    inside : Tensor, shape (x, y, z), bool
        Where these v voxels are.
    prior : IntensityPrior
    channels : sequence of int
        Which of the prior's channels the c are.

    References
    ----------
    Attias 2000, "A variational Bayesian framework for graphical models"; Bishop 2006, "Pattern
    recognition and machine learning", section 10.2. Network outputs in the place of an atlas: Van
    Leemput et al. 1999, "Automated model-based tissue classification of MR images of the brain".
    """

    intensities: Tensor
    log_prior: Tensor
    inside: Tensor
    prior: IntensityPrior
    channels: Sequence[int]

    def __post_init__(self) -> None:
        double = {"dtype": torch.float64, "device": self.intensities.device}
        picked = torch.tensor(list(self.channels), device=self.intensities.device)
        self.tissues = torch.tensor(self.prior.tissues, device=self.intensities.device)
        count = self.prior.settings.prior_voxels
        self.prior_alpha = count * torch.tensor(self.prior.weights, **double)
        self.prior_mean = torch.tensor(self.prior.means, **double)[:, picked]
        spread = torch.tensor(self.prior.covariances, **double)[:, picked][:, :, picked]
        # The mean of the precision is then that of the labelled scans.
        self.prior_degrees = count + len(picked) + 1.0
        self.prior_scatter = self.prior_degrees * spread
        self.alpha, self.mean = self.prior_alpha, self.prior_mean
        self.count = torch.full_like(self.prior_alpha, count)
        self.degrees = torch.full_like(self.prior_alpha, self.prior_degrees)
        self.scatter = self.prior_scatter
        # Densities and moments are sums over 1, x and the products of x with itself.
        self.rows, self.columns = torch.triu_indices(len(picked), len(picked), device=picked.device)
        seen = self.intensities.T
        squares = seen[self.rows] * seen[self.columns]
        self.features = torch.cat([torch.ones_like(seen[:1]), seen, squares])
        self.places = self.inside.flatten().nonzero()[:, 0]
        self.colour = self.inside.nonzero().sum(1) % 2 == 0
        self.chances = self.log_prior.softmax(0)
        self.update_voxels()

    def expected_log_likelihood(self) -> Tensor:
        """Return the expected log of weight times density, (J, v), in nats."""
        channels = self.mean.shape[1]
        precision = self.degrees[:, None, None] * torch.linalg.inv(self.scatter)
        steps = torch.arange(channels, dtype=torch.float64, device=self.mean.device)
        log_precision = (
            torch.digamma((self.degrees[:, None] - steps) / 2).sum(1)
            + channels * math.log(2)
            - torch.linalg.slogdet(self.scatter).logabsdet
        )
        total = torch.zeros(len(self.log_prior), dtype=torch.float64, device=self.mean.device)
        total.index_add_(0, self.tissues, self.alpha)
        pull = (precision @ self.mean[:, :, None])[:, :, 0]
        constant = (
            torch.digamma(self.alpha)
            - torch.digamma(total[self.tissues])
            + 0.5 * (log_precision - channels * math.log(2 * math.pi) - channels / self.count)
            - 0.5 * (pull * self.mean).sum(1)
        )
        # Products of different channels stand for two.
        twice = torch.where(self.rows == self.columns, 0.5, 1.0).to(precision)
        products = -twice * precision[:, self.rows, self.columns]
        factors = torch.cat([constant[:, None], pull, products], dim=1)
        return factors.to(self.features.dtype) @ self.features

    def update_voxels(self) -> None:
        """Update what each voxel is: ``chances`` (t, v) and ``parts`` (J, v) of each Gaussian."""
        chosen = self.prior.settings
        each = self.expected_log_likelihood()
        evidence = torch.stack(
            [each[self.tissues == index].logsumexp(0) for index in range(len(self.log_prior))]
        )
        belief = self.log_prior + chosen.likelihood_power * evidence
        for now in (self.colour, ~self.colour):
            field = neighbour_sum(self.chances, self.places, self.inside.shape)
            renewed = field.mul_(chosen.neighbour_nats).add_(belief).softmax(0)
            self.chances = torch.where(now, renewed, self.chances)
        self.parts = each.sub_(evidence[self.tissues]).exp_().mul_(self.chances[self.tissues])

    def update_gaussians(self) -> None:
        """Update the Gaussians and their weights."""
        # In double precision: second moments are differences of large sums.
        pairs = zip(self.parts.split(_CHUNK, 1), self.features.split(_CHUNK, 1), strict=True)
        summed = torch.stack([parts.double() @ seen.double().T for parts, seen in pairs]).sum(0)
        moments = self.prior.settings.likelihood_power * summed
        channels, before = self.mean.shape[1], self.prior.settings.prior_voxels
        own, first = moments[:, 0], moments[:, 1 : 1 + channels]
        second = torch.empty_like(self.scatter)
        second[:, self.rows, self.columns] = moments[:, 1 + channels :]
        second[:, self.columns, self.rows] = moments[:, 1 + channels :]
        self.alpha = self.prior_alpha + own
        self.count = before + own
        self.degrees = self.prior_degrees + own
        self.mean = (before * self.prior_mean + first) / self.count[:, None]
        self.scatter = (
            self.prior_scatter
            + second
            + before * _outer(self.prior_mean)
            - self.count[:, None, None] * _outer(self.mean)
        )

    def fit(self) -> Tensor:
        """Return the chance of each tissue in each voxel, (t, v)."""
        for _ in range(self.prior.settings.iterations - 1):
            before = self.chances
            self.update_gaussians()
            self.update_voxels()
            moved = (self.chances - before).abs().sum()
            if float(moved) < _SETTLED * float((1 - self.chances[0]).sum()):
                break
        return self.chances


def _outer(vectors: Tensor) -> Tensor:
    return vectors[:, :, None] * vectors[:, None, :]


def neighbour_sum(chances: Tensor, places: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the sum over the six neighbours of each voxel, (t, v); elsewhere there is nothing.

    Parameters
    ----------
    chances : Tensor, shape (t, v)
    places : Tensor, shape (v,), int64
        Of the voxels in the flattened volume.
    shape : sequence of int
        Of the volume.
    """
    volume = chances.new_zeros((len(chances), math.prod(shape)))
    volume[:, places] = chances
    volume = volume.view(-1, *shape)
    total = torch.zeros_like(volume)
    for axis, length in enumerate(shape, start=1):
        total.narrow(axis, 1, length - 1).add_(volume.narrow(axis, 0, length - 1))
        total.narrow(axis, 0, length - 1).add_(volume.narrow(axis, 1, length - 1))
    return total.flatten(1)[:, places]


def refined(probability: Tensor, image: Tensor, inside: Tensor, prior: IntensityPrior) -> Tensor:
    """Return the chance of each region once the scan's intensities are seen.

    Parameters
    ----------
    probability : Tensor, shape (r, x, y, z)
        Of the prior's regions, in its order.
    image : Tensor, shape (c, x, y, z)
        Channels that are 0 throughout are missing, and are not looked at.
    inside : Tensor, shape (x, y, z), bool
        The brain; elsewhere the probability is returned as it is.
    prior : IntensityPrior

    Returns
    -------
    Tensor, shape (r, x, y, z)
        Of inner regions never above that of outer ones, inside.
    """
    channels = [index for index, channel in enumerate(image) if bool(channel.any())]
    if not channels or not bool(inside.any()):
        return probability
    # An inner region lies in its outer one, whatever the network says.
    within = probability[:, inside].float().cummin(0).values
    edges = torch.cat([torch.ones_like(within[:1]), within, torch.zeros_like(within[:1])])
    tissues = (edges[:-1] - edges[1:]).clamp(min=prior.settings.least_probability)
    mixture = IntensityMixture(
        intensities=image[channels][:, inside].T.float().contiguous(),
        log_prior=(tissues / tissues.sum(0)).log(),
        inside=inside,
        prior=prior,
        channels=channels,
    )
    chances = mixture.fit()
    found = probability.clone()
    found[:, inside] = chances.flip(0).cumsum(0).flip(0)[1:].clamp(0, 1).to(found.dtype)
    return found


def held_against(
    samples: Iterable[Tensor],
    image: Tensor,
    inside: Tensor | None,
    names: Sequence[str],
    prior: IntensityPrior | None,
) -> Iterator[Tensor]:
    """Yield samples of a prediction as they are, or mixed with what the scan's intensities say.

    The mixture is fitted once, with the mean of the samples as its prior; its belief is the same in
    all of them, so that they spread less than the network's own. They are kept meanwhile, in half
    precision where they are several. Where the network is sure that a region is not, as far as the
    settings let it be, intensities alone do not make it more likely than not.

    Parameters
    ----------
    samples : iterable of Tensor, shape (n, x, y, z)
        Probabilities of the regions ``names`` come first; other channels are left alone.
    image, inside
        As in :func:`refined`; None: the box of what is not 0.
    prior : IntensityPrior, optional
    """
    if prior is None:
        yield from samples
        return
    kept = list(_halved(samples))
    rows = [list(names).index(name) for name in prior.regions]
    mean = cast(Tensor, sum(sample[rows].float() for sample in kept) / len(kept))
    brain = image.ne(0).any(0) if inside is None else inside
    belief = refined(mean, image.to(kept[0].device), brain.to(kept[0].device), prior)
    share = prior.settings.share
    # However bright: tissue like a lesion's is found far from lesions, too.
    most = torch.where(mean < prior.settings.least_probability, 0.5, 1.0)
    for sample in kept:
        mixed = sample.to(torch.float32, copy=True)
        mixed[rows] = ((1 - share) * mixed[rows] + share * belief).minimum(most)
        yield mixed


def _halved(samples: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield samples in half precision, but the only one as it is."""
    drawn = iter(samples)
    first, second = next(drawn), next(drawn, None)
    if second is None:
        yield first
        return
    for sample in chain((first, second), drawn):
        yield sample.half()
