import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from medseg.errors import PriorError
from medseg.priors.gaussian import DiagonalGaussian, FullGaussian, SourceCentredGaussian
from medseg.seeding import torch_generator

SHAPE = (3, 3, 3)


def kernels(n: int = 300, *, scale: float = 0.05) -> torch.Tensor:
    generator = torch_generator(0)
    factor = torch.randn(27, 27, generator=generator) / 27**0.5 + 0.5 * torch.eye(27)
    vectors = torch.randn(n, 27, generator=generator) @ factor.T + 0.3
    return scale * vectors.reshape(n, *SHAPE)


def flat(x: torch.Tensor) -> np.ndarray:
    return x.flatten(1).double().numpy()


def test_full_gaussian_equals_scipy() -> None:
    w = kernels()
    prior = FullGaussian.fit(w)
    expected = multivariate_normal(
        prior.mean.flatten().double().numpy(), prior.covariance.double().numpy()
    ).logpdf(flat(w))
    np.testing.assert_allclose(prior.log_bound(w).numpy(), expected, rtol=1e-4, atol=2e-3)


def test_diagonal_gaussian_equals_scipy() -> None:
    w = kernels()
    prior = DiagonalGaussian.fit(w)
    expected = norm(flat(w).mean(0), flat(w).std(0)).logpdf(flat(w)).sum(1)
    np.testing.assert_allclose(prior.log_bound(w).numpy(), expected, rtol=1e-4, atol=2e-3)


def test_source_centred_gaussian_equals_scipy() -> None:
    source, w = kernels(20), kernels(20) + 0.01
    std = 0.02 * torch.rand(20, *SHAPE, generator=torch_generator(1)) + 0.01
    expected = norm(flat(source), flat(std)).logpdf(flat(w)).sum(1)
    found = SourceCentredGaussian(source, std).log_bound(w).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3)


def test_fitted_gaussian_has_the_moments_of_the_kernels() -> None:
    w = kernels(2000)
    prior = FullGaussian.fit(w, shrinkage=0.0)
    np.testing.assert_allclose(
        prior.covariance.numpy(), np.cov(flat(w).T, bias=True), rtol=0.02, atol=1e-6
    )
    samples = prior.sample(20_000, generator=torch_generator(0))
    error = np.abs(np.cov(flat(samples).T) - prior.covariance.numpy()).max()
    assert error < 0.05 * prior.covariance.diagonal().max()


def test_precision_and_log_determinant_are_those_of_the_covariance() -> None:
    prior = FullGaussian.fit(kernels())
    identity = prior.precision @ prior.covariance
    torch.testing.assert_close(identity, torch.eye(27), rtol=0, atol=1e-3)
    expected = torch.linalg.slogdet(prior.covariance.double()).logabsdet.float()
    torch.testing.assert_close(prior.log_det_covariance, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("made", [DiagonalGaussian, FullGaussian])
@pytest.mark.parametrize("factor", [0.01, 7.0])
def test_scaling_shifts_the_nats_by_the_jacobian(
    made: type[DiagonalGaussian | FullGaussian], factor: float
) -> None:
    w = kernels()
    prior = made.fit(w)
    expected = prior.log_bound(w) - 27 * math.log(factor)
    for scaled in (prior.scaled(factor), made.fit(factor * w)):
        torch.testing.assert_close(scaled.log_bound(factor * w), expected, rtol=1e-4, atol=5e-3)


def test_correlations_are_worth_nats() -> None:
    train, held = kernels(1000)[:800], kernels(1000)[800:]
    full, diagonal = FullGaussian.fit(train), DiagonalGaussian.fit(train)
    assert full.log_bound(held).mean() > diagonal.log_bound(held).mean() + 2


def test_shrinkage_helps_where_kernels_are_few() -> None:
    train, held = kernels(1000)[:30], kernels(1000)[500:]
    shrunk = FullGaussian.fit(train).log_bound(held).mean()
    raw = FullGaussian.fit(train, shrinkage=0.0).log_bound(held).mean()
    assert shrunk > raw + 1


def test_selected_rows_keep_their_gaussian() -> None:
    source = kernels(10)
    prior = SourceCentredGaussian(source, torch.tensor(0.01))
    rows = torch.tensor([7, 2])
    expected = prior.log_bound(source + 0.02)[rows]
    assert torch.equal(prior.select(rows).log_bound(source[rows] + 0.02), expected)


def test_source_centred_gaussian_refuses_another_number_of_kernels() -> None:
    prior = SourceCentredGaussian(kernels(10), torch.tensor(0.01))
    with pytest.raises(PriorError, match="10 here, but 4"):
        prior.log_bound(kernels(4))
    with pytest.raises(PriorError, match="10 here, but 4"):
        prior.sample(4, generator=torch_generator(0))


def test_covariance_that_is_not_positive_definite_is_refused() -> None:
    bad = torch.eye(9)
    bad[3, 3] = -2
    with pytest.raises(PriorError, match="smallest entry on the diagonal -2"):
        FullGaussian(torch.zeros(3, 3), bad)
    with pytest.raises(PriorError, match=r"must be \(9, 9\)"):
        FullGaussian(torch.zeros(3, 3), torch.eye(27))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_deviation_that_is_not_positive_is_refused(value: float) -> None:
    with pytest.raises(PriorError, match="finite and above 0"):
        DiagonalGaussian(torch.zeros(3, 3), torch.full((3, 3), value))
