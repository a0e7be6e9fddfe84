import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf

from medseg.generative.covariance import shrunk_covariance
from medseg.seeding import torch_generator


@given(n=st.integers(2, 60), d=st.integers(1, 30), seed=st.integers(0, 1000))
def test_agrees_with_scikit_learn(n: int, d: int, seed: int) -> None:
    generator = torch_generator(seed)
    vectors = torch.randn(n, d, generator=generator, dtype=torch.float64)
    vectors = vectors * torch.rand(d, generator=generator, dtype=torch.float64) + 3
    expected, _ = ledoit_wolf(vectors.numpy())
    np.testing.assert_allclose(shrunk_covariance(vectors).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_no_shrinkage_is_the_empirical_covariance_and_full_shrinkage_is_isotropic() -> None:
    vectors = torch.randn(40, 5, generator=torch_generator(0)).double()
    empirical = np.cov(vectors.numpy().T, bias=True)
    np.testing.assert_allclose(shrunk_covariance(vectors, shrinkage=0.0).numpy(), empirical)
    isotropic = np.trace(empirical) / 5 * np.eye(5)
    np.testing.assert_allclose(shrunk_covariance(vectors, shrinkage=1.0).numpy(), isotropic)


@pytest.mark.parametrize("n", [5, 26])
def test_fewer_items_than_dimensions_still_give_a_positive_definite_matrix(n: int) -> None:
    vectors = torch.randn(n, 27, generator=torch_generator(n))
    assert torch.linalg.eigvalsh(shrunk_covariance(vectors)).min() > 1e-3
