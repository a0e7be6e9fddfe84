"""A prediction held against the scan's own intensities.

A network that learned from a few scans mistakes a brightness it has not seen. The scan itself tells
its tissues apart: a Gaussian mixture of its voxels, with the network's probabilities as the prior
of each voxel and what labelled scans look like as the prior of the mixture, is fitted to every scan
anew by variational Bayes. The network stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from pydantic import Field
from sklearn.mixture import GaussianMixture
from torch import Tensor

from medseg.data.training_set import TrainingCase
from medseg.errors import ConfigError, DataError
from medseg.settings import settings

#: Voxels of each tissue that its mixture is fitted to, at most, and per component at least.
_MOST_VOXELS, _LEAST_VOXELS = 20_000, 20
#: Added to variances of normalised intensities: a tissue without noise would be a needle.
_LEAST_VARIANCE = 0.02


@settings
class RefinementSettings:
    """How far a scan's intensities may change what the network says of it."""

    #: Gaussians of what lies outside every region, and of each tissue inside.
    outside_components: int = Field(default=4, ge=1)
    components: int = Field(default=3, ge=1)
    #: Voxels that the look of the labelled scans counts for, in each Gaussian.
    prior_voxels: float = Field(default=10.0, gt=0)
    #: Power of the likelihood: neighbours share their noise, so that a voxel is less than one.
    likelihood_power: float = Field(default=0.5, ge=0, le=1)
    #: Nats that each of the six neighbours of the same tissue is worth.
    neighbour_nats: float = Field(default=0.5, ge=0)
    #: The network counts as no surer of a tissue than this chance to be wrong.
    least_probability: float = Field(default=0.01, gt=0, lt=0.5)
    #: Weight of the mixture's belief beside the network's own.
    share: float = Field(default=0.5, ge=0, le=1)
    iterations: int = Field(default=15, ge=1)


@settings
class IntensityPrior:
    """What labelled scans look like, tissue by tissue; part of a model's description.

    Parameters
    ----------
    regions : tuple of str
        Nested, the outermost first. Tissue 0 is outside all, tissue i in region i - 1 alone.
    tissues : tuple of int
        Tissue of each of the J Gaussians.
    weights : tuple of float
        Of each Gaussian in its tissue; they add up to 1 there.
    means : J tuples of c
    covariances : J tuples of c tuples of c
    settings : RefinementSettings
    """

    regions: tuple[str, ...] = Field(min_length=1)
    tissues: tuple[int, ...]
    weights: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]
    covariances: tuple[tuple[tuple[float, ...], ...], ...]
    settings: RefinementSettings = RefinementSettings()


def nested(definition: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Return the regions of a definition from the outermost to the innermost.

    Raises
    ------
    ConfigError
        Of two regions neither holds the other.

    Examples
    --------
    >>> nested({"core": (1, 4), "whole": (1, 2, 4)})
    ('whole', 'core')
    """
    order = sorted(definition, key=lambda name: -len(set(definition[name])))
    for outer, inner in pairwise(order):
        if not set(definition[inner]) < set(definition[outer]):
            raise ConfigError(
                f"Refinement by intensities needs regions that lie in each other, but {inner!r} "
                f"(labels {sorted(definition[inner])}) is not a part of {outer!r} "
                f"(labels {sorted(definition[outer])}).",
                hint="Leave the refinement out, or predict regions such as whole and core.",
            )
    return tuple(order)


def fit_intensity_prior(
    cases: Sequence[TrainingCase],
    names: Sequence[str],
    definition: Mapping[str, Sequence[int]],
    *,
    chosen: RefinementSettings | None = None,
    seed: int = 0,
) -> IntensityPrior:
    """Return how the tissues of labelled cases look, all cases together.

    Parameters
    ----------
    cases : sequence of TrainingCase
        Those that lack a channel or a region are left out.
    names : sequence of str
        Regions in the order of the cases' channels.
    definition : mapping of str to sequence of int
        Labels that make up each region; they say which region lies in which.

    Raises
    ------
    ConfigError
        The regions do not lie in each other.
    DataError
        No case has everything, or a tissue is in none of them.
    """
    chosen = chosen or RefinementSettings()
    order = nested({name: definition[name] for name in names})
    rows = [list(names).index(name) for name in order]
    whole = [case for case in cases if bool(case.present.all()) and bool(case.known.all())]
    found: list[list[np.ndarray]] = [[] for _ in range(len(order) + 1)]
    for case in whole:
        tissue = (case.regions[rows] > 0.5).sum(0)[case.brain]
        seen = case.image[:, case.brain].T
        for index, voxels in enumerate(found):
            voxels.append(seen[tissue == index].double().numpy())
    generator = np.random.default_rng(seed)
    tissues, weights, means, covariances = [], [], [], []
    for index, voxels in enumerate(found):
        seen = np.concatenate(voxels) if voxels else np.empty((0, 0))
        wanted = chosen.components if index else chosen.outside_components
        count = min(wanted, len(seen) // _LEAST_VOXELS)
        if count == 0:
            where = f"in {order[index - 1]!r} alone" if index else "outside every region"
            raise DataError(
                f"Refinement by intensities needs {_LEAST_VOXELS} labelled voxels of each tissue, "
                f"but {len(seen)} of {len(whole)} complete cases lie {where}.",
                hint="Leave the refinement out, or give cases that show every region.",
            )
        some = seen[generator.permutation(len(seen))[:_MOST_VOXELS]]
        mixture = GaussianMixture(count, reg_covar=_LEAST_VARIANCE, random_state=seed).fit(some)
        tissues += [index] * count
        weights += mixture.weights_.tolist()
        means += [tuple(mean) for mean in mixture.means_.tolist()]
        covariances += [tuple(map(tuple, one)) for one in mixture.covariances_.tolist()]
    return IntensityPrior(
        regions=order,
        tissues=tuple(tissues),
        weights=tuple(weights),
        means=tuple(means),
        covariances=tuple(covariances),
        settings=chosen,
    )


@dataclass(eq=False)
class IntensityMixture:
    """Variational posterior of one scan's mixture, and of what each voxel is.

    Each update raises the bound: that of the Gaussians and weights given the voxels (normal-Wishart
    and Dirichlet), and that of the voxels given these and their neighbours, every second voxel at a
    time. The likelihood counts to a power.

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
        places = self.inside.nonzero().sum(1) % 2
        self.colours = [places == 0, places == 1]
        self.chances = self.log_prior.softmax(0)
        self.update_voxels()

    def expected_log_likelihood(self) -> Tensor:
        """Return the expected log of weight times density, (J, v), in nats."""
        channels = self.mean.shape[1]
        root = torch.linalg.cholesky(self.scatter)
        steps = torch.arange(channels, dtype=torch.float64, device=self.mean.device)
        log_precision = (
            torch.digamma((self.degrees[:, None] - steps) / 2).sum(1)
            + channels * math.log(2)
            - 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
        )
        total = torch.zeros(int(self.tissues.max()) + 1, dtype=torch.float64, device=root.device)
        total.index_add_(0, self.tissues, self.alpha)
        log_weight = torch.digamma(self.alpha) - torch.digamma(total[self.tissues])
        constant = log_weight + 0.5 * (
            log_precision - channels * math.log(2 * math.pi) - channels / self.count
        )
        found = []
        unit = torch.eye(channels, dtype=torch.float64, device=root.device)
        for index in range(len(self.tissues)):
            whiten = torch.linalg.solve_triangular(root[index], unit, upper=False)
            whiten = (whiten * self.degrees[index].sqrt()).to(self.intensities.dtype)
            away = (self.intensities - self.mean[index].to(whiten.dtype)) @ whiten.T
            found.append(constant[index].to(whiten.dtype) - 0.5 * away.square().sum(1))
        return torch.stack(found)

    def update_voxels(self) -> None:
        """Update what each voxel is: ``chances`` (t, v) and ``parts`` (J, v) of each Gaussian."""
        chosen = self.prior.settings
        scaled = chosen.likelihood_power * self.expected_log_likelihood()
        evidence = torch.stack(
            [scaled[self.tissues == index].logsumexp(0) for index in range(len(self.log_prior))]
        )
        belief = self.log_prior + evidence
        for colour in self.colours:
            field = chosen.neighbour_nats * neighbour_sum(self.chances, self.inside)
            self.chances[:, colour] = (belief + field)[:, colour].softmax(0)
        self.parts = self.chances[self.tissues] * (scaled - evidence[self.tissues]).exp()

    def update_gaussians(self) -> None:
        """Update the Gaussians and their weights."""
        parts = self.prior.settings.likelihood_power * self.parts
        seen = self.intensities
        own = parts.sum(1, dtype=torch.float64)
        first = (parts @ seen).double()
        mean = first / own.clamp(min=1e-12)[:, None]
        self.alpha, before = self.prior_alpha + own, self.prior.settings.prior_voxels
        self.count = before + own
        self.degrees = self.prior_degrees + own
        self.mean = (before * self.prior_mean + first) / self.count[:, None]
        shift = mean - self.prior_mean
        pulled = (before * own / self.count)[:, None, None] * shift[:, :, None] * shift[:, None, :]
        inner = torch.stack(
            [
                ((seen - middle.to(seen.dtype)) * part[:, None]).T @ (seen - middle.to(seen.dtype))
                for middle, part in zip(mean, parts, strict=True)
            ]
        )
        self.scatter = self.prior_scatter + inner.double() + pulled

    def fit(self) -> Tensor:
        """Return the chance of each tissue in each voxel, (t, v)."""
        for _ in range(self.prior.settings.iterations - 1):
            self.update_gaussians()
            self.update_voxels()
        return self.chances


def neighbour_sum(chances: Tensor, inside: Tensor) -> Tensor:
    """Return the sum over the six neighbours of each voxel, (t, v); outside there is nothing."""
    found = torch.empty_like(chances)
    for index, chance in enumerate(chances):
        volume = chance.new_zeros([length + 2 for length in inside.shape])
        middle = volume[1:-1, 1:-1, 1:-1]
        middle[inside] = chance
        total = torch.zeros_like(middle)
        for axis in range(3):
            for start in (0, 2):
                where = [slice(1, -1)] * 3
                where[axis] = slice(start, start + inside.shape[axis])
                total += volume[tuple(where)]
        found[index] = total[inside]
    return found


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
    all of them. They are kept meanwhile, in half precision.

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
    kept = [sample.half() for sample in samples]
    rows = [list(names).index(name) for name in prior.regions]
    mean = sum(cast(Tensor, sample[rows].float()) for sample in kept) / len(kept)
    brain = image.ne(0).any(0) if inside is None else inside
    belief = refined(cast(Tensor, mean), image.to(kept[0].device), brain.to(kept[0].device), prior)
    share = prior.settings.share
    for sample in kept:
        mixed = sample.float()
        mixed[rows] = (1 - share) * mixed[rows] + share * belief
        yield mixed
