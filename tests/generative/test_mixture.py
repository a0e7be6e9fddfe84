import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as Oracle
from torch import Tensor

from medseg.errors import ModelError
from medseg.generative.mixture import GaussianMixture, MixtureSettings
from medseg.generative.noise import draw_seed
from medseg.seeding import torch_generator

CENTRES = torch.tensor([[-4.0, 0.0, 1.0], [4.0, 0.0, -1.0], [0.0, 5.0, 0.0]])


def clusters(n: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch_generator(0, "clusters")
    chosen = torch.randint(0, 3, (n,), generator=generator)
    spread = torch.tensor([[0.3, 1.0, 0.5]])
    return CENTRES[chosen] + spread * torch.randn(n, 3, generator=generator), chosen


def fitted(items: Tensor, **options: object) -> GaussianMixture:
    model = GaussianMixture(tuple(items.shape[1:]), MixtureSettings(**options))  # type: ignore[arg-type]
    model.fit(items, generator=torch_generator(0))
    return model


@pytest.mark.parametrize(("covariance", "theirs"), [("full", "full"), ("diagonal", "diag")])
@pytest.mark.parametrize("components", [1, 4])
def test_agrees_with_scikit_learn(covariance: str, theirs: str, components: int) -> None:
    items, _ = clusters()
    model = fitted(
        items, components=components, covariance=covariance, standardise="none", regularisation=1e-3
    )
    seed = draw_seed(torch_generator(0))
    oracle = Oracle(
        components, covariance_type=theirs, reg_covar=1e-3, max_iter=200, random_state=seed
    ).fit(items.double().numpy())
    expected = oracle.score_samples(items.double().numpy())
    np.testing.assert_allclose(model.bound(items).numpy(), expected, rtol=1e-4, atol=1e-4)
    shares = oracle.predict_proba(items.double().numpy())
    np.testing.assert_allclose(model.encode(items).numpy(), shares, atol=1e-4)


@pytest.mark.parametrize("standardise", ["none", "scale", "whiten"])
def test_density_integrates_to_one(standardise: str) -> None:
    items = 10 * clusters()[0][:, :1]
    model = fitted(items, components=3, standardise=standardise)
    line = torch.linspace(-150, 150, 20_001)
    mass = model.bound(line[:, None]).exp().sum() * (line[1] - line[0])
    assert float(mass) == pytest.approx(1, abs=1e-3)


def test_clusters_are_found_and_sampled_in_their_shares() -> None:
    items, chosen = clusters(900)
    model = fitted(items, components=3)
    codes = model.encode(items)
    own = [int(codes[chosen == k].mean(0).argmax()) for k in range(3)]
    assert sorted(own) == [0, 1, 2]
    assert all(codes[chosen == k][:, own[k]].min() > 0.99 for k in range(3))
    torch.testing.assert_close(model.decode(torch.eye(3))[own], CENTRES, rtol=0, atol=0.3)
    drawn = model.sample(3000, generator=torch_generator(1))
    shares = model.encode(drawn).mean(0)[own]
    expected = torch.bincount(chosen).float() / len(chosen)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_scaling_the_items_shifts_the_nats_by_the_jacobian(covariance: str) -> None:
    items, _ = clusters()
    plain, scaled = (
        fitted(c * items, components=3, covariance=covariance).bound(c * items) for c in (1.0, 0.01)
    )
    torch.testing.assert_close(scaled, plain - 3 * math.log(0.01), rtol=0, atol=0.01)


def test_stopping_too_early_is_said() -> None:
    model = GaussianMixture((3,), MixtureSettings(components=4, max_steps=1))
    record = model.fit(clusters()[0], generator=torch_generator(0))
    assert record.warnings == ["The mixture was still gaining at max_steps 1."]


def test_fewer_items_than_components_are_refused() -> None:
    with pytest.raises(ModelError, match="at least 8 items, all finite, but 5 of 5"):
        fitted(clusters()[0][:5])
