"""Dropout of whole channels, whose draw can be held."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelDropout(nn.Module):
    """Leave out channels at random and raise the others, so that the mean stays.

    In training each image of a batch has a draw of its own. In evaluation all channels pass, unless
    ``medseg.variational.sampling.sampled_weights`` holds a draw: it does not depend on the size of
    the image, so that all windows of a volume belong to one function.

    Parameters
    ----------
    channels : int
    rate : float
        Share of the channels left out, in [0, 1).

    References
    ----------
    Tompson et al. 2015, "Efficient object localization using convolutional networks", section 3.2
    (whole maps); Gal and Ghahramani 2016, "Dropout as a Bayesian approximation" (draws at
    prediction as samples of the posterior).
    """

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        self.channels, self.rate = channels, rate
        # Set by the context managers of ``medseg.variational.sampling`` alone.
        self.held_weight: Tensor | None = None
        self.generator: torch.Generator | None = None

    def draw(self, generator: torch.Generator | None = None, *, n: int = 1) -> Tensor:
        """Return factors of the channels, ``(n, channels)``: 0 or ``1 / (1 - rate)``."""
        device = None if generator is None else generator.device
        kept = torch.rand(n, self.channels, generator=generator, device=device) >= self.rate
        return kept.float() / (1.0 - self.rate)

    def forward(self, image: Tensor) -> Tensor:
        """Return the image ``(b, channels, *s)`` without some channels."""
        factors = self.held_weight
        if factors is None:
            if not self.training:
                return image
            factors = self.draw(self.generator, n=len(image))
        shape = (*factors.shape, *[1] * (image.ndim - 2))
        return image * factors.to(image.device, image.dtype).view(shape)
