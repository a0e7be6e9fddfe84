import math

import pytest
import torch

from medseg.errors import PriorError
from medseg.priors.log_uniform import LogUniform
from medseg.seeding import torch_generator
from medseg.variational.kl import kl_nats
from medseg.variational.posterior import MeanFieldGaussian

SHAPE = (3, 3)


def prior() -> LogUniform:
    return LogUniform(torch.full(SHAPE, 1e-3), torch.ones(SHAPE))


def test_magnitudes_of_samples_are_uniform_on_the_logarithmic_scale() -> None:
    drawn = prior().sample(4000, generator=torch_generator(0))
    logs = drawn.abs().log10()
    assert logs.min() >= -3
    assert logs.max() <= 0
    counts = torch.histc(logs, bins=6, min=-3, max=0) / logs.numel()
    assert (counts - 1 / 6).abs().max() < 4 * math.sqrt(1 / 6 / logs.numel())
    assert abs(float(drawn.sign().mean())) < 4 / math.sqrt(drawn.numel())


def test_no_scale_is_preferred() -> None:
    kernels = torch.randn(5, *SHAPE, generator=torch_generator(1))
    loss = prior().log_bound(kernels) - prior().log_bound(10 * kernels)
    torch.testing.assert_close(loss, torch.full((5,), 9 * math.log(10)))
    q, larger = (MeanFieldGaussian(s * kernels[None], math.log(s) - 2) for s in (1.0, 10.0))
    torch.testing.assert_close(kl_nats(q, prior()), kl_nats(larger, prior()))


def test_kl_falls_to_zero_where_noise_outgrows_the_mean() -> None:
    """Integrated on a grid; the closed form is a fit to within 0.01 nats."""
    mean, place = 1.0, torch.linspace(-9, 9, 400_001, dtype=torch.float64)
    weight = torch.exp(-0.5 * place**2) / math.sqrt(2 * math.pi) * (place[1] - place[0])
    offset = prior().log_bound(torch.ones(1, *SHAPE)).double() / 9
    before = math.inf
    for log_std in (-2.0, -0.5, 0.5, 1.5, 4.0):
        q = MeanFieldGaussian(torch.full((1, 1, *SHAPE), mean), log_std)
        found = float(kl_nats(q, prior()).detach()) / 9
        magnitude = (mean + math.exp(log_std) * place).abs().clamp_min(1e-9)
        exact = float((weight * magnitude.log()).sum() - offset) - float(q.entropy().detach()) / 9
        assert abs(found - exact) < 0.01
        assert 0 < found < before
        before = found
    assert before < 1e-3


def test_a_weight_of_zero_scores_finitely() -> None:
    assert prior().log_bound(torch.zeros(1, *SHAPE)).isfinite().all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (0.1, math.inf)])
def test_magnitudes_out_of_order_are_refused(low: float, high: float) -> None:
    with pytest.raises(PriorError, match="0 < low < high"):
        LogUniform(torch.full(SHAPE, low), torch.full(SHAPE, high))
