import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, Normal

from medseg.errors import ModelError, ShapeError
from medseg.variational.posterior import MeanFieldGaussian


def make(shape=(4, 3, 3, 3, 3), *, seed=0, max_log_std=None):
    generator = torch.Generator().manual_seed(seed)
    mean = 0.1 * torch.randn(shape, generator=generator)
    log_std = -2.0 + 0.5 * torch.randn(shape, generator=generator)
    return MeanFieldGaussian(mean, log_std, max_log_std=max_log_std)


@given(
    out=st.integers(1, 4), inp=st.integers(1, 4), dims=st.integers(2, 3), seed=st.integers(0, 99)
)
def test_entropy_agrees_with_torch(out, inp, dims, seed):
    q = make((out, inp, *[3] * dims), seed=seed)
    oracle = Independent(Normal(q.mean.flatten(0, 1), q.std.flatten(0, 1)), dims).entropy()
    torch.testing.assert_close(q.entropy_per_kernel(), oracle)
    torch.testing.assert_close(q.entropy(), oracle.sum())
    assert q.n_kernels == out * inp == len(oracle)


def test_kernels_keep_output_then_input_order():
    q = make((4, 3, 3, 3))
    chosen = q.kernels(torch.tensor([7, 2]))
    torch.testing.assert_close(chosen.mean[0], q.mean[2, 1])
    torch.testing.assert_close(chosen.log_std[1], q.log_std[0, 2])


def test_samples_do_not_depend_on_memory_format():
    plain = make()
    other = make()
    other.to(memory_format=torch.channels_last_3d)
    assert not other.mean.is_contiguous()
    drawn = [q.rsample(torch.Generator().manual_seed(1)) for q in (plain, other)]
    torch.testing.assert_close(*drawn, rtol=0, atol=0)
    torch.testing.assert_close(plain.kernels().mean, other.kernels().mean)


def test_without_a_generator_the_global_one_is_used():
    q = make()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = q.rsample()
        torch.manual_seed(3)
        assert torch.equal(first, q.rsample())


class TestCap:
    def test_limits_what_is_used(self):
        q = make(max_log_std=-2.0)
        assert q.log_std.max() > -2.0
        assert q.std.max() <= math.exp(-2.0) * (1 + 1e-6)
        assert q.kernels().log_std.max() <= -2.0
        below = q.log_std <= -2.0
        assert torch.equal(q.capped_log_std[below], q.log_std[below])

    @pytest.mark.parametrize(("sign", "expected"), [(1.0, 1.0), (-1.0, 0.0)])
    def test_gradient_above_the_cap_only_leads_back(self, sign, expected):
        q = MeanFieldGaussian(torch.zeros(1, 1, 3, 3), 0.0, max_log_std=-1.0)
        (sign * q.capped_log_std).sum().backward()
        assert torch.equal(q.log_std.grad, torch.full((1, 1, 3, 3), expected))

    def test_descent_settles_at_the_cap_and_comes_back(self):
        q = MeanFieldGaussian(torch.zeros(1, 1, 3, 3), -3.0, max_log_std=-1.0)
        optimiser = torch.optim.SGD(q.parameters(), lr=0.2)
        for goal in (2.0, -2.0):
            for _ in range(60):
                optimiser.zero_grad()
                (q.capped_log_std - goal).square().sum().backward()
                optimiser.step()
            torch.testing.assert_close(
                q.capped_log_std, torch.full((1, 1, 3, 3), min(goal, -1.0)), atol=1e-4, rtol=0
            )

    def test_travels_with_the_state(self):
        saved, fresh = make(seed=1, max_log_std=-2.5), make(seed=2, max_log_std=-1.0)
        fresh.load_state_dict(saved.state_dict())
        assert torch.equal(fresh.std, saved.std)

    def test_without_one_the_state_is_mean_and_log_std(self):
        assert set(make().state_dict()) == {"mean", "log_std"}


def test_starts_are_copied():
    mean = torch.zeros(1, 1, 3, 3)
    q = MeanFieldGaussian(mean, 0.0)
    with torch.no_grad():
        q.mean.add_(1.0)
    assert mean.abs().max() == 0


@pytest.mark.parametrize(
    ("mean", "log_std", "error", "value"),
    [
        (torch.zeros(3, 3), 0.0, ShapeError, r"\(3, 3\)"),
        (torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3), ShapeError, r"\(1, 1, 3\)"),
        (torch.zeros(1, 1, 3, 3), float("-inf"), ModelError, "infinite"),
        (torch.full((1, 1, 3, 3), float("nan")), 0.0, ModelError, "NaN"),
    ],
)
def test_refuses_what_is_no_posterior(mean, log_std, error, value):
    with pytest.raises(error, match=value):
        MeanFieldGaussian(mean, log_std)
