import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bernoulli

from medseg.errors import ShapeError
from medseg.inference.uncertainty import RunningStatistics, bernoulli_entropy_nats


def stream(samples: torch.Tensor):
    running = RunningStatistics()
    for sample in samples:
        running.add(sample)
    return running.result()


@given(st.integers(1, 12), st.integers(0, 1000))
def test_running_moments_are_those_of_all_samples_at_once(count: int, seed: int) -> None:
    samples = torch.rand(count, 2, 3, 4, 2, generator=torch.Generator().manual_seed(seed))
    result = stream(samples)
    exact = samples.double()
    assert result.samples == count
    torch.testing.assert_close(result.probability.double(), exact.mean(0))
    torch.testing.assert_close(
        result.std.double(), exact.std(0, correction=0), atol=1e-6, rtol=1e-4
    )
    entropy = bernoulli.entropy(exact.numpy()).mean(0)
    np.testing.assert_allclose(result.expected_entropy_nats.numpy(), entropy, atol=1e-5)


def test_entropy_is_zero_when_certain_and_log_two_at_a_half() -> None:
    entropy = bernoulli_entropy_nats(torch.tensor([0.0, 1.0, 0.5]))
    assert entropy.tolist() == pytest.approx([0, 0, math.log(2)])


def test_samples_that_agree_hold_no_mutual_information() -> None:
    sample = torch.rand(2, 3, 3, 3)
    result = stream(torch.stack([sample] * 5))
    assert result.mutual_information_nats.max() < 1e-6
    assert result.std.max() < 1e-6
    torch.testing.assert_close(result.entropy_nats, result.expected_entropy_nats)


def test_certain_samples_that_disagree_are_all_mutual_information() -> None:
    result = stream(torch.tensor([[0.0], [1.0], [0.0], [1.0]]))
    assert result.mutual_information_nats.item() == pytest.approx(math.log(2))
    assert result.expected_entropy_nats.item() == 0
    assert result.std.item() == 0.5


def test_small_spreads_far_from_zero_do_not_cancel() -> None:
    samples = torch.tensor([0.99990, 0.99991, 0.99992]).reshape(3, 1)
    expected = samples.double().std(0, correction=0).item()
    assert stream(samples).std.item() == pytest.approx(expected, rel=0.05)


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    running = RunningStatistics()
    for _ in range(50):
        running.add(torch.rand(1, 4, 4, 4))
    held = [value for value in vars(running).values() if isinstance(value, torch.Tensor)]
    assert sum(value.numel() for value in held) == 3 * 64


def test_nothing_and_other_shapes_are_refused() -> None:
    running = RunningStatistics()
    with pytest.raises(ShapeError, match="at least one"):
        running.result()
    running.add(torch.rand(1, 2, 2, 2))
    with pytest.raises(ShapeError, match=r"\(1, 2, 2, 2\).*\(1, 2, 2, 3\)"):
        running.add(torch.rand(1, 2, 2, 3))
