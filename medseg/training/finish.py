"""What a method makes of a network after its training, and of several networks."""

import copy

import torch
from torch import nn

from medseg.errors import TrainingError
from medseg.inference.ensemble import joined
from medseg.training.method import MethodSettings, Source, TrainingPlan
from medseg.training.start import load_source, new_network
from medseg.variational.convert import to_variational, variational_layers


def after_training(
    network: nn.Module, plan: TrainingPlan, method: MethodSettings, *, source: Source | None
) -> nn.Module:
    """Return what a method makes of a network that was trained as ``method.trained_as``.

    That is the network itself, or for ``wise`` and where a share is asked for a copy moved back
    towards the source, or several as one. A posterior goes back to the one it started with.
    """
    if method.shares_back == (0.0,) or source is None:
        return network
    start: nn.Module = new_network(method.architecture(plan.architecture), seed=plan.seed)
    fresh = load_source(start, source, plan.regions)
    if variational_layers(network):
        start = to_variational(start, settings=method.variational)
    moved = [copy.deepcopy(network) for _ in method.shares_back]
    for one, share in zip(moved, method.shares_back, strict=True):
        interpolate(one, start, share=share, skip=fresh)
    return joined(moved)


@torch.no_grad()
def interpolate(
    network: nn.Module, start: nn.Module, *, share: float, skip: tuple[str, ...] = ()
) -> None:
    """Move the weights ``share`` of the way from where they are to those of ``start``.

    A fresh head has no source to go back to and is left out by ``skip``.

    Raises
    ------
    TrainingError
        The two have other weights, or weights of other shapes; nothing is moved then.

    References
    ----------
    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section 3.
    """
    before = dict(start.named_parameters())
    moved = {
        name: value
        for name, value in network.named_parameters()
        if not (skip and name.startswith(skip))
    }
    for name, value in moved.items():
        shape = tuple(before[name].shape) if name in before else None
        if shape != tuple(value.shape):
            raise TrainingError(
                f"Weights go back to those of the same shape, but {name} has shape "
                f"{tuple(value.shape)} and where it goes {shape or 'there is none'}.",
                hint="Go back to the source that the network was trained from.",
            )
    for name, value in moved.items():
        value.lerp_(before[name].to(value.device), share)
