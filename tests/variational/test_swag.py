"""Draws of a SWAG posterior have the moments that its formula says."""

import torch
from torch import nn

from medseg.variational.sampling import sampled_weights
from medseg.variational.swag import SwagNetwork, WeightMoments


def followed(rank: int = 3, n: int = 5) -> tuple[SwagNetwork, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(n, 4, generator=generator)
    network = nn.Linear(2, 2, bias=False)
    moments = WeightMoments(dict(network.named_parameters()), rank=rank)
    for weights in path:
        moments.add({"weight": weights.view(2, 2)})
    return SwagNetwork(network, moments).eval(), path


def test_draws_have_half_the_diagonal_and_half_the_low_rank_covariance() -> None:
    """Maddox et al. 2019, equation 1."""
    network, path = followed()
    generator, n = torch.Generator().manual_seed(1), 20_000
    drawn = torch.stack([network.draw(generator)["weight"].flatten() for _ in range(n)])
    running = torch.stack([path[: i + 1].mean(0) for i in range(len(path))])
    last = (path - running)[-3:]
    wanted = 0.5 * path.var(0, correction=0).diag() + 0.5 * last.T @ last / 2
    spread = wanted.diag().sqrt()
    # Four standard errors of a mean, and of a covariance of Gaussians.
    assert bool(((drawn.mean(0) - path.mean(0)).abs() < 4 * spread / n**0.5).all())
    error = (torch.outer(wanted.diag(), wanted.diag()) + wanted.square()).sqrt() / n**0.5
    assert bool(((drawn.T.cov() - wanted).abs() < 4.5 * error).all())


def test_a_held_draw_is_used_and_let_go() -> None:
    network, path = followed()
    image = torch.eye(2)
    torch.testing.assert_close(network(image), path.mean(0).view(2, 2).T)
    with torch.no_grad(), sampled_weights(network, torch.Generator().manual_seed(2)):
        held = network(image)
    wanted = network.draw(torch.Generator().manual_seed(2))["weight"]
    torch.testing.assert_close(held, wanted.T)
    assert network.held_weight is None
    torch.testing.assert_close(network(image), path.mean(0).view(2, 2).T)
