"""The restricted Boltzmann machine itself: two layers of units, its fit, and its log Z."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.errors import ModelError
from medseg.generative.fitting import FitRecord, FitSettings, fit_by_gradient
from medseg.generative.noise import draw_normal
from medseg.generative.units import Joined, Units, draw_bernoulli
from medseg.settings import settings

#: Most hidden units whose states are all summed.
MOST_ENUMERATED = 20
# States that are summed at once.
_STATES_AT_ONCE = 1 << 14


@settings
class ContrastiveSettings:
    """How the gradient of log Z is estimated while a Boltzmann machine is fitted."""

    #: "cd" starts its chains at the items of the batch, "pcd" goes on with the chains of the last
    #: step, which is slower per gain but leaves fewer places of low energy far from all items.
    algorithm: Literal["cd", "pcd"] = "pcd"
    #: Gibbs sweeps per step, the k of CD-k.
    sweeps: int = Field(default=1, ge=1)
    #: Steps and rates; no items are held out, as there is no likelihood to choose a state by.
    fit: FitSettings = FitSettings(max_steps=1500, batch_size=128, learning_rate=1e-2)


class Machine(nn.Module):
    """Two layers with weights between them: ``E(v, h) = U(v) - (field(v) - m)' W (h - n) - a' h``.

    The hidden units h are 0 or 1; U is the visible units' own energy, ``-b' v`` where they are
    binary. ``p(h = 1 | v) = sigmoid(a + W' (field(v) - m))``, and given h the visible units have
    the input ``W (h - n)``. The offsets m and n, at which the layers are when nothing is known, are
    fixed: they leave the family as it is, but keep the gradient of the weights apart from that of
    the biases. :meth:`fold` returns to the usual form, in which they are 0.

    Parameters
    ----------
    units : Units or Joined
        The visible layer.
    hidden : int
        Number of hidden units.

    References
    ----------
    Hinton (2012), A practical guide to training restricted Boltzmann machines.
    Montavon and Mueller (2012), Deep Boltzmann machines and the centering trick, section 3.
    Melchior, Fischer and Wiskott (2016), How to center deep Boltzmann machines, section 3.
    """

    visible_offset: Tensor
    hidden_offset: Tensor

    def __init__(self, units: Units | Joined, hidden: int) -> None:
        super().__init__()
        self.units = units
        self.weight = nn.Parameter(torch.zeros(units.size, hidden))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("visible_offset", torch.zeros(units.size))
        self.register_buffer("hidden_offset", torch.zeros(hidden))

    @torch.no_grad()
    def reset(self, values: Tensor, *, generator: torch.Generator) -> None:
        """Start with random weights and the statistics of visible ``values`` (m, size)."""
        shape = tuple(self.weight.shape)
        deviation = self.units.reset(values, hidden=shape[1])
        noise = draw_normal(shape, like=self.weight, generator=generator)
        self.weight.copy_(deviation[:, None] * noise)
        self.hidden_bias.zero_()
        self.visible_offset.copy_(self.units.field(values).mean(0))
        self.hidden_offset.fill_(0.5)

    @torch.no_grad()
    def fold(self) -> None:
        """Take the offsets into the biases: ``b - W n`` and ``a - W' m``."""
        self.hidden_bias.sub_(self.visible_offset @ self.weight)
        self.units.shift(-(self.weight @ self.hidden_offset))
        self.visible_offset.zero_()
        self.hidden_offset.zero_()

    def hidden_input(self, values: Tensor, *, scale: float = 1.0) -> Tensor:
        """Return the log odds of each hidden unit, (m, hidden), with the weights times scale."""
        centred = self.units.field(values) - self.visible_offset
        return self.hidden_bias + scale * (centred @ self.weight)

    def hidden_mean(self, values: Tensor) -> Tensor:
        """Return p(h = 1 | v), (m, hidden)."""
        return torch.sigmoid(self.hidden_input(values))

    def visible_input(self, hidden: Tensor, *, scale: float = 1.0) -> Tensor:
        """Return the input of the visible units, (m, size)."""
        return scale * ((hidden - self.hidden_offset) @ self.weight.T)

    def visible_mean(self, hidden: Tensor) -> Tensor:
        """Return E[v | h], (m, size); of hidden probabilities the mean-field answer."""
        return self.units.mean(self.visible_input(hidden))

    def energy(self, values: Tensor, hidden: Tensor) -> Tensor:
        """Return E(v, h), (m,); of independent units with these means the expected energy."""
        inputs = self.hidden_input(values) - self.hidden_bias
        pair = (inputs * (hidden - self.hidden_offset)).sum(1)
        return self.units.bias_energy(values) - pair - hidden @ self.hidden_bias

    def free_energy(self, values: Tensor) -> Tensor:
        """Return ``-log sum_h exp(-E(v, h))``, (m,)."""
        inputs = self.hidden_input(values)
        shift = (inputs - self.hidden_bias) @ self.hidden_offset
        return self.units.bias_energy(values) + shift - nn.functional.softplus(inputs).sum(1)

    @torch.no_grad()
    def sweep(
        self, values: Tensor, scale: float = 1.0, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw h given v, then v given h: the new values and, given h, their mean."""
        hidden = torch.sigmoid(self.hidden_input(values, scale=scale))
        hidden = draw_bernoulli(hidden, generator=generator)
        mean = self.units.mean(self.visible_input(hidden, scale=scale))
        return self.units.draw(mean, generator=generator), mean

    def start(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Return ``n`` draws of the visible units as if there were no weights, (n, size)."""
        mean = self.units.mean(self.weight.new_zeros(n, self.units.size))
        return self.units.draw(mean, generator=generator)

    def log_mass(self, hidden: Tensor, *, scale: float = 1.0) -> Tensor:
        """Return ``log integral exp(-E(v, h)) dv``, (m,), with the weights times scale."""
        inputs = self.visible_input(hidden, scale=scale)
        return (
            self.units.log_integral(inputs)
            - inputs @ self.visible_offset
            + (hidden @ self.hidden_bias)
        )


@torch.no_grad()
def run_chains(
    sweep: Callable[[Tensor, float], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    sweeps: int,
    clamp: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run Gibbs chains from ``start`` (n, size), one a row.

    The weights grow from nothing to their full size over the first half of the sweeps, so that each
    chain finds its own way into one of the modes.

    Parameters
    ----------
    sweep : callable
        From values and the scale of the weights to new values and their mean given what was drawn
        in between.
    start : Tensor, shape (n, size)
        First values.
    sweeps : int
        Length of a chain.
    clamp : callable, optional
        Puts known values back after every sweep.

    Returns
    -------
    last, mean : Tensor, shape (n, size)
        The last values, and the mean over the second half of the sweeps.
    """
    values = start if clamp is None else clamp(start)
    total, ramp = torch.zeros_like(values), sweeps // 2
    for t in range(sweeps):
        values, mean = sweep(values, min((t + 1) / (ramp + 1), 1.0))
        if clamp is not None:
            values, mean = clamp(values), clamp(mean)
        if t >= ramp:
            total += mean
    return values, total / (sweeps - ramp)


def fit_contrastive(
    machine: Machine,
    positive: Callable[[Tensor], Tensor],
    *,
    items: int,
    settings: ContrastiveSettings,
    generator: torch.Generator,
) -> FitRecord:
    """Fit a machine that was reset: lower the energy of the data, raise it on the chains.

    The gradient of ``mean F(v+) - mean F(v-)`` at fixed v- is that of contrastive divergence. The
    record's nats are this difference, which is no likelihood.

    Parameters
    ----------
    machine : Machine
        Already started.
    positive : callable
        From row numbers (b,) to visible values (b, size) of the positive phase.
    items : int
        Number of rows.
    settings : ContrastiveSettings
        Chains, steps, rates.
    generator : torch.Generator
        Draws batches and chains.

    References
    ----------
    Hinton (2002), Training products of experts by minimizing contrastive divergence, equation 5.
    Tieleman (2008), Training restricted Boltzmann machines using approximations to the likelihood
    gradient, section 3.
    """
    device = machine.weight.device
    rows = torch.arange(items, device=device)
    chains = torch.empty(0)

    def batch_loss(chosen: Tensor, progress: float) -> Tensor:
        del progress
        nonlocal chains
        values = positive(chosen)
        if settings.algorithm == "cd" or not len(chains):
            chains = values
        for _ in range(settings.sweeps):
            chains, _ = machine.sweep(chains, generator=generator)
        return machine.free_energy(values).mean() - machine.free_energy(chains).mean()

    return fit_by_gradient(
        machine, batch_loss, None, rows=rows, settings=settings.fit, generator=generator
    )


@torch.no_grad()
def exact_log_partition(machine: Machine) -> float:
    """Return log Z in nats by summing over all states of the hidden layer.

    Raises
    ------
    ModelError
        There are too many hidden units for that.
    """
    n = len(machine.hidden_bias)
    if n > MOST_ENUMERATED:
        raise ModelError(
            f"log Z can be summed exactly over at most {MOST_ENUMERATED} hidden units, but there "
            f"are {n}.",
            hint="Estimate it with annealed_log_partition.",
        )
    bits = torch.arange(n, device=machine.weight.device)
    parts = []
    for start in range(0, 1 << n, _STATES_AT_ONCE):
        states = torch.arange(start, min(start + _STATES_AT_ONCE, 1 << n), device=bits.device)
        hidden = (states[:, None] >> bits & 1).to(machine.weight)
        parts.append(machine.log_mass(hidden).double().logsumexp(0))
    return float(torch.stack(parts).logsumexp(0))


@torch.no_grad()
def annealed_log_partition(
    machine: Machine, *, generator: torch.Generator, chains: int = 256, temperatures: int = 1000
) -> tuple[float, float]:
    """Return an estimate of log Z in nats and its standard error, by annealed importance sampling.

    The chains go from the machine without weights, whose log Z is known, to the machine. The
    estimate of Z is unbiased, so that of log Z tends to be low, and log p tends to be high.

    References
    ----------
    Salakhutdinov and Murray (2008), On the quantitative analysis of deep belief networks, section
    4.1.
    """
    free = machine.hidden_bias.expand(chains, -1)
    hidden = draw_bernoulli(torch.sigmoid(free), generator=generator)
    start = machine.units.log_integral(machine.weight.new_zeros(1, machine.units.size))
    log_start = float(start + nn.functional.softplus(machine.hidden_bias).sum())
    log_weight = torch.zeros(chains, dtype=torch.float64, device=hidden.device)
    for t in range(1, temperatures + 1):
        before, scale = (t - 1) / temperatures, t / temperatures
        gain = machine.log_mass(hidden, scale=scale) - machine.log_mass(hidden, scale=before)
        log_weight += gain.double()
        mean = machine.units.mean(machine.visible_input(hidden, scale=scale))
        values = machine.units.draw(mean, generator=generator)
        odds = machine.hidden_input(values, scale=scale)
        hidden = draw_bernoulli(torch.sigmoid(odds), generator=generator)
    relative = (log_weight - log_weight.max()).exp()
    error = float(relative.std() / relative.mean()) / math.sqrt(chains)
    return log_start + float(log_weight.logsumexp(0)) - math.log(chains), error
