import copy
import functools
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from medseg.errors import ModelError, PriorError
from medseg.generative.fitting import FitSettings
from medseg.generative.vae import Vae, VaeSettings
from medseg.networks.unet import UNet, UNetSettings
from medseg.priors.gaussian import DiagonalGaussian, FullGaussian, SourceCentredGaussian
from medseg.priors.layer_priors import LayerPriors
from medseg.priors.learned import VaePrior
from medseg.variational.convert import to_variational, variational_layers
from medseg.variational.kl import kl_nats, layer_kl, network_kl
from medseg.variational.posterior import MeanFieldGaussian
from medseg.variational.settings import VariationalSettings

SHAPE = (3, 2, 3, 3)


class Laplace(nn.Module):
    """An exact prior without a closed form here."""

    kernel_shape = (3, 3)
    is_exact = is_normalised = True

    def __init__(self, width=0.2):
        super().__init__()
        self.width = torch.tensor(width)

    def log_bound(self, kernels, *, generator=None):
        del generator
        log_density = -kernels.abs() / self.width - (2 * self.width).log()
        return log_density.flatten(1).sum(1)

    def sample(self, n, *, generator):
        raise NotImplementedError

    def trainable_parameters(self):
        return []


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def posterior_of(shape=SHAPE, seed=0):
    mean = 0.2 * torch.randn(shape, generator=generator(seed))
    return MeanFieldGaussian(mean, -2.0 + 0.3 * torch.randn(shape, generator=generator(seed + 1)))


def kernels_of(n=300, shape=(3, 3), seed=9):
    kernels = torch.randn(n, *shape, generator=generator(seed))
    return 0.2 * (kernels + kernels.mean(-1, keepdim=True))


@functools.cache
def fitted_vae():
    vae = Vae((3, 3), VaeSettings(latent=2, hidden=(8,), fit=FitSettings(max_steps=60)))
    vae.fit(kernels_of(), generator=generator(6))
    return vae


def vae_prior():
    return VaePrior(copy.deepcopy(fitted_vae()))


def network_of(dims=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = UNet(UNetSettings(dims=dims, in_channels=1, out_channels=1, widths=(3, 5)))
    return to_variational(plain, settings=VariationalSettings())


def table_of(network, *, kind="diagonal"):
    table = {}
    for name, layer in variational_layers(network).items():
        kernels = layer.posterior.kernels().mean.detach()
        table[name] = {
            "diagonal": lambda w: DiagonalGaussian.fit(w),
            "gaussian": lambda w: FullGaussian.fit(w),
            "source": lambda w: SourceCentredGaussian(1.1 * w, torch.tensor(0.1)),
        }[kind](kernels)
    return LayerPriors(table)


@given(seed=st.integers(0, 999), dims=st.integers(2, 3), std=st.floats(0.05, 3.0))
def test_independent_gaussians_agree_with_torch(seed, dims, std):
    q = posterior_of((3, 2, *[3] * dims), seed)
    mean = 0.3 * torch.randn([3] * dims, generator=generator(seed + 2))
    oracle = kl_divergence(Normal(q.mean, q.std), Normal(mean, std)).flatten(0, 1).flatten(1).sum(1)
    found = kl_nats(q, DiagonalGaussian(mean, torch.full([3] * dims, std)))
    torch.testing.assert_close(found, oracle, rtol=1e-4, atol=1e-3)


@given(seed=st.integers(0, 999), dims=st.integers(2, 3))
def test_correlated_gaussian_agrees_with_torch(seed, dims):
    q = posterior_of((3, 2, *[3] * dims), seed)
    prior = FullGaussian.fit(kernels_of(200, (3,) * dims, seed))
    q_torch = MultivariateNormal(
        q.mean.flatten(2).double(), torch.diag_embed(q.std.flatten(2).square().double())
    )
    p_torch = MultivariateNormal(prior.mean.flatten().double(), prior.covariance.double())
    oracle = kl_divergence(q_torch, p_torch).flatten()
    torch.testing.assert_close(kl_nats(q, prior).double(), oracle, rtol=1e-4, atol=1e-3)


def test_source_centred_prior_scores_each_kernel_at_its_place():
    q = posterior_of()
    kernels = q.kernels()
    std = kernels.log_std.exp().detach()
    mean = kernels.mean.detach().clone()
    mean[4] += 1.0
    nats = kl_nats(q, SourceCentredGaussian(mean, std))
    assert [i for i in range(6) if nats[i] > 1e-3] == [4]
    index = torch.tensor([4, 0, 5])
    chosen = kl_nats(q, SourceCentredGaussian(mean, std), index=index)
    torch.testing.assert_close(chosen, nats[index])


def test_a_prior_without_closed_form_is_scored_without_bias():
    q, prior, draw = posterior_of(), Laplace(), generator(2)
    with torch.no_grad():
        estimates = torch.stack([kl_nats(q, prior, generator=draw) for _ in range(2000)])
    # E|w| of a Gaussian is known: the exact value needs no sample.
    normal = Normal(0.0, 1.0)
    ratio = q.mean / q.std
    mean_abs = q.mean * (2 * normal.cdf(ratio) - 1) + 2 * q.std * normal.log_prob(ratio).exp()
    cross = mean_abs / prior.width + (2 * prior.width).log()
    exact = cross.flatten(0, 1).flatten(1).sum(1) - q.entropy_per_kernel()
    z = (estimates.mean(0) - exact) / (estimates.std(0) / 2000**0.5)
    assert z.abs().max() < 4.0


def test_the_deep_weight_prior_trains_r_and_the_posterior_but_not_the_decoder():
    network = network_of()
    layers = variational_layers(network)
    priors = LayerPriors({name: vae_prior() for name in layers})
    network_kl(network, priors, generator=generator()).backward()
    for layer in layers.values():
        assert layer.posterior.mean.grad.abs().max() > 0
        assert layer.posterior.log_std.grad.abs().max() > 0
    trained = {id(parameter) for parameter in priors.trainable_parameters()}
    assert trained
    for parameter in priors.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained)


def test_the_bound_of_the_deep_weight_prior_lies_above_its_kl():
    # 2000 importance samples stand for log p; one code gives a looser bound.
    prior, q = vae_prior(), posterior_of((4, 4, 3, 3))
    draw = generator(3)
    with torch.no_grad():
        bound = torch.stack([kl_nats(q, prior, generator=draw).sum() for _ in range(200)]).mean()
        near = torch.stack(
            [
                prior.score(q.kernels().rsample(draw), generator=draw, n_codes=2000).sum()
                for _ in range(30)
            ]
        ).mean()
    assert bound > -q.entropy() - near


@pytest.mark.parametrize("kind", ["diagonal", "gaussian", "source"])
@pytest.mark.parametrize("dims", [2, 3])
def test_network_kl_is_the_sum_over_kernels_and_layers(kind, dims):
    network = network_of(dims)
    priors = table_of(network, kind=kind)
    by_hand = sum(
        kl_nats(layer.posterior, priors.prior_for(name)).sum()
        for name, layer in variational_layers(network).items()
    )
    torch.testing.assert_close(network_kl(network, priors), by_hand, rtol=1e-5, atol=1e-3)
    assert list(layer_kl(network, priors)) == list(variational_layers(network))


def test_a_subsample_is_unbiased_over_all_subsets():
    # One layer of four kernels, two drawn: there are six subsets, each equally likely.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Conv2d(2, 2, 3)
    twin = to_variational(plain, settings=VariationalSettings())
    kernels = twin.posterior.kernels().mean.detach()
    steps = torch.tensor([0.1, 0.2, 0.4, 0.8]).reshape(4, 1, 1)
    priors = LayerPriors({"": SourceCentredGaussian(kernels + steps, torch.tensor(0.3))})
    nats = kl_nats(twin.posterior, priors.prior_for("")).detach()
    expected = {
        round(float(2 * nats[list(pair)].sum()), 2): pair
        for pair in itertools.combinations(range(4), 2)
    }
    draw = generator(5)
    drawn = [network_kl(twin, priors, generator=draw, fraction=0.5).item() for _ in range(600)]
    counts = [sum(abs(value - one) < 0.02 for value in drawn) for one in expected]
    assert len(expected) == 6
    assert sum(counts) == 600
    assert all(60 < count < 140 for count in counts)
    assert sum(expected) / 6 == pytest.approx(float(nats.sum()), abs=0.02)


@pytest.mark.parametrize("kind", ["diagonal", "source"])
def test_subsampled_network_kl_and_gradient_are_unbiased(kind):
    network = network_of()
    priors = table_of(network, kind=kind)
    layer = next(iter(variational_layers(network).values()))
    layer.posterior.log_std.data[0].sub_(1.0)  # kernels that differ, so that a slip would show
    draw, n = generator(4), 300

    def value_and_gradient(fraction):
        network.zero_grad()
        value = network_kl(network, priors, generator=draw, fraction=fraction)
        value.backward()
        return torch.stack([value.detach(), layer.posterior.log_std.grad.sum()]).double()

    whole = value_and_gradient(1.0)
    drawn = torch.stack([value_and_gradient(0.3) for _ in range(n)])
    z = (drawn.mean(0) - whole) / (drawn.std(0) / n**0.5)
    assert drawn.std(0).min() > 0
    assert z.abs().max() < 4.0


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_the_subsampled_bound_of_the_deep_weight_prior_is_unbiased(fraction):
    # Noise of weights and codes is averaged in both, so the whole is an estimate too.
    network = network_of()
    layers = variational_layers(network)
    priors = LayerPriors({name: vae_prior() for name in layers})
    draw, n = generator(7), 300

    def values(share):
        with torch.no_grad():
            drawn = [network_kl(network, priors, generator=draw, fraction=share) for _ in range(n)]
        return torch.stack(drawn).double()

    part, whole = values(fraction), values(1.0)
    error = ((part.var() + whole.var()) / n) ** 0.5
    assert part.std() > whole.std()
    assert abs(part.mean() - whole.mean()) < 4.0 * error


def test_a_tiny_share_scores_one_kernel_a_layer():
    network = network_of()
    assert torch.isfinite(network_kl(network, table_of(network), fraction=1e-9))


def test_the_generator_decides_the_estimate():
    network = network_of()
    priors = LayerPriors({name: vae_prior() for name in variational_layers(network)})
    before = torch.random.get_rng_state()
    first, same, other = (
        network_kl(network, priors, generator=generator(seed), fraction=0.5) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_mixed_precision_does_not_reach_the_kl():
    network = network_of()
    priors = table_of(network, kind="gaussian")
    plain = network_kl(network, priors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network_kl(network, priors), plain)


def test_descent_on_the_kl_finds_the_prior():
    q = posterior_of()
    prior = DiagonalGaussian(torch.full((3, 3), 0.1), torch.full((3, 3), 0.3))
    optimiser = torch.optim.Adam(q.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        kl_nats(q, prior).sum().backward()
        optimiser.step()
    torch.testing.assert_close(q.mean, torch.full(SHAPE, 0.1), atol=1e-2, rtol=0)
    torch.testing.assert_close(q.std, torch.full(SHAPE, 0.3), atol=1e-2, rtol=0)


class TestRefusals:
    def test_network_without_variational_layers(self):
        with pytest.raises(ModelError, match="Conv2d"):
            network_kl(nn.Conv2d(1, 1, 3), table_of(network_of()))

    @pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
    def test_share_out_of_range(self, fraction):
        network = network_of()
        with pytest.raises(ModelError, match=str(fraction)):
            network_kl(network, table_of(network), fraction=fraction)

    def test_layer_without_prior(self):
        network = network_of()
        name, prior = "elsewhere", DiagonalGaussian.fit(kernels_of())
        with pytest.raises(PriorError, match=next(iter(variational_layers(network)))):
            network_kl(network, LayerPriors({name: prior}))

    def test_kernels_of_another_dimension(self):
        with pytest.raises(PriorError, match="3, 3, 3"):
            kl_nats(posterior_of((2, 2, 3, 3, 3)), DiagonalGaussian.fit(kernels_of()))

    @pytest.mark.parametrize("n", [1, 5, 7])
    def test_source_of_another_size(self, n):
        prior = SourceCentredGaussian(torch.zeros(n, 3, 3), torch.ones(n, 3, 3))
        with pytest.raises(PriorError, match=f"here {n}"):
            kl_nats(posterior_of(), prior)


def test_a_copied_network_has_the_same_kl():
    network = network_of()
    priors = table_of(network)
    assert torch.equal(network_kl(copy.deepcopy(network), priors), network_kl(network, priors))
