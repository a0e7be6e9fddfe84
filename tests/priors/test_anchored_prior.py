import math

import pytest
import torch

from medseg.errors import PriorError
from medseg.priors.anchored import AnchoredPrior
from medseg.priors.fit import anchored_priors
from medseg.priors.gaussian import DiagonalGaussian, SourceCentredGaussian
from medseg.priors.layer_priors import LayerPriors
from medseg.seeding import torch_generator


@pytest.fixture
def source() -> torch.Tensor:
    return torch.randn(12, 3, 3, generator=torch_generator(0))


def mixed(source: torch.Tensor, share: float) -> AnchoredPrior:
    wide = DiagonalGaussian(torch.zeros(3, 3), torch.ones(3, 3))
    return AnchoredPrior(SourceCentredGaussian(source, torch.tensor(0.05)), wide, share=share)


def test_density_is_that_of_the_two_parts(source: torch.Tensor) -> None:
    prior = mixed(source, 0.7)
    moved = source + 0.02
    parts = [0.7 * prior.anchor.log_bound(moved).double().exp()]
    parts.append(0.3 * prior.learned.log_bound(moved).double().exp())
    torch.testing.assert_close(
        prior.log_bound(moved).double().exp(), sum(parts), rtol=1e-4, atol=0.0
    )


def test_near_the_source_it_pulls_and_far_away_it_lets_go(source: torch.Tensor) -> None:
    """The price of leaving is bounded: log(share / (1 - share)) and the difference of peaks."""
    prior = mixed(source, 0.9)
    near, far = (source + step for step in (0.05, 1.0))
    for weights, part in ((near, prior.anchor), (far, prior.learned)):
        w = weights.clone().requires_grad_()
        (mine,) = torch.autograd.grad(prior.log_bound(w).sum(), w)
        (theirs,) = torch.autograd.grad(part.log_bound(w).sum(), w)
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    lost = prior.learned.log_bound(far) - prior.log_bound(far)
    torch.testing.assert_close(lost, torch.full_like(lost, -math.log(0.1)))


def test_the_share_learns_how_many_kernels_left(source: torch.Tensor) -> None:
    prior = mixed(source, 0.5)
    moved = source.clone()
    moved[:3] = 2.0 * torch.randn(3, 3, 3, generator=torch_generator(1))
    optimiser = torch.optim.Adam([prior.share_logit], lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        (-prior.log_bound(moved).mean()).backward()
        optimiser.step()
    assert prior.share == pytest.approx(9 / 12, abs=0.01)


def test_selected_kernels_score_as_among_all(source: torch.Tensor) -> None:
    prior, rows = mixed(source, 0.8), torch.tensor([7, 2])
    some = prior.select(rows)
    torch.testing.assert_close(some.log_bound(source[rows]), prior.log_bound(source)[rows])
    some.log_bound(source[rows]).sum().backward()
    assert prior.share_logit.grad is not None


def test_wrong_parts_are_refused(source: torch.Tensor) -> None:
    anchor = SourceCentredGaussian(source, torch.tensor(0.05))
    other = DiagonalGaussian(torch.zeros(3, 3, 3), torch.ones(3, 3, 3))
    with pytest.raises(PriorError, match="one shape"):
        AnchoredPrior(anchor, other)
    wide = DiagonalGaussian(torch.zeros(3, 3), torch.ones(3, 3))
    for share in (0.0, 1.0):
        with pytest.raises(PriorError, match="share"):
            AnchoredPrior(anchor, wide, share=share)
    with pytest.raises(PriorError, match="Gaussian around source kernels"):
        anchored_priors(LayerPriors({"conv": wide}), LayerPriors({"conv": wide}))
