"""Units of a Boltzmann machine: what one side may hold, given its total input from the other.

Each kind is the exponential-family layer ``p(v | x) ~ exp(-bias_energy(v) + field(v) . x)`` with x
the input through the weights. Whatever a machine needs to know of its units is here, so that a
machine with other units is the same machine.

References
----------
Welling, Rosen-Zvi and Hinton (2004), Exponential family harmoniums, equations 1 to 6.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.generative.noise import LOG_TWO_PI, draw_normal, draw_uniform

# Shares of ones that a start may assume, however few items were seen.
_LEAST_SHARE = 0.01
# Deviation of the first weights of units that are 0 or 1 (Hinton 2012, section 8).
_START_STD = 0.01
# Share of the variance of real units that their first weights hold.
_START_SHARE = 0.3


class Units(nn.Module):
    """Units with a bias each; a subclass says which values they hold.

    Parameters
    ----------
    size : int
        Number of units.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.bias = nn.Parameter(torch.zeros(size))

    def reset(self, values: Tensor, *, hidden: int) -> Tensor:
        """Start at the units' own statistics in ``values`` (m, size).

        Returns the deviation of each unit's first weights to ``hidden`` units, (size,).
        """
        raise NotImplementedError

    def field(self, values: Tensor) -> Tensor:
        """Return what the weights see of the values, (m, size)."""
        return values

    def bias_energy(self, values: Tensor) -> Tensor:
        """Return the energy of the values without interaction, (m,)."""
        return -values @ self.bias

    def log_integral(self, inputs: Tensor) -> Tensor:
        """Return ``log integral exp(-bias_energy(v) + field(v) . x) dv`` for inputs x, (m,)."""
        raise NotImplementedError

    def curvature(self) -> Tensor:
        """Return a diagonal matrix, (size,), above the Hessian of ``log_integral`` everywhere."""
        raise NotImplementedError

    def mean(self, inputs: Tensor) -> Tensor:
        """Return E[v | x], (m, size)."""
        raise NotImplementedError

    def draw(self, mean: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return values from p(v | x), (m, size), given its mean."""
        raise NotImplementedError

    def shift(self, inputs: Tensor) -> None:
        """Take a constant input (size,) into the bias."""
        self.bias.data.add_(inputs)


class Bernoulli(Units):
    """Units that are 0 or 1: ``p(v = 1 | x) = sigmoid(b + x)``."""

    @torch.no_grad()
    def reset(self, values: Tensor, *, hidden: int) -> Tensor:
        """Start at the log odds of each unit, with small weights (Hinton 2012, section 8)."""
        del hidden
        self.bias.copy_(values.mean(0).clamp(_LEAST_SHARE, 1 - _LEAST_SHARE).logit())
        return torch.full_like(self.bias, _START_STD)

    def log_integral(self, inputs: Tensor) -> Tensor:
        """Return the log of what normalises p(v | x), (m,)."""
        return nn.functional.softplus(self.bias + inputs).sum(1)

    def curvature(self) -> Tensor:
        """Return the largest variance of each unit's field, (size,)."""
        return torch.full_like(self.bias, 0.25)

    def mean(self, inputs: Tensor) -> Tensor:
        """Return E[v | x], (m, size)."""
        return torch.sigmoid(self.bias + inputs)

    def draw(self, mean: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return values from p(v | x), (m, size), given its mean."""
        return draw_bernoulli(mean, generator=generator)


class Gaussian(Units):
    """Units that are real numbers: ``p(v | x) = N(b + x, s^2)``, a deviation s for each.

    The energy is ``sum (v - b)^2 / (2 s^2) - (v / s^2)' W h``, in which the mean does not depend on
    s, so that the deviations can be learned.

    Parameters
    ----------
    size : int
        Number of units.
    std_floor : float
        Least deviation; a unit that the others explain exactly would otherwise be given infinite
        density.

    References
    ----------
    Cho, Ilin and Raiko (2011), Improved learning of Gaussian-Bernoulli restricted Boltzmann
    machines, equations 4 to 6.
    """

    def __init__(self, size: int, *, std_floor: float) -> None:
        super().__init__(size)
        self.raw_log_std = nn.Parameter(torch.zeros(size))
        self.std_floor = std_floor

    @property
    def variance(self) -> Tensor:
        """``s^2``, (size,)."""
        return self.std_floor**2 + (2 * self.raw_log_std).exp()

    @torch.no_grad()
    def reset(self, values: Tensor, *, hidden: int) -> Tensor:
        """Start at the mean and variance of each unit, a share of it held by the weights.

        Small weights would not do: seen from items that are whitened, no hidden unit at all is a
        saddle that contrastive divergence does not leave.
        """
        self.bias.copy_(values.mean(0))
        variance = values.var(0, correction=0)
        excess = (1 - _START_SHARE) * variance - self.std_floor**2
        self.raw_log_std.copy_(0.5 * excess.clamp(min=self.std_floor**2).log())
        # A unit that is 0 or 1 with even odds has the variance 1/4.
        return (4 * _START_SHARE * variance / hidden).sqrt()

    def field(self, values: Tensor) -> Tensor:
        """Return what the weights see of the values, (m, size)."""
        return values / self.variance

    def bias_energy(self, values: Tensor) -> Tensor:
        """Return the energy of the values without interaction, (m,)."""
        return 0.5 * ((values - self.bias).square() / self.variance).sum(1)

    def log_integral(self, inputs: Tensor) -> Tensor:
        """Return the log of what normalises p(v | x), (m,)."""
        mean, variance = self.bias + inputs, self.variance
        gain = (mean.square() - self.bias.square()) / variance
        return 0.5 * (gain + variance.log() + LOG_TWO_PI).sum(1)

    def curvature(self) -> Tensor:
        """Return the largest variance of each unit's field, (size,)."""
        return 1 / self.variance

    def mean(self, inputs: Tensor) -> Tensor:
        """Return E[v | x], (m, size)."""
        return self.bias + inputs

    def draw(self, mean: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return values from p(v | x), (m, size), given its mean."""
        noise = draw_normal(tuple(mean.shape), like=mean, generator=generator)
        return mean + self.variance.sqrt() * noise


class Label(Units):
    """Units of which exactly one is 1: ``p(v_k = 1 | x) = softmax(b + x)_k``."""

    @torch.no_grad()
    def reset(self, values: Tensor, *, hidden: int) -> Tensor:
        """Start at the logarithm of each class's share."""
        del hidden
        self.bias.copy_(values.mean(0).clamp(min=_LEAST_SHARE).log())
        return torch.full_like(self.bias, _START_STD)

    def log_integral(self, inputs: Tensor) -> Tensor:
        """Return the log of what normalises p(v | x), (m,)."""
        return (self.bias + inputs).logsumexp(1)

    def curvature(self) -> Tensor:
        """Return 1/2 for each, above the covariance of a one-hot row (Boehning 1992)."""
        return torch.full_like(self.bias, 0.5)

    def mean(self, inputs: Tensor) -> Tensor:
        """Return E[v | x], (m, size)."""
        return torch.softmax(self.bias + inputs, 1)

    def draw(self, mean: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return values from p(v | x), (m, size), given its mean."""
        u = 0.5 + 0.5 * draw_uniform((len(mean), 1), like=mean, generator=generator)
        below = mean.cumsum(1) < u
        return nn.functional.one_hot(below.sum(1).clamp(max=self.size - 1), self.size).to(mean)


class Joined(nn.Module):
    """Two kinds of units side by side, as one layer.

    Parameters
    ----------
    first, second : units
        Their values are joined along axis 1.
    """

    def __init__(self, first: Units, second: Units) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.size = first.size + second.size

    def reset(self, values: Tensor, *, hidden: int) -> Tensor:
        """Start both; return the deviations of their first weights, (size,)."""
        first, second = self.split(values)
        deviation = self.first.reset(first, hidden=hidden)
        return torch.cat([deviation, self.second.reset(second, hidden=hidden)])

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of each, (m, first.size) and (m, second.size)."""
        first, second = values.split([self.first.size, self.second.size], -1)
        return first, second

    def field(self, values: Tensor) -> Tensor:
        """Return what the weights see of both, (m, size)."""
        first, second = self.split(values)
        return torch.cat([self.first.field(first), self.second.field(second)], 1)

    def bias_energy(self, values: Tensor) -> Tensor:
        """Return the sum of both, (m,)."""
        first, second = self.split(values)
        return self.first.bias_energy(first) + self.second.bias_energy(second)

    def log_integral(self, inputs: Tensor) -> Tensor:
        """Return the sum of both, (m,)."""
        first, second = self.split(inputs)
        return self.first.log_integral(first) + self.second.log_integral(second)

    def curvature(self) -> Tensor:
        """Return that of both, (size,)."""
        return torch.cat([self.first.curvature(), self.second.curvature()])

    def mean(self, inputs: Tensor) -> Tensor:
        """Return the means of both, (m, size)."""
        first, second = self.split(inputs)
        return torch.cat([self.first.mean(first), self.second.mean(second)], 1)

    def draw(self, mean: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return draws of both, (m, size)."""
        first, second = self.split(mean)
        drawn = self.first.draw(first, generator=generator)
        return torch.cat([drawn, self.second.draw(second, generator=generator)], 1)

    def shift(self, inputs: Tensor) -> None:
        """Take a constant input (size,) into both biases."""
        first, second = self.split(inputs)
        self.first.shift(first)
        self.second.shift(second)


def draw_bernoulli(probability: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return 1 with the given probability, else 0, element by element."""
    u = draw_uniform(tuple(probability.shape), like=probability, generator=generator)
    return (0.5 + 0.5 * u < probability).to(probability)


def entropy(log_odds: Tensor) -> Tensor:
    """Return the entropy of independent Bernoulli units in nats, (m,), for log odds (m, n).

    From log odds, as the gradient by a probability that was rounded to 0 or 1 is not a number.
    """
    return (nn.functional.softplus(log_odds) - log_odds * torch.sigmoid(log_odds)).sum(1)
