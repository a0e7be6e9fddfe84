"""Hold one draw of all weights, or name the generator that noise comes from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from medseg.networks.dropout import ChannelDropout
from medseg.variational.conv import VariationalConv
from medseg.variational.swag import SwagNetwork


class RandomLayer(Protocol):
    """Part of a network that can hold one draw."""

    held_weight: Any
    generator: torch.Generator | None

    def draw(self, generator: torch.Generator | None = None) -> Any:
        """Return what is held."""
        ...


def random_layers(network: nn.Module) -> list[RandomLayer]:
    """Return the layers that draw something: variational convolutions, dropout, SWAG."""
    return [
        module
        for module in network.modules()
        if isinstance(module, VariationalConv | ChannelDropout | SwagNetwork)
    ]


@contextmanager
def sampled_weights(network: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    """Hold one posterior sample of all weights inside the block, also in evaluation.

    Every call in the block sees the same weights: the windows of one scan belong to one function.
    Restored when the block ends, also by an error; blocks may be nested. Dropout holds the channels
    that it leaves out. A network without random layers is left as it is and draws nothing.

    Parameters
    ----------
    network : nn.Module
        Its random layers are set.
    generator : torch.Generator, optional
        Where the numbers come from; None means torch's global generator.

    Notes
    -----
    The samples carry gradients unless the block is under ``torch.no_grad``.
    """
    layers = random_layers(network)
    before = [layer.held_weight for layer in layers]
    try:
        for layer in layers:
            layer.held_weight = layer.draw(generator)
        yield
    finally:
        for layer, held in zip(layers, before, strict=True):
            layer.held_weight = held


@contextmanager
def use_generator(network: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    """Draw the training noise of all random layers from ``generator`` inside the block.

    Without it torch's global generator is used. Restored when the block ends, also by an error.
    """
    layers = random_layers(network)
    before = [layer.generator for layer in layers]
    try:
        for layer in layers:
            layer.generator = generator
        yield
    finally:
        for layer, previous in zip(layers, before, strict=True):
            layer.generator = previous
