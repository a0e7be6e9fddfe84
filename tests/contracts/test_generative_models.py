"""Laws every generative model keeps. A new model adds one line to MODELS."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy.stats import multivariate_normal

from medseg.errors import MedsegError
from medseg.generative.fitting import FitSettings
from medseg.generative.model import GenerativeModel
from medseg.generative.vae import Vae, VaeSettings
from medseg.seeding import torch_generator

EVENT = (2, 2)
QUICK = FitSettings(max_steps=300, epochs=100)

MODELS: dict[str, Callable[[], GenerativeModel]] = {
    "vae": lambda: Vae(EVENT, VaeSettings(latent=2, hidden=(16,), fit=QUICK)),
    "whitened vae": lambda: Vae(
        EVENT, VaeSettings(latent=2, hidden=(16,), standardise="whiten", fit=QUICK)
    ),
    "linear vae": lambda: Vae(
        EVENT, VaeSettings(latent=2, hidden=(), decoder_std="shared", fit=QUICK)
    ),
}


def toy() -> tuple[torch.Tensor, torch.Tensor]:
    """Return items of a correlated Gaussian, (600, 2, 2), and their exact log density in nats."""
    generator = torch_generator(0, "toy")
    factor = torch.randn(4, 4, generator=generator) + torch.eye(4)
    mean = torch.tensor([1.0, -2.0, 0.0, 0.5])
    vectors = mean + torch.randn(600, 4, generator=generator) @ factor.T
    covariance = (factor @ factor.T).double().numpy()
    exact = multivariate_normal(mean.double().numpy(), covariance).logpdf(vectors.double().numpy())
    return vectors.reshape(-1, *EVENT), torch.from_numpy(exact).float()


@pytest.fixture(scope="module", params=list(MODELS))
def fitted(request: pytest.FixtureRequest) -> GenerativeModel:
    model = MODELS[request.param]()
    model.fit(toy()[0][:400], generator=torch_generator(1, "fit"))
    return model


def test_follows_the_protocol(fitted: GenerativeModel) -> None:
    assert isinstance(fitted, GenerativeModel)
    assert fitted.event_shape == EVENT


def test_same_generator_gives_the_same_sample(fitted: GenerativeModel) -> None:
    first, again, other = (fitted.sample(5, generator=torch_generator(s)) for s in (3, 3, 4))
    assert first.shape == (5, *EVENT)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bound_stays_below_the_exact_density_and_comes_near(fitted: GenerativeModel) -> None:
    items, exact = toy()
    with torch.no_grad():
        bound = fitted.bound(items[400:], generator=torch_generator(2))
    gap = exact[400:] - bound
    assert bound.shape == (200,)
    # Gibbs: no model scores the true density's items better than that density, but for chance.
    assert gap.mean() > -2 * gap.std() / len(gap) ** 0.5
    assert gap.mean() < 0.6


def test_samples_have_the_moments_of_the_items(fitted: GenerativeModel) -> None:
    items = toy()[0].flatten(1)
    samples = fitted.sample(4000, generator=torch_generator(5)).flatten(1)
    spread = items.std(0)
    assert ((samples.mean(0) - items.mean(0)).abs() / spread).max() < 0.25
    assert ((samples.std(0) / spread).log().abs()).max() < 0.25


def test_save_then_load_changes_nothing(fitted: GenerativeModel, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    loaded = type(fitted).load(tmp_path / "model")
    items = toy()[0][:7]
    with torch.no_grad():
        assert torch.equal(
            loaded.bound(items, generator=torch_generator(0)),
            fitted.bound(items, generator=torch_generator(0)),
        )
    assert torch.equal(
        loaded.sample(3, generator=torch_generator(0)),
        fitted.sample(3, generator=torch_generator(0)),
    )


def test_gradient_flows_to_the_items(fitted: GenerativeModel) -> None:
    items = toy()[0][:5].clone().requires_grad_()
    fitted.bound(items, generator=torch_generator(0)).sum().backward()
    assert items.grad is not None
    assert torch.isfinite(items.grad).all()
    assert (items.grad != 0).all()


def test_wrong_shape_is_refused(fitted: GenerativeModel) -> None:
    with pytest.raises(MedsegError, match="3"):
        fitted.bound(torch.zeros(4, 3, 3))


def test_fit_is_a_function_of_the_generator_and_leaves_the_global_one_alone() -> None:
    items = toy()[0][:100]
    for make in MODELS.values():
        before = torch.random.get_rng_state()
        first, again = make(), make()
        first.fit(items, generator=torch_generator(1))
        again.fit(items, generator=torch_generator(1))
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.equal(
            first.sample(3, generator=torch_generator(0)),
            again.sample(3, generator=torch_generator(0)),
        )
