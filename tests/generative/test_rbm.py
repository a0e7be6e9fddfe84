import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from medseg.errors import ModelError, ShapeError
from medseg.generative.fitting import FitSettings
from medseg.generative.machine import (
    ContrastiveSettings,
    Machine,
    annealed_log_partition,
    exact_log_partition,
    run_chains,
)
from medseg.generative.rbm import Rbm, RbmSettings
from medseg.generative.units import Bernoulli, Gaussian, Joined, Label, Units
from medseg.seeding import torch_generator


def states(n: int) -> Tensor:
    """Return all rows of n zeros and ones, (2^n, n)."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)))


def randomise(module: nn.Module, *, seed: int = 0, width: float = 1.0) -> None:
    """Give all parameters and offsets random values."""
    generator = torch_generator(seed, "random machine")
    with torch.no_grad():
        for name, value in sorted(module.state_dict().items()):
            if "standardiser" not in name:
                value.copy_(width * torch.randn(value.shape, generator=generator))


def random_machine(units: Units | Joined, hidden: int, *, width: float = 1.0) -> Machine:
    machine = Machine(units, hidden)
    randomise(machine, width=width)
    return machine


def bars(n: int) -> Tensor:
    """Return all n x n pictures of whole rows or of whole columns, (patterns, n^2)."""
    rows = states(n)[:, :, None].expand(-1, n, n)
    return torch.cat([rows, rows.transpose(1, 2)]).flatten(1).unique(dim=0)


def quick(steps: int = 800, **options: object) -> ContrastiveSettings:
    fit = FitSettings(epochs=steps, max_steps=steps, batch_size=100, learning_rate=0.03)
    return ContrastiveSettings(fit=fit, **options)  # type: ignore[arg-type]


# ---- units


def all_units() -> dict[str, Units | Joined]:
    made: dict[str, Units | Joined] = {
        "bernoulli": Bernoulli(3),
        "gaussian": Gaussian(3, std_floor=0.1),
        "label": Label(3),
        "joined": Joined(Gaussian(2, std_floor=0.1), Label(3)),
    }
    for units in made.values():
        randomise(units, width=0.7)
    return made


@pytest.mark.parametrize("name", list(all_units()))
def test_gradient_of_the_log_integral_is_the_mean_field(name: str) -> None:
    """An exponential family: the law that ties mean, field, energy and normalisation together."""
    units = all_units()[name]
    inputs = torch.randn(6, units.size, generator=torch_generator(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(units.log_integral(inputs).sum(), inputs)
    torch.testing.assert_close(gradient, units.field(units.mean(inputs)))


@pytest.mark.parametrize("name", list(all_units()))
def test_draws_have_their_mean(name: str) -> None:
    units = all_units()[name]
    inputs = torch.randn(1, units.size, generator=torch_generator(1))
    mean = units.mean(inputs).expand(20_000, -1)
    drawn = units.draw(mean, generator=torch_generator(2))
    error = 5 * drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - mean[0]).abs() < error).all()


def test_log_integral_sums_over_all_values() -> None:
    units = all_units()
    inputs = torch.randn(1, 3, generator=torch_generator(3))
    for name, values in (("bernoulli", states(3)), ("label", torch.eye(3))):
        exponent = units[name].field(values) @ inputs[0] - units[name].bias_energy(values)
        torch.testing.assert_close(units[name].log_integral(inputs)[0], exponent.logsumexp(0))
    single = Gaussian(1, std_floor=0.1)
    grid = torch.linspace(-30, 30, 20_001)[:, None]
    exponent = single.field(grid) @ inputs[0, :1] - single.bias_energy(grid)
    found = exponent.logsumexp(0) + math.log(60 / 20_000)
    torch.testing.assert_close(single.log_integral(inputs[:, :1])[0], found)


@pytest.mark.parametrize("name", ["bernoulli", "gaussian"])
def test_curvature_bounds_the_second_derivative(name: str) -> None:
    units = all_units()[name]
    inputs = 3 * torch.randn(200, 3, generator=torch_generator(1))
    inputs.requires_grad_()
    (first,) = torch.autograd.grad(units.log_integral(inputs).sum(), inputs, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), inputs)
    most = units.curvature()  # type: ignore[union-attr]
    assert (second <= most + 1e-6).all()
    assert (second.amax(0) > 0.8 * most).all()


# ---- the machine


def joint(machine: Machine) -> tuple[Tensor, Tensor, Tensor]:
    """Return W, b, a of the usual form of a binary machine, ``E = -v' W h - b' v - a' h``."""
    plain = copy.deepcopy(machine)
    plain.fold()
    assert isinstance(plain.units, Bernoulli)
    return plain.weight.detach(), plain.units.bias.detach(), plain.hidden_bias.detach()


def test_conditionals_are_those_of_the_energy_with_b_on_the_visible_side() -> None:
    machine = random_machine(Bernoulli(4), 3)
    W, b, a = joint(machine)
    v, h = states(4), states(3)
    energy = -(v @ W @ h.T) - (v @ b)[:, None] - h @ a
    p = (-energy).flatten().softmax(0).reshape(16, 8)
    hidden = (p @ h) / p.sum(1, keepdim=True)
    visible = (p.T @ v) / p.sum(0)[:, None]
    torch.testing.assert_close(machine.hidden_mean(v), hidden)
    torch.testing.assert_close(machine.hidden_mean(v), torch.sigmoid(a + v @ W))
    torch.testing.assert_close(machine.visible_mean(h), visible)
    torch.testing.assert_close(machine.visible_mean(h), torch.sigmoid(b + h @ W.T))
    log_p = -machine.free_energy(v) - exact_log_partition(machine)
    torch.testing.assert_close(log_p.exp(), p.sum(1))


def test_offsets_leave_the_distribution_alone() -> None:
    for units in (Bernoulli(4), Gaussian(4, std_floor=0.1), Joined(Bernoulli(2), Label(2))):
        machine = random_machine(units, 3)
        v = torch.rand(9, 4, generator=torch_generator(1))
        before = machine.free_energy(v) + exact_log_partition(machine)
        mean = machine.hidden_mean(v)
        machine.fold()
        assert machine.visible_offset.abs().max() == machine.hidden_offset.abs().max() == 0
        torch.testing.assert_close(machine.free_energy(v) + exact_log_partition(machine), before)
        torch.testing.assert_close(machine.hidden_mean(v), mean)


def test_log_partition_sums_the_energy_over_all_states() -> None:
    machine = random_machine(Bernoulli(5), 4)
    v, h = states(5), states(4)
    pairs = [machine.energy(v, row.expand(len(v), -1)) for row in h]
    found = (-torch.stack(pairs)).detach().flatten().logsumexp(0)
    assert exact_log_partition(machine) == pytest.approx(float(found), abs=1e-4)


def test_gaussian_machine_integrates_to_one_and_is_a_mixture_of_gaussians() -> None:
    machine = random_machine(Gaussian(2, std_floor=0.1), 3, width=0.6)
    log_z = exact_log_partition(machine)
    axis = torch.linspace(-9, 9, 601)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = (-machine.free_energy(grid) - log_z).exp().sum() * (axis[1] - axis[0]) ** 2
        assert float(mass) == pytest.approx(1, abs=1e-3)
        h = states(3)
        weights = (machine.log_mass(h) - log_z).exp().numpy()
        means = machine.visible_mean(h).numpy()
        variance = machine.units.variance.numpy()  # type: ignore[union-attr]
        points = grid[::9973]
        density = sum(
            weight * multivariate_normal(mean, np.diag(variance)).pdf(points.numpy())
            for weight, mean in zip(weights, means, strict=True)
        )
        found = (-machine.free_energy(points) - log_z).exp()
    np.testing.assert_allclose(found.numpy(), density, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("width", [0.3, 1.0])
def test_annealed_log_partition_agrees_with_the_sum(width: float) -> None:
    for units in (Bernoulli(8), Gaussian(4, std_floor=0.3)):
        machine = random_machine(units, 6, width=width)
        found, error = annealed_log_partition(
            machine, generator=torch_generator(0), chains=200, temperatures=300
        )
        assert error < 0.2
        assert found == pytest.approx(exact_log_partition(machine), abs=0.03 + 4 * error)


def test_gradient_of_the_free_energy_is_that_of_contrastive_divergence() -> None:
    machine = random_machine(Bernoulli(5), 3)
    machine.fold()
    v = states(5)[[3, 7, 20]]
    machine.free_energy(v).sum().backward()
    h = machine.hidden_mean(v).detach()
    torch.testing.assert_close(machine.weight.grad, -v.T @ h)
    torch.testing.assert_close(machine.units.bias.grad, -v.sum(0))  # type: ignore[union-attr]
    torch.testing.assert_close(machine.hidden_bias.grad, -h.sum(0))


def test_gradient_of_the_free_energy_by_the_items() -> None:
    for units in (Bernoulli(3), Gaussian(3, std_floor=0.2)):
        machine = random_machine(units, 4).double()
        v = torch.rand(2, 3, generator=torch_generator(1), dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(machine.free_energy, (v,))


def test_sweeps_keep_the_distribution() -> None:
    machine = random_machine(Joined(Bernoulli(2), Label(2)), 2)
    v = torch.cat([states(2).repeat_interleave(2, 0), torch.eye(2).repeat(4, 1)], 1)
    log_p = -machine.free_energy(v) - exact_log_partition(machine)
    generator = torch_generator(0)
    last, _ = run_chains(
        lambda values, scale: machine.sweep(values, scale, generator=generator),
        machine.start(20_000, generator=generator),
        sweeps=60,
    )
    shares = (last[:, None] == v).all(2).float().mean(0)
    assert shares.sum() == 1
    assert (shares - log_p.exp()).abs().max() < 0.015


# ---- the model


def exact_log_likelihood(model: Rbm, items: Tensor) -> float:
    with torch.no_grad():
        return float((-model.energy(items)).mean()) - model.log_partition()


@pytest.fixture(scope="module")
def of_bars() -> Rbm:
    settings = RbmSettings(visible="bernoulli", hidden=10, contrastive=quick(600, sweeps=2))
    model = Rbm((3, 3), settings)
    model.fit(bars(3).reshape(-1, 3, 3).repeat(20, 1, 1), generator=torch_generator(0))
    return model


def test_likelihood_comes_near_that_of_the_patterns_themselves(of_bars: Rbm) -> None:
    patterns = bars(3).reshape(-1, 3, 3)
    assert len(patterns) == 14
    best = -math.log(14)
    found = exact_log_likelihood(of_bars, patterns)
    # Independent pixels are at 9 log(1/2) = -6.2.
    assert best - 0.5 < found < best
    # The machine's own log Z makes it a distribution over all pictures.
    with torch.no_grad():
        mass = (-of_bars.energy(states(9).reshape(-1, 3, 3)) - of_bars.log_partition()).exp()
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3)


def test_samples_are_patterns(of_bars: Rbm) -> None:
    drawn = of_bars.sample(400, generator=torch_generator(1)).flatten(1)
    hits = (drawn[:, None] == bars(3)).all(2)
    assert hits.any(1).float().mean() > 0.7
    assert hits.any(0).sum() >= 12


def test_held_out_half_is_completed_as_the_model_says(of_bars: Rbm) -> None:
    """Against the exact conditional mean, by summing over all ways to fill the unknown pixels."""
    patterns = bars(3)
    known = torch.tensor([1, 1, 0, 1, 0, 0, 1, 0, 0], dtype=torch.bool).reshape(3, 3)
    items = patterns.reshape(-1, 3, 3).masked_fill(~known, torch.nan)
    found = of_bars.complete(items, known, generator=torch_generator(2), chains=400)
    v = states(9)
    with torch.no_grad():
        log_p = -of_bars.energy(v.reshape(-1, 3, 3))
    agrees = (v[None, :, known.flatten()] == patterns[:, None, known.flatten()]).all(2)
    exact = log_p.masked_fill(~agrees, -math.inf).softmax(1) @ v
    assert (found.flatten(1) - exact).abs().max() < 0.1
    assert torch.equal(found[:, known], patterns.reshape(-1, 3, 3)[:, known])


@pytest.mark.parametrize("algorithm", ["cd", "pcd"])
def test_both_algorithms_learn(algorithm: str) -> None:
    contrastive = quick(400, algorithm=algorithm)
    model = Rbm((9,), RbmSettings(visible="bernoulli", hidden=8, contrastive=contrastive))
    record = model.fit(bars(3).repeat(20, 1), generator=torch_generator(0))
    assert record.steps == 400
    assert record.validation_nats is None
    assert exact_log_likelihood(model, bars(3)) > -4.5


def mixture(n: int) -> Tensor:
    """Return items around four points, (n, 2, 3)."""
    generator = torch_generator(0, "mixture")
    centres = 2 * torch.randn(4, 6, generator=generator)
    chosen = torch.randint(0, 4, (n,), generator=generator)
    return (centres[chosen] + 0.5 * torch.randn(n, 6, generator=generator)).reshape(n, 2, 3)


def test_real_units_beat_a_gaussian_in_exact_nats() -> None:
    items = mixture(1200)
    train, unseen = items[:1000], items[1000:]
    model = Rbm((2, 3), RbmSettings(hidden=8, contrastive=quick(500)))
    record = model.fit(train, generator=torch_generator(0))
    assert record.warnings == []
    rows = train.flatten(1).double().numpy()
    gaussian = multivariate_normal(rows.mean(0), np.cov(rows.T)).logpdf(unseen.flatten(1).numpy())
    assert exact_log_likelihood(model, unseen) > gaussian.mean() + 1
    # Mixed precision must not reach the nats.
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.energy(unseen)
    assert torch.equal(mixed, model.energy(unseen))


def test_real_items_are_completed_where_each_number_stands_for_itself() -> None:
    items = mixture(600)
    model = Rbm((2, 3), RbmSettings(hidden=12, standardise="scale", contrastive=quick(300)))
    model.fit(items, generator=torch_generator(0))
    known = torch.tensor([[True, True, True], [True, False, False]])
    found = model.complete(items[:100], known, generator=torch_generator(1))
    error = (found - items[:100])[:, ~known].square().mean()
    assert error < 0.5 * items[:, ~known].var(0).mean()


def test_energy_far_below_that_of_the_items_is_reported() -> None:
    model = Rbm((9,), RbmSettings(visible="bernoulli", hidden=4))
    randomise(model, width=0.1)
    # A field that draws every chain to ones, where the items are zeros.
    with torch.no_grad():
        model.machine.units.bias.fill_(6.0)  # type: ignore[union-attr]
    zeros = torch.zeros(20, 9)
    (words,) = model._stray(zeros, generator=torch_generator(0), condition=None)
    assert "prefers places without items" in words


def test_what_cannot_be_done_is_refused() -> None:
    items = torch.randn(20, 4, generator=torch_generator(0))
    binary = Rbm((4,), RbmSettings(visible="bernoulli", hidden=30))
    with pytest.raises(ModelError, match=r"must lie in \[0, 1\], but they range from -"):
        binary.fit(items, generator=torch_generator(0))
    with pytest.raises(ModelError, match="at most 20 hidden units, but there are 30"):
        binary.log_partition()
    assert math.isfinite(binary.log_partition(generator=torch_generator(0)))
    with pytest.raises(ShapeError, match=r"must be bool and .* torch.float32"):
        binary.complete(items, torch.ones(4), generator=torch_generator(0))
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        binary.complete(items, torch.ones(3).bool(), generator=torch_generator(0))
    with pytest.raises(ModelError, match="standardise='whiten'"):
        Rbm((4,), RbmSettings()).complete(items, torch.ones(4).bool(), generator=torch_generator(0))
