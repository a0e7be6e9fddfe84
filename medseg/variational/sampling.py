"""Hold one draw of all weights, or name the generator that noise comes from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from medseg.variational.convert import variational_layers


@contextmanager
def sampled_weights(network: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    """Hold one posterior sample of all weights inside the block, also in evaluation.

    Every call in the block sees the same weights: the windows of one scan belong to one function.
    Restored when the block ends, also by an error; blocks may be nested. A network without
    variational layers is left as it is and draws nothing.

    Parameters
    ----------
    network : nn.Module
        Its variational layers are set.
    generator : torch.Generator, optional
        Where the numbers come from; None means torch's global generator.

    Notes
    -----
    The samples carry gradients unless the block is under ``torch.no_grad``.
    """
    layers = list(variational_layers(network).values())
    before = [layer.held_weight for layer in layers]
    try:
        for layer in layers:
            layer.held_weight = layer.posterior.rsample(generator)
        yield
    finally:
        for layer, held in zip(layers, before, strict=True):
            layer.held_weight = held


@contextmanager
def use_generator(network: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    """Draw the training noise of all variational layers from ``generator`` inside the block.

    Without it torch's global generator is used. Restored when the block ends, also by an error.
    """
    layers = list(variational_layers(network).values())
    before = [layer.generator for layer in layers]
    try:
        for layer in layers:
            layer.generator = generator
        yield
    finally:
        for layer, previous in zip(layers, before, strict=True):
            layer.generator = previous
