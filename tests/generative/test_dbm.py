import itertools
import math

import pytest
import torch
from torch import Tensor

from medseg.generative.dbm import Dbm, DbmSettings
from medseg.generative.fitting import FitSettings
from medseg.generative.machine import ContrastiveSettings
from medseg.generative.rbm import Rbm, RbmSettings
from medseg.seeding import torch_generator


def states(n: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)))


def bars(n: int) -> Tensor:
    rows = states(n)[:, :, None].expand(-1, n, n)
    return torch.cat([rows, rows.transpose(1, 2)]).flatten(1).unique(dim=0)


def tiny(visible: str = "bernoulli", *, width: float = 1.0, rounds: int = 200) -> Dbm:
    """Return a machine with 4 visible and 3 + 2 hidden units and random weights."""
    settings = DbmSettings(
        visible=visible,  # type: ignore[arg-type]
        standardise="none",
        hidden=(3, 2),
        rounds=rounds,
    )
    model = Dbm((4,), settings)
    generator = torch_generator(0)
    with torch.no_grad():
        for value in model.machine.state_dict().values():
            value.copy_(width * torch.randn(value.shape, generator=generator))
    return model


def plain(model: Dbm) -> tuple[Tensor, ...]:
    """Return W1, W2, b, a1, a2 of ``E = -v' W1 h1 - h1' W2 h2 - b' v - a1' h1 - a2' h2``."""
    machine = model.machine
    machine.fold()
    first, second = machine.weight[: model.size], machine.weight[model.size :].T
    biases = machine.units.first.bias, machine.hidden_bias, machine.units.second.bias
    return tuple(value.detach() for value in (first, second, *biases))


def enumerated(model: Dbm) -> Tensor:
    """Return minus the energy of all 16 x 8 x 4 states (v, h1, h2)."""
    W1, W2, b, a1, a2 = plain(model)
    v, h1, h2 = states(4), states(3), states(2)
    pairs = (v @ W1 @ h1.T)[:, :, None] + (h1 @ W2 @ h2.T)[None]
    return pairs + (v @ b)[:, None, None] + (h1 @ a1)[None, :, None] + (h2 @ a2)[None, None]


def test_log_partition_is_the_sum_over_all_states() -> None:
    model = tiny()
    exact = enumerated(model).flatten().logsumexp(0)
    assert model.log_partition() == pytest.approx(float(exact), abs=1e-4)


@pytest.mark.parametrize("width", [0.2, 1.0, 2.0])
def test_energy_bounds_the_exact_free_energy(width: float) -> None:
    model = tiny(width=width)
    exact = -enumerated(model).flatten(1).logsumexp(1)
    gap = model.energy(states(4)).detach() - exact
    assert gap.min() > -1e-4
    assert gap.max() < {0.2: 0.01, 1.0: 0.5, 2.0: 2.0}[width]


def test_energy_is_that_of_an_rbm_where_the_second_layer_is_cut_off() -> None:
    for visible in ("bernoulli", "gaussian"):
        model = tiny(visible)
        model.machine.fold()
        with torch.no_grad():
            model.machine.weight[4:] = 0
        rbm = Rbm((4,), RbmSettings(visible=visible, standardise="none", hidden=3))  # type: ignore[arg-type]
        rbm.machine.units.load_state_dict(model.machine.units.first.state_dict())
        with torch.no_grad():
            rbm.machine.weight.copy_(model.machine.weight[:4])
            rbm.machine.hidden_bias.copy_(model.machine.hidden_bias)
        items = torch.rand(6, 4, generator=torch_generator(1))
        deep = -model.energy(items) - model.log_partition()
        flat = -rbm.energy(items) - rbm.log_partition()
        torch.testing.assert_close(deep, flat)


def test_more_rounds_never_loosen_the_bound() -> None:
    energies = [tiny(rounds=n).energy(states(4)).detach() for n in (1, 2, 4, 8, 16)]
    assert all((b <= a + 1e-5).all() for a, b in itertools.pairwise(energies))


def test_gradient_by_the_items_needs_none_through_the_means() -> None:
    for visible in ("bernoulli", "gaussian"):
        model = tiny(visible).double()
        items = torch.rand(2, 4, generator=torch_generator(1), dtype=torch.float64)
        assert torch.autograd.gradcheck(model.energy, (items.requires_grad_(),), atol=1e-4)


@pytest.fixture(scope="module")
def of_bars() -> Dbm:
    fit = FitSettings(epochs=600, max_steps=600, batch_size=70, learning_rate=0.04)
    settings = DbmSettings(
        visible="bernoulli",
        hidden=(10, 6),
        rounds=10,
        contrastive=ContrastiveSettings(sweeps=2, fit=fit),
    )
    model = Dbm((3, 3), settings)
    model.fit(bars(3).reshape(-1, 3, 3).repeat(20, 1, 1), generator=torch_generator(0))
    return model


def test_likelihood_bound_comes_near_that_of_the_patterns_themselves(of_bars: Dbm) -> None:
    with torch.no_grad():
        bound = -of_bars.energy(bars(3).reshape(-1, 3, 3)) - of_bars.log_partition()
    assert -math.log(14) - 0.8 < float(bound.mean()) < -math.log(14)


def test_both_layers_are_fitted_at_once(of_bars: Dbm) -> None:
    # Weights start with a deviation of 0.01.
    assert of_bars.machine.weight[9:].abs().mean() > 0.05
    codes = of_bars.encode(bars(3).reshape(-1, 3, 3)).detach()
    assert codes.shape == (14, 16)
    assert codes[:, 10:].std(0).mean() > 0.05


def test_held_out_half_of_known_patterns_is_completed(of_bars: Dbm) -> None:
    patterns = bars(3).reshape(-1, 3, 3)
    known = torch.zeros(3, 3, dtype=torch.bool)
    known[:, 0] = known[0] = True
    # One row and one column tell which pattern it is.
    found = of_bars.complete(
        patterns.masked_fill(~known, torch.nan), known, generator=torch_generator(1), chains=20
    )
    agrees = (patterns[:, None, known] == patterns[None, :, known]).all(2).float()
    expected = torch.einsum("pq,qij->pij", agrees / agrees.sum(1, keepdim=True), patterns)
    assert (found - expected).abs().mean() < 0.1


def test_samples_are_patterns(of_bars: Dbm) -> None:
    drawn = of_bars.sample(300, generator=torch_generator(1)).flatten(1)
    hits = (drawn[:, None] == bars(3)).all(2)
    assert hits.any(1).float().mean() > 0.6
    assert hits.any(0).sum() >= 11
