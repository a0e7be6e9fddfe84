"""The laws of every posterior; add a line to ``POSTERIORS`` for a new one."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from medseg.priors.gaussian import DiagonalGaussian, FullGaussian, SourceCentredGaussian
from medseg.priors.log_uniform import LogUniform
from medseg.variational.conv import ConvGeometry, VariationalConv
from medseg.variational.kl import CLOSED_FORMS, kl_nats
from medseg.variational.posterior import MeanFieldGaussian, Posterior

#: Made of means and log standard deviations of shape (out, in, *k).
POSTERIORS: dict[str, Callable[[Tensor, Tensor], Posterior]] = {
    "mean field": MeanFieldGaussian,
    "mean field, capped": lambda mean, log_std: MeanFieldGaussian(mean, log_std, max_log_std=-1.0),
}
CASES = [
    pytest.param(make, (3, 2, *[3] * dims), id=f"{name}, {dims}d")
    for name, make in POSTERIORS.items()
    for dims in (2, 3)
]
pytestmark = pytest.mark.parametrize(("make", "shape"), CASES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def posterior(make: Callable[[Tensor, Tensor], Posterior], shape: tuple[int, ...]) -> Posterior:
    mean = 0.2 * torch.randn(shape, generator=generator(1))
    return make(mean, -1.0 + 0.3 * torch.randn(shape, generator=generator(2)))


def itself(q: Posterior) -> SourceCentredGaussian:
    kernels = q.kernels()
    return SourceCentredGaussian(kernels.mean.detach(), kernels.log_std.detach().exp())


def priors_with_closed_form(q: Posterior) -> list[nn.Module]:
    kernels = 0.3 * torch.randn(400, *q.mean.shape[2:], generator=generator(3))
    kernels = kernels + kernels.mean(-1, keepdim=True)
    n = len(q.kernels().mean)
    source = SourceCentredGaussian(kernels[:n], torch.full_like(kernels[:n], 0.4))
    scale_free = LogUniform(torch.full_like(kernels[0], 1e-3), torch.ones_like(kernels[0]))
    return [DiagonalGaussian.fit(kernels), FullGaussian.fit(kernels), source, scale_free]


def test_follows_the_protocol(posterior):
    assert isinstance(posterior, Posterior)
    assert posterior.mean.shape == posterior.log_std.shape


def test_equal_generators_give_equal_samples(posterior):
    first, same, other = (posterior.rsample(generator(seed)) for seed in (5, 5, 6))
    assert first.shape == posterior.mean.shape
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_kl_to_itself_is_zero(posterior):
    nats = kl_nats(posterior, itself(posterior))
    torch.testing.assert_close(nats, torch.zeros(6), atol=2e-5, rtol=0)


def test_kl_is_positive_and_grows_with_distance(posterior):
    near = itself(posterior)
    totals = []
    for shift in (0.1, 0.3, 1.0):
        far = SourceCentredGaussian(near.mean + shift, near.std)
        totals.append(kl_nats(posterior, far).sum().item())
    assert 0 < totals[0] < totals[1] < totals[2]


def test_monte_carlo_kl_agrees_with_closed_form(posterior):
    kinds = []
    for prior in priors_with_closed_form(posterior):
        assert (type(posterior), type(prior)) in CLOSED_FORMS
        exact = kl_nats(posterior, prior).sum().detach()
        kernels, draw, n = posterior.kernels(), generator(7), 600
        with torch.no_grad():
            scores = torch.stack([prior.log_bound(kernels.rsample(draw)).sum() for _ in range(n)])
        estimates = -posterior.entropy().detach() - scores
        standard_error = estimates.std() / math.sqrt(n)
        # The form for the log-uniform prior is a fit, within 0.01 nats of each weight.
        fit = 0.01 * posterior.mean.numel() if isinstance(prior, LogUniform) else 0.0
        assert abs(float(estimates.mean() - exact)) < 4 * float(standard_error) + fit
        kinds.append(type(prior))
    assert len(set(kinds)) == len(CLOSED_FORMS) == 4


def test_entropy_is_the_mean_of_minus_log_density(posterior):
    density, draw = itself(posterior), generator(8)
    with torch.no_grad():
        surprise = torch.stack(
            [-density.log_bound(posterior.kernels().rsample(draw)).sum() for _ in range(600)]
        )
    standard_error = float(surprise.std()) / math.sqrt(600)
    assert abs(float(surprise.mean() - posterior.entropy().detach())) < 4 * standard_error


def test_gradients_reach_mean_and_log_std(posterior):
    for prior in priors_with_closed_form(posterior):
        posterior.mean.grad = posterior.log_std.grad = None
        kl_nats(posterior, prior).sum().backward()
        for parameter in (posterior.mean, posterior.log_std):
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().max() > 0
    posterior.mean.grad = posterior.log_std.grad = None
    posterior.rsample(generator()).square().sum().backward()
    assert posterior.mean.grad.abs().max() > 0
    assert posterior.log_std.grad.abs().max() > 0


def test_state_round_trip(posterior, make, shape):
    fresh = make(torch.zeros(shape), torch.zeros(shape))
    fresh.load_state_dict(posterior.state_dict())
    assert torch.equal(fresh.rsample(generator()), posterior.rsample(generator()))


def test_local_reparameterisation_has_the_moments_of_weight_sampling(posterior):
    dims, n = posterior.mean.ndim - 2, 3000
    image = torch.randn(1, 2, *[4] * dims, generator=generator(9))
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    geometry = ConvGeometry(kind, stride=(2,) * dims, padding=(1,) * dims, dilation=(1,) * dims)
    moments = []
    for estimator in ("local", "weight"):
        conv = VariationalConv(posterior, bias=None, geometry=geometry, estimator=estimator)
        conv.generator = generator(10)
        with torch.no_grad():
            drawn = torch.cat([conv(image) for _ in range(n)]).double()
        moments.append((drawn.mean(0), drawn.var(0)))
    (local_mean, local_variance), (mean, variance) = moments
    standard_error = (2 * variance / n).sqrt()
    assert ((local_mean - mean) / standard_error).abs().max() < 4.5
    # The variance of a variance of n Gaussian draws, on both sides.
    assert ((local_variance / variance).log() / (4 / n) ** 0.5).abs().max() < 4.5
