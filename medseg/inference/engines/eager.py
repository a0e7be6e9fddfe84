"""The reference: the network as it is, in float32."""

from __future__ import annotations

import torch
from torch import nn

from medseg.inference.engines.memory import memory_errors
from medseg.shapes import ImageBatch, LogitBatch


class EagerEngine:
    """A network called as it is; what every other engine is compared with.

    Not a copy: it follows later changes of the weights, and leaves the network in the mode it was.

    Parameters
    ----------
    network : nn.Module
        Stays on its device.
    """

    name = "eager"
    precision = "float32"

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        weight = next(network.parameters(), None)
        self.device = torch.device("cpu") if weight is None else weight.device

    def __call__(self, images: ImageBatch) -> LogitBatch:
        """Return logits (b, n, *s), float32, for images (b, c, *s), on the images' device."""
        was_training = self.network.training
        self.network.eval()
        # Not inference mode: its tensors cannot be summed into by whoever merges windows.
        autocast_off = torch.autocast(self.device.type, enabled=False)
        try:
            with (
                torch.no_grad(),
                autocast_off,
                memory_errors(tuple(images.shape), str(self.device)),
            ):
                return self.network(images.to(self.device, torch.float32)).to(images.device)
        finally:
            self.network.train(was_training)
