"""Few masks, many scans: an autoencoder learns along with the segmentation, by the same encoder."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.data.training_set import Batch
from medseg.networks.blocks import BlockStyle, UpStage
from medseg.networks.conv_factory import TorchConvFactory
from medseg.networks.convolution import PointwiseConv
from medseg.networks.initialise import initialise
from medseg.networks.unet import UNet
from medseg.seeding import seeded_torch
from medseg.settings import settings
from medseg.training.objective import Objective, Terms
from medseg.training.pretext import mean_squared_error


@settings
class CoLearningSettings:
    """Segment the scans that have masks, reconstruct all of them."""

    kind: Literal["co_learning"] = "co_learning"
    #: Weight of the mean squared error of the reconstruction, in units of the prepared scan.
    weight: float = Field(default=0.3, ge=0)


class CoLearningNetwork(nn.Module):
    """A U-Net with a second way up, which has no skips and ends in the image.

    Without skips all that the reconstruction knows has gone through the deepest features.

    Parameters
    ----------
    network : UNet
        Shared, not copied.
    seed : int
        Of the second way up.
    """

    def __init__(self, network: UNet, *, seed: int) -> None:
        super().__init__()
        self.segmenter = network
        made = network.settings
        style = BlockStyle(
            dims=made.dims,
            conv=TorchConvFactory(made.dims),
            residual=made.residual,
            activation=made.activation,
            bias=made.bias,
        )
        with seeded_torch(seed, "reconstruction"):
            self.up = nn.ModuleList(
                UpStage(coarse, fine, style=style, convs=1, upsampling=made.upsampling, skip="add")
                for coarse, fine in pairwise(made.widths[::-1])
            )
            self.image = PointwiseConv(made.widths[0], made.in_channels, bias=made.bias)
            for part in (self.up, self.image):
                initialise(part, made.activation)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (b, n, *s) and the reconstructed image (b, c, *s)."""
        levels = self.segmenter.encode(image)
        features = levels[-1]
        for stage, level in zip(self.up, levels[-2::-1], strict=True):
            features = stage(features, torch.zeros_like(level))
        return self.segmenter.decode(levels), self.image(features)


class CoLearningObjective:
    """``base + weight * |reconstruction - image|^2``, the latter over the voxels of the head.

    Patches without masks are those of which no region is known.

    Parameters
    ----------
    base : Objective
        Of the segmentation.
    settings : CoLearningSettings

    References
    ----------
    Zhang, Lee and Lee 2016, "Augmenting supervised neural networks with unsupervised objectives",
    equation 5.
    """

    def __init__(self, base: Objective, settings: CoLearningSettings) -> None:
        self._base, self._weight = base, settings.weight
        self.extra: nn.Module | None = base.extra

    def loss(self, forward: Callable[..., Any], batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch; ``forward`` is that of a :class:`CoLearningNetwork`."""
        made: list[Tensor] = []

        def seen(image: Tensor) -> Tensor:
            # Within the base's call, so that its noise is the one of this step.
            made[:] = forward(image)
            return made[0]

        loss, terms = self._base.loss(seen, batch, step)
        restored = made[1]
        error = mean_squared_error(restored.float(), batch.image, batch.image.ne(0))
        if self._weight > 0:
            loss = loss + self._weight * error
        return loss, {**terms, "reconstruction": float(error.detach())}
