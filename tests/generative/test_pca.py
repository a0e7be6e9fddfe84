import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from torch import Tensor

from medseg.errors import ModelError
from medseg.generative.pca import Pca, PcaSettings, Ppca
from medseg.seeding import torch_generator


def factor_items(n: int, d: int, *, rank: int = 2, noise: float = 0.3, seed: int = 0) -> Tensor:
    generator = torch_generator(seed, "factors")
    loadings = torch.randn(d, rank, generator=generator)
    codes = torch.randn(n, rank, generator=generator)
    return codes @ loadings.T + noise * torch.randn(n, d, generator=generator) + 1


def fitted(kind: type[Pca], items: Tensor, latent: int) -> Pca:
    model = kind(tuple(items.shape[1:]), PcaSettings(latent=latent))
    model.fit(items, generator=torch_generator(0))
    return model


@given(
    n=st.integers(20, 80), d=st.integers(3, 12), latent=st.integers(1, 2), seed=st.integers(0, 99)
)
def test_agrees_with_scikit_learn(n: int, d: int, latent: int, seed: int) -> None:
    items = factor_items(n, d, seed=seed)
    oracle = PCA(latent, svd_solver="full").fit(items.double().numpy())
    model, density = fitted(Pca, items, latent), fitted(Ppca, items, latent)
    codes = oracle.transform(items.numpy())
    signs = np.sign((model.components.numpy() * oracle.components_).sum(1))
    np.testing.assert_allclose(model.encode(items).numpy() * signs, codes, atol=2e-4)
    np.testing.assert_allclose(
        model.reconstruct(items).numpy(), oracle.inverse_transform(codes), atol=2e-4
    )
    expected = oracle.score_samples(items.double().numpy())
    np.testing.assert_allclose(density.bound(items).numpy(), expected, rtol=1e-4, atol=2e-3)


def test_noise_and_loadings_of_the_truth_are_found() -> None:
    items = factor_items(20_000, 10)
    model = fitted(Ppca, items, 2)
    assert float(model.noise.sqrt()) == pytest.approx(0.3, rel=0.01)
    drawn = model.sample(20_000, generator=torch_generator(1))
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(items.T), rtol=0, atol=0.15)


def test_code_is_the_posterior_mean() -> None:
    items = factor_items(50, 7).double()
    model = fitted(Ppca, items.float(), 3).double()
    zero = model.decode(torch.zeros(1, 3).double())
    loadings = (model.decode(torch.eye(3).double()) - zero).T
    inner = loadings.T @ loadings + model.noise * torch.eye(3)
    expected = torch.linalg.solve(inner, loadings.T @ (items - zero).T).T
    torch.testing.assert_close(model.encode(items), expected)


def test_as_many_components_as_numbers_are_the_full_gaussian() -> None:
    items = factor_items(300, 4, rank=4)
    model = fitted(Ppca, items, 9)
    assert model.encode(items).shape == (300, 4)
    normal = multivariate_normal(items.double().mean(0).numpy(), np.cov(items.double().numpy().T))
    np.testing.assert_allclose(model.bound(items).numpy(), normal.logpdf(items), atol=2e-3)


def test_reconstruction_error_is_the_variance_left_out() -> None:
    items = factor_items(400, 9).reshape(-1, 3, 3)
    model = fitted(Pca, items, 2)
    error = (items - model.reconstruct(items)).square().flatten(1).sum(1).mean()
    expected = float(model.noise) * 7 * 399 / 400
    assert float(error) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_scaling_the_items_shifts_the_nats_by_the_jacobian(factor: float) -> None:
    items = factor_items(100, 6)
    plain, scaled = (fitted(Ppca, c * items, 2).bound(c * items) for c in (1.0, factor))
    torch.testing.assert_close(scaled, plain - 6 * math.log(factor), rtol=0, atol=2e-3)


def test_items_without_noise_keep_a_density() -> None:
    items = factor_items(50, 6, noise=0.0).requires_grad_()
    model = fitted(Ppca, items.detach(), 3)
    model.bound(items).sum().backward()
    assert items.grad is not None
    assert torch.isfinite(items.grad).all()


def test_too_few_items_are_refused() -> None:
    with pytest.raises(ModelError, match="at least 4 items, all finite, but 3 of 3"):
        fitted(Ppca, factor_items(3, 8), 3)
