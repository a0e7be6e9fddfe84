"""The log density of a sampler, learned as its ratio to a Gaussian whose density is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.generative.covariance import shrunk_covariance
from medseg.generative.fitting import FitSettings, fit_by_gradient
from medseg.generative.gan_networks import DenseDiscriminator, Sampler
from medseg.generative.noise import LOG_TWO_PI, draw_normal

# Samples whose moments the Gaussian takes.
_MOMENTS = 4096


class RatioDensity(nn.Module):
    """``log p(x) = log N(x) + log D(x) / (1 - D(x))`` with D trained to tell p from N.

    N has the mean and covariance of the samples, so that D learns only what is not Gaussian about
    them, and far from all samples the Gaussian's tails decide. Normalised as far as D is optimal.

    Parameters
    ----------
    size : int
        Numbers d in a sample.
    hidden : sequence of int
        Widths of the hidden layers of D.
    told : int
        Numbers in the condition of a sample.

    References
    ----------
    Gutmann and Hyvarinen (2010), Noise-contrastive estimation, equation 3.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, size: int, *, hidden: Sequence[int], told: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("whitening", torch.eye(size))
        self.discriminator = DenseDiscriminator(size, hidden=hidden, told=told)

    def fit(self, sampler: Sampler, settings: FitSettings, *, generator: torch.Generator) -> None:
        """Learn the density of what ``sampler`` draws; D must have been started."""
        with torch.no_grad():
            samples, _ = sampler(_MOMENTS)
            covariance = shrunk_covariance(samples)
            covariance.diagonal().add_(1e-4 * covariance.diagonal().mean().clamp(min=1e-12))
            self.mean.copy_(samples.mean(0))
            self.whitening.copy_(torch.linalg.inv(torch.linalg.cholesky(covariance)))

        def batch_loss(rows: Tensor, progress: float) -> Tensor:
            with torch.no_grad():
                samples, condition = sampler(len(rows))
                white = (samples - self.mean) @ self.whitening.T
            noise = draw_normal(tuple(white.shape), like=white, generator=generator)
            on_samples = functional.softplus(-self.discriminator(white, condition)).mean()
            return on_samples + functional.softplus(self.discriminator(noise, condition)).mean()

        # The rows only count: every batch is drawn anew.
        rows = torch.arange(_MOMENTS, device=self.mean.device)
        fit_by_gradient(self, batch_loss, None, rows=rows, settings=settings, generator=generator)

    def log_density(self, u: Tensor, condition: Tensor | None) -> Tensor:
        """Return the log density of vectors (m, d) in nats, (m,)."""
        white = (u - self.mean) @ self.whitening.T
        gaussian = -0.5 * (white.square() + LOG_TWO_PI).sum(1)
        gaussian = gaussian + self.whitening.diagonal().log().sum()
        return gaussian + self.discriminator(white, condition)
