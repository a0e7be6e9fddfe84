"""Running moments of posterior samples: nothing here grows with their number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medseg.errors import ShapeError


def bernoulli_entropy_nats(probability: Tensor) -> Tensor:
    """Return ``-p log p - (1 - p) log(1 - p)`` in nats, of the same shape; 0 at 0 and 1.

    Examples
    --------
    >>> bernoulli_entropy_nats(torch.tensor([0.0, 0.5, 1.0])).round(decimals=3)
    tensor([0.0000, 0.6930, 0.0000])
    """
    rest = 1.0 - probability
    # x log x with its limit 0 at 0, and without the NaN of 0 * log 0.
    # Taken from 0 and not negated, because a certain voxel would read -0.
    return 0.0 - torch.special.xlogy(probability, probability) - torch.special.xlogy(rest, rest)


@dataclass(frozen=True, eq=False)
class SampleStatistics:
    """What K posterior samples say together, voxel by voxel and channel by channel.

    Each channel is read as an event of its own, inside or not, whichever way the head makes its
    probabilities: an uncertainty then belongs to one region.

    Parameters
    ----------
    samples : int
        K.
    probability : Tensor, shape (n, *s)
        Mean over samples.
    expected_entropy_nats : Tensor, shape (n, *s)
        Mean over samples of the entropy: what more data would not remove.
    variance : Tensor, shape (n, *s)
        Of the probability over samples, divided by K; 0 for K = 1.
    """

    samples: int
    probability: Tensor
    expected_entropy_nats: Tensor
    variance: Tensor

    @property
    def entropy_nats(self) -> Tensor:
        """Entropy of the mean probability, shape (n, *s)."""
        return bernoulli_entropy_nats(self.probability)

    @property
    def mutual_information_nats(self) -> Tensor:
        """Entropy of the mean less the mean entropy, shape (n, *s): disagreement of the samples.

        References
        ----------
        Houlsby et al. 2011, "Bayesian active learning for classification and preference learning",
        eq. 2.
        """
        # Jensen says it is not negative; rounding does not know.
        return (self.entropy_nats - self.expected_entropy_nats).clamp_min(0.0)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the probability over samples, shape (n, *s)."""
        return self.variance.sqrt()


class RunningStatistics:
    """Takes samples one at a time; memory is four volumes, whatever their number.

    References
    ----------
    Welford 1962, "Note on a method for calculating corrected sums of squares and products": sums of
    squared deviations do not cancel as a second moment less a squared mean does.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = torch.empty(0)
        self._squared_deviations = torch.empty(0)
        self._entropy = torch.empty(0)

    def add(self, probability: Tensor) -> None:
        """Take in the probabilities (n, *s) of one sample.

        Raises
        ------
        ShapeError
            Another shape than the samples before.
        """
        if self._count == 0:
            self._mean = torch.zeros_like(probability, dtype=torch.float32)
            self._squared_deviations = torch.zeros_like(self._mean)
            self._entropy = torch.zeros_like(self._mean)
        if probability.shape != self._mean.shape:
            raise ShapeError(
                f"All samples have one shape, but the first had {tuple(self._mean.shape)} and this "
                f"one has {tuple(probability.shape)}."
            )
        self._count += 1
        deviation = probability - self._mean
        self._mean += deviation / self._count
        self._squared_deviations += deviation * (probability - self._mean)
        self._entropy += bernoulli_entropy_nats(probability)

    def result(self) -> SampleStatistics:
        """Return the statistics of the samples so far.

        Raises
        ------
        ShapeError
            No sample yet.
        """
        if self._count == 0:
            raise ShapeError("Statistics need at least one sample, but there is none.")
        return SampleStatistics(
            samples=self._count,
            probability=self._mean.clamp(0.0, 1.0),
            expected_entropy_nats=self._entropy / self._count,
            variance=(self._squared_deviations / self._count).clamp_min(0.0),
        )


def statistics_of_share(mean: Tensor, share: Tensor) -> SampleStatistics:
    """Return what infinitely many samples would say, from two numbers a voxel.

    The samples are taken to follow the Beta distribution with these moments, that of precision
    ``s = (1 - share) / share``. Its expected entropy is
    ``psi(s + 1) - m psi(m s + 1) - (1 - m) psi((1 - m) s + 1)``.

    Parameters
    ----------
    mean : Tensor, shape (n, *s)
        Mean of the samples' probabilities, m.
    share : Tensor, shape (n, *s)
        Share of the variance ``m (1 - m)`` of a voxel's answer that lies between samples.

    Returns
    -------
    SampleStatistics
        Of one pass of one network, which is no sample: ``samples`` is 1.

    References
    ----------
    Malinin and Gales 2018, "Predictive uncertainty estimation via prior networks", equation 21, for
    two classes.
    """
    variance = mean * (1 - mean)
    # Beyond, the digammas cancel to less than they round.
    precision = ((1 - share) / share.clamp(min=1e-5)).double()
    inside, outside = mean.double(), 1 - mean.double()
    entropy = (
        torch.digamma(precision + 1)
        - inside * torch.digamma(inside * precision + 1)
        - outside * torch.digamma(outside * precision + 1)
    )
    return SampleStatistics(
        samples=1,
        probability=mean,
        expected_entropy_nats=torch.minimum(
            entropy.clamp(min=0.0).to(mean.dtype), bernoulli_entropy_nats(mean)
        ),
        variance=share * variance,
    )
