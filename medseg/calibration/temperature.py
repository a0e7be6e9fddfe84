"""One number per region that makes probabilities neither too bold nor too shy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.metrics.calibration import negative_log_likelihood_nats

HeadMode = Literal["regions", "classes"]
#: Temperatures that are searched. At an end the likelihood has no best value worth the name.
LEAST, MOST = 0.05, 20.0


@dataclass(frozen=True, eq=False)
class Stratum:
    """Voxels drawn at random from many that they stand for.

    Parameters
    ----------
    logits : ndarray, shape (K, c, m)
        Of K posterior samples and all channels of the head at m voxels.
    truth : boolean ndarray, shape (n, m)
        Of each region.
    voxels : int
        How many voxels these stand for.
    """

    logits: NDArray[np.float32]
    truth: NDArray[np.bool_]
    voxels: int

    def of_region(self, index: int) -> Stratum:
        """Return the same voxels as one region's sigmoid sees them."""
        one = slice(index, index + 1)
        return Stratum(self.logits[:, one], self.truth[one], self.voxels)


def tempered(
    logits: NDArray[np.float32], temperature: float, mode: HeadMode
) -> NDArray[np.float64]:
    """Return the mean probability over samples of each region, shape (n, m).

    Parameters
    ----------
    logits : ndarray, shape (K, c, m)
    temperature : float
        The logits of each sample are divided by it.
    mode : "regions" or "classes"
        A sigmoid per channel; or a softmax over channels, the first of which is the background.
    """
    from scipy.special import expit, softmax

    scaled = logits.astype(np.float64) / temperature
    if mode == "regions":
        return expit(scaled).mean(axis=0)
    return softmax(scaled, axis=1).mean(axis=0)[1:]


def fit_temperature(strata: Sequence[Stratum], *, mode: HeadMode = "regions") -> float:
    """Return the temperature of least negative log-likelihood on labelled voxels.

    Parameters
    ----------
    strata : sequence of Stratum
        Of all cases, a case counts by its voxels; of one region where regions have temperatures of
        their own, see :meth:`Stratum.of_region`.
    mode : "regions" or "classes"

    Raises
    ------
    DataError
        No voxel is in a region: the likelihood would only ask for never saying so.

    References
    ----------
    Guo et al. 2017, "On calibration of modern neural networks", section 4.2.
    """
    from scipy.optimize import minimize_scalar

    if not any(stratum.truth.any() for stratum in strata):
        raise DataError(
            "A temperature is fitted to cases of which at least one has a voxel in the region, but "
            f"none of {len(strata)} parts of cases has.",
            hint="Add labelled cases with lesions.",
        )
    found = minimize_scalar(
        lambda value: nll_nats(strata, math.exp(value), mode=mode),
        bounds=(math.log(LEAST), math.log(MOST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return math.exp(float(found.x))


def nll_nats(strata: Sequence[Stratum], temperature: float, *, mode: HeadMode = "regions") -> float:
    """Return the mean negative log-likelihood in nats per voxel and region at a temperature."""
    total = sum(
        stratum.voxels
        * negative_log_likelihood_nats(tempered(stratum.logits, temperature, mode), stratum.truth)
        for stratum in strata
    )
    return total / sum(stratum.voxels for stratum in strata)
