import math

import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from torch import Tensor

from medseg.errors import ModelError, ShapeError
from medseg.generative.fitting import FitSettings
from medseg.generative.pca import PcaSettings, Ppca
from medseg.generative.vae import Vae, VaeSettings
from medseg.priors.gaussian import FullGaussian
from medseg.seeding import torch_generator

QUICK = FitSettings(max_steps=300)
BRIEF = FitSettings(max_steps=50)


def ppca_items(n: int) -> Tensor:
    generator = torch_generator(0, "ppca")
    loadings = torch.randn(6, 2, generator=generator) * torch.tensor([1.5, 0.8])
    z = torch.randn(n, 2, generator=generator)
    return z @ loadings.T + 0.4 * torch.randn(n, 6, generator=generator) + 1


@pytest.fixture(scope="module")
def linear() -> Vae:
    """A linear decoder with one deviation: probabilistic PCA, whose likelihood is known."""
    fit = FitSettings(
        max_steps=500, epochs=500, batch_size=900, learning_rate=0.05, weight_decay=0, patience=20
    )
    vae = Vae((6,), VaeSettings(latent=2, hidden=(), decoder_std="shared", fit=fit))
    vae.fit(ppca_items(1000), generator=torch_generator(1))
    return vae


def exact_log_density(vae: Vae, items: Tensor) -> Tensor:
    """Return log N(b, W W' + s^2 I) of a linear model, with the change of units."""
    layer = vae.decoder.net[0]
    log_std = vae.decoder(torch.zeros(1, 2), None)[1].detach()
    noise = float(log_std.exp().flatten()[0]) ** 2
    covariance = (layer.weight @ layer.weight.T + noise * torch.eye(6)).detach().double()
    normal = multivariate_normal(layer.bias.detach().double().numpy(), covariance.numpy())
    u = vae.standardiser(items).double().numpy()
    return torch.from_numpy(normal.logpdf(u)) + float(vae.standardiser.log_det)


def test_linear_model_reaches_the_likelihood_of_probabilistic_pca(linear: Vae) -> None:
    items = ppca_items(1000)
    expected = PCA(n_components=2).fit(items.numpy()).score(items.numpy())
    with torch.no_grad():
        reached = float(linear.elbo(items, generator=torch_generator(2)).mean())
    assert reached == pytest.approx(expected, abs=0.1)


def test_bounds_are_ordered_and_below_the_exact_likelihood(linear: Vae) -> None:
    items = ppca_items(400)
    exact = exact_log_density(linear, items).mean()
    with torch.no_grad():
        bounds = [
            float(linear.bound(items, generator=torch_generator(3), n_codes=k).mean())
            for k in (1, 8, 128)
        ]
        elbo = float(linear.elbo(items, generator=torch_generator(3)).mean())
    slack = 0.02
    assert elbo <= exact + slack
    assert bounds[0] <= bounds[1] + slack
    assert bounds[1] <= bounds[2] + slack
    assert bounds[2] <= exact + slack
    assert bounds[2] == pytest.approx(float(exact), abs=0.05)


def test_bound_does_not_depend_on_how_rows_are_cut(linear: Vae) -> None:
    items = ppca_items(300)
    with torch.no_grad():
        whole = linear.bound(items, generator=torch_generator(0), n_codes=400)
        parts = [
            linear.bound(part, generator=torch_generator(1), n_codes=400)
            for part in items.split(50)
        ]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=0.2)


@pytest.mark.parametrize("standardise", ["scale", "whiten"])
@pytest.mark.parametrize("factor", [0.01, 30.0])
def test_scaling_the_items_shifts_the_nats_by_the_jacobian(standardise: str, factor: float) -> None:
    items = ppca_items(200)
    settings = VaeSettings(latent=2, hidden=(8,), standardise=standardise, fit=BRIEF)  # type: ignore[arg-type]
    bounds = []
    for c in (1.0, factor):
        vae = Vae((6,), settings)
        vae.fit(c * items, generator=torch_generator(0))
        with torch.no_grad():
            bounds.append(vae.bound(c * items, generator=torch_generator(1)).mean())
    expected = bounds[0] - 6 * math.log(factor)
    torch.testing.assert_close(bounds[1], expected, rtol=0, atol=0.05)


def test_deviation_from_the_code_learns_sizes_that_a_gaussian_cannot() -> None:
    generator = torch_generator(0)
    size = torch.randn(1500, 1, generator=generator).exp()
    items = size * torch.randn(1500, 9, generator=generator)
    train, held = items[:1000], items[1000:]
    gaussian = FullGaussian.fit(train.reshape(-1, 3, 3)).log_bound(held.reshape(-1, 3, 3)).mean()
    vae = Vae((9,), VaeSettings(latent=2, hidden=(32,), std_floor=0.05, fit=QUICK))
    vae.fit(train, generator=generator)
    with torch.no_grad():
        learned = vae.bound(held, generator=generator).mean()
    assert learned > gaussian + 2


@pytest.mark.parametrize("decoder_std", ["shared", "per_feature", "from_code"])
def test_deviation_keeps_its_floor(decoder_std: str) -> None:
    settings = VaeSettings(latent=1, hidden=(8,), decoder_std=decoder_std, std_floor=0.3)  # type: ignore[arg-type]
    vae = Vae((4,), settings)
    with torch.no_grad():
        vae.decoder.net[-1].bias.fill_(-50)
        vae.decoder.raw_log_std.fill_(-50)
        _, log_std = vae.decoder(torch.zeros(3, 1), None)
    torch.testing.assert_close(log_std.exp(), torch.full_like(log_std, 0.3))


def test_condition_is_used() -> None:
    generator = torch_generator(0)
    told = torch.randint(0, 2, (800, 1), generator=generator).float()
    items = 2 * told + 0.3 * torch.randn(800, 3, generator=generator)
    vae = Vae((3,), VaeSettings(latent=1, hidden=(16,), condition_size=1, fit=QUICK))
    vae.fit(items, generator=generator, condition=told)
    with torch.no_grad():
        right = vae.bound(items, generator=generator, condition=told)
        wrong = vae.bound(items, generator=generator, condition=1 - told)
    assert right.mean() > wrong.mean() + 3
    drawn = vae.sample(500, generator=generator, condition=torch.ones(500, 1))
    assert float(drawn.mean()) == pytest.approx(2, abs=0.2)


def test_mixed_precision_does_not_change_the_nats(linear: Vae) -> None:
    items = ppca_items(4)
    plain = linear.elbo(items, generator=torch_generator(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = linear.elbo(items, generator=torch_generator(0))
    assert torch.equal(plain, mixed)


def test_item_far_from_all_others_scores_low_but_finite() -> None:
    vae = Vae((6,), VaeSettings(latent=2, hidden=(16,), fit=BRIEF))
    vae.fit(ppca_items(300), generator=torch_generator(0))
    far = torch.full((1, 6), 1e4, requires_grad=True)
    bound = vae.elbo(far, generator=torch_generator(0))
    bound.sum().backward()
    assert torch.isfinite(bound).all()
    assert bound < -100
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()


def test_wrong_items_and_conditions_are_refused(linear: Vae) -> None:
    with pytest.raises(ShapeError, match=r"\(m, 6\), but they are \(2, 5\)"):
        linear.elbo(torch.zeros(2, 5))
    with pytest.raises(ShapeError, match=r"\(2, 0\), but it is \(2, 3\)"):
        linear.elbo(torch.zeros(2, 6), condition=torch.zeros(2, 3))
    conditioned = Vae((6,), VaeSettings(condition_size=2))
    with pytest.raises(ShapeError, match=r"\(4, 2\), but it is \(4, 0\)"):
        conditioned.sample(4, generator=torch_generator(0))
    with pytest.raises(ModelError, match="n_codes is 0"):
        linear.bound(torch.zeros(2, 6), n_codes=0)


@pytest.mark.parametrize("items", [torch.zeros(1, 6), torch.full((8, 6), float("nan"))])
def test_items_that_cannot_be_fitted_are_refused(items: Tensor) -> None:
    with pytest.raises(ModelError, match="at least 2 items, all finite"):
        Vae((6,), VaeSettings()).fit(items, generator=torch_generator(0))


def test_linear_bound_is_tight_to_the_closed_form(linear: Vae) -> None:
    items = ppca_items(1000)
    closed = Ppca((6,), PcaSettings(latent=2))
    closed.fit(items, generator=torch_generator(0))
    with torch.no_grad():
        bound = linear.bound(items, generator=torch_generator(0), n_codes=128).mean()
        exact = closed.bound(items).mean()
    assert float(exact - bound) == pytest.approx(0.05, abs=0.05)


def test_coins_sum_to_one_over_all_masks() -> None:
    generator = torch_generator(0)
    stripes = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    items = stripes[torch.randint(0, 2, (400,), generator=generator)]
    flips = torch.rand(items.shape, generator=generator) < 0.05
    items = torch.where(flips, 1 - items, items)
    settings = VaeSettings(latent=1, hidden=(16,), likelihood="bernoulli", fit=QUICK)
    vae = Vae((4,), settings)
    vae.fit(items, generator=generator)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    with torch.no_grad():
        mass = vae.bound(every, generator=generator, n_codes=4000).exp()
    assert float(mass.sum()) == pytest.approx(1, abs=0.03)
    assert set(every[mass.argsort()[-2:]].int().flatten(0).tolist()) == {0, 1}
    assert all((every[mass.argsort()[-2:]] == row).all(1).any() for row in stripes)


def test_a_larger_beta_leaves_less_in_the_code() -> None:
    items = ppca_items(400)
    spreads = []
    for beta in (0.5, 8.0):
        vae = Vae((6,), VaeSettings(latent=2, hidden=(), beta=beta, fit=QUICK))
        vae.fit(items, generator=torch_generator(0))
        with torch.no_grad():
            # What the code is told of an item: E KL(q(z|x) || p(z)), whose largest part this is.
            spreads.append(float(vae.encode(items).square().sum(1).mean()))
    assert spreads[1] < 0.8 * spreads[0]
