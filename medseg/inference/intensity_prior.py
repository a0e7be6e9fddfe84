"""What labelled scans look like, tissue by tissue: what a refinement starts from."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from medseg.data.regions import RegionSettings
from medseg.data.training_set import TrainingCase
from medseg.errors import ConfigError, DataError
from medseg.settings import settings

log = logging.getLogger(__name__)

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
    #: Voxels that the look of the labelled scans counts for, in the place and width of each
    #: Gaussian and in the weights of each tissue.
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

    @model_validator(mode="after")
    def _fits_together(self) -> "IntensityPrior":
        count = len(self.tissues)
        if not len(self.weights) == len(self.means) == len(self.covariances) == count:
            raise ValueError(f"all {count} Gaussians have a weight, a mean and a covariance")
        if set(self.tissues) != set(range(len(self.regions) + 1)):
            raise ValueError(f"tissues 0 to {len(self.regions)} have Gaussians, and no others")
        channels = len(self.means[0])
        vectors = [*self.means, *(row for one in self.covariances for row in one)]
        if any(len(one) != channels for one in (*vectors, *self.covariances)):
            raise ValueError(f"means and covariances are of {channels} channels each")
        return self

    def require_fit(self, regions: RegionSettings, channels: int) -> None:
        """Raise a ValueError where a model has other regions, or another number of channels."""
        if regions.mode != "regions" or not set(self.regions) <= set(regions.names):
            raise ValueError(
                f"intensities are of regions {list(self.regions)}, but the model predicts "
                f"{regions.mode} {list(regions.names)}"
            )
        if len(self.means[0]) != channels:
            raise ValueError(
                f"intensities are of {len(self.means[0])} channels, but the model takes {channels}"
            )


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

    A region without voxels of its own, outside the next inner one, is left to the network.

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
        The regions do not lie in each other, or are classes.
    DataError
        No case has everything, or they show no region or nothing else.
    """
    chosen = chosen or RefinementSettings()
    if any(case.has_background for case in cases):
        raise ConfigError(
            "Refinement by intensities is for regions, but the mode is 'classes'.",
            hint="Leave the refinement out, or use mode 'regions'.",
        )
    order = nested({name: definition[name] for name in names})
    whole = [case for case in cases if bool(case.present.all()) and bool(case.known.all())]
    order, seen = _shown(whole, order, names)
    generator = np.random.default_rng(seed)
    tissues: list[int] = []
    weights: list[float] = []
    means: list[tuple[float, ...]] = []
    covariances: list[tuple[tuple[float, ...], ...]] = []
    for index, voxels in enumerate(seen):
        wanted = chosen.components if index else chosen.outside_components
        count = min(wanted, len(voxels) // _LEAST_VOXELS)
        some = voxels[generator.permutation(len(voxels))[:_MOST_VOXELS]]
        shares, middles, spreads = _mixture(some, count, seed)
        tissues += [index] * count
        weights += shares.tolist()
        means += [tuple(mean) for mean in middles.tolist()]
        covariances += [tuple(map(tuple, one)) for one in spreads.tolist()]
    return IntensityPrior(
        regions=order,
        tissues=tuple(tissues),
        weights=tuple(weights),
        means=tuple(means),
        covariances=tuple(covariances),
        settings=chosen,
    )


def _shown(
    cases: Sequence[TrainingCase], order: tuple[str, ...], names: Sequence[str]
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Return the nested regions that cases show, and the intensities of each tissue."""
    while True:
        rows = [list(names).index(name) for name in order]
        seen = [_intensities(cases, rows, tissue) for tissue in range(len(order) + 1)]
        few = [tissue for tissue, voxels in enumerate(seen) if len(voxels) < _LEAST_VOXELS]
        if not few:
            return order, seen
        if few[0] == 0 or len(order) == 1:
            raise DataError(
                f"Refinement by intensities needs {_LEAST_VOXELS} labelled voxels of each tissue, "
                f"but {len(cases)} complete cases have {len(seen[few[0]])} "
                + (f"of {order[0]!r}." if few[0] else "outside every region."),
                hint="Leave the refinement out, or give cases that show every region.",
            )
        lost = order[few[-1] - 1]
        log.warning("refinement leaves %r to the network: cases show too little of it", lost)
        order = tuple(name for name in order if name != lost)


def _intensities(cases: Sequence[TrainingCase], rows: list[int], tissue: int) -> np.ndarray:
    """Return the intensities (v, c) of a tissue in all cases, in double precision."""
    found = []
    for case in cases:
        inside = (case.regions[rows] > 0.5).sum(0)[case.brain] == tissue
        found.append(case.image[:, case.brain].T[inside].double().numpy())
    return np.concatenate(found) if found else np.empty((0, 0))


def _mixture(items: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return weights (k,), means (k, c) and covariances (k, c, c) of a mixture of k Gaussians."""
    # Here: scikit-learn takes a second to import, and a stored model does without it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    fitter = GaussianMixture(count, reg_covar=_LEAST_VARIANCE, random_state=seed)
    with warnings.catch_warnings():
        # A start is all that is asked for.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitter.fit(items)
    parts = fitter.weights_, fitter.means_, fitter.covariances_
    return tuple(np.asarray(part) for part in parts)


def refinement_bytes(
    prior: IntensityPrior | None, image: Tensor, *, outputs: int, samples: int
) -> int:
    """Return what holding samples of ``outputs`` channels against an image (c, *s) takes."""
    if prior is None:
        return 0
    gaussians, tissues, channels = len(prior.tissues), len(prior.regions) + 1, len(image)
    features = 1 + channels + channels * (channels + 1) // 2
    voxels = image[0].numel()
    inside = int(image.ne(0).any(dim=0).sum())
    # Of each voxel inside its share in each Gaussian, six times on the way; volumes of tissues.
    mixture = 4 * inside * (6 * gaussians + features + 4 * tissues) + 4 * voxels * 2 * tissues
    return mixture + 2 * voxels * outputs * samples
