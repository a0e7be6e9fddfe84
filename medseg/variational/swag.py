"""A Gaussian over all weights of a network from its path through training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call


class WeightMoments(nn.Module):
    """Running mean and variance of the weights, and their last deviations from the running mean.

    Parameters
    ----------
    weights : mapping of name to Tensor
        For shapes; d numbers in all.
    rank : int
        Deviations kept, K.
    """

    mean: Tensor
    variance: Tensor
    deviations: Tensor
    count: Tensor

    def __init__(self, weights: Mapping[str, Tensor], *, rank: int) -> None:
        super().__init__()
        first = next(iter(weights.values()))
        self.shapes = {name: value.shape for name, value in weights.items()}
        d = sum(value.numel() for value in weights.values())
        self.register_buffer("mean", torch.zeros(d, device=first.device))
        self.register_buffer("variance", torch.zeros(d, device=first.device))
        self.register_buffer("deviations", torch.zeros(rank, d, device=first.device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor]) -> None:
        """Take in the weights of one moment."""
        now = torch.cat([weights[name].detach().flatten() for name in self.shapes])
        self.count += 1
        share = 1.0 / int(self.count)
        before = now - self.mean
        self.mean.lerp_(now, share)
        # Welford's update: the difference of squares would lose what moves little.
        self.variance.lerp_(before * (now - self.mean), share)
        self.deviations[(int(self.count) - 1) % len(self.deviations)] = now - self.mean

    def draw(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return one sample of the weights by name.

        ``mean + sqrt(variance / 2) z1 + D z2 / sqrt(2 (K - 1))`` with standard normal z1 (d) and
        z2 (K); D holds the K deviations.
        """
        mean, kept = self.mean, min(int(self.count), len(self.deviations))
        device = mean.device if generator is None else generator.device
        alone = torch.randn(len(mean), generator=generator, device=device).to(mean.device)
        together = torch.randn(kept, generator=generator, device=device).to(mean.device)
        low_rank = together @ self.deviations[:kept] / (2 * max(kept - 1, 1)) ** 0.5
        return self._named(mean + (self.variance.clamp(min=0) / 2).sqrt() * alone + low_rank)

    def means(self) -> dict[str, Tensor]:
        """Return the mean weights by name."""
        return self._named(self.mean)

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return {
            name: part.view(self.shapes[name])
            for name, part in zip(self.shapes, parts, strict=True)
        }


class SwagNetwork(nn.Module):
    """A network whose weights are random, all of them together.

    In training and evaluation it has the mean weights, unless
    :func:`medseg.variational.sampling.sampled_weights` holds a draw.

    Parameters
    ----------
    network : Module
        Its trainable weights become the mean of ``moments``.
    moments : WeightMoments

    References
    ----------
    Maddox et al. 2019, "A simple baseline for Bayesian uncertainty in deep learning", algorithm 1.
    The learning rate here falls as ever, where theirs stays high: the spread is smaller.
    """

    def __init__(self, network: nn.Module, moments: WeightMoments) -> None:
        super().__init__()
        self.network, self.moments = network, moments
        if int(moments.count) > 0:
            with torch.no_grad():
                for name, value in moments.means().items():
                    network.get_parameter(name).copy_(value)
        # Set by the context managers of ``sampling`` alone.
        self.held_weight: dict[str, Tensor] | None = None
        self.generator: torch.Generator | None = None

    def draw(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return one sample of the weights by name."""
        return self.moments.draw(generator)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of the weights of the moment."""
        if self.held_weight is None:
            return self.network(image)
        logits: Tensor = functional_call(self.network, self.held_weight, (image,))
        return logits
