"""Collects the kernel slices of trained networks."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.errors import PriorError
from medseg.priors.kernel_set import KernelSet, LayerInfo
from medseg.settings import settings

KERNEL_SIZE = 3
#: Thirds of the layers in the network's order.
DEPTH_GROUPS = ("encoder", "bottleneck", "decoder")


@settings
class HarvestSettings:
    """Which slices are kept."""

    #: Share of the slices of each layer of each network, smallest Frobenius norm first, that is
    #: left out.
    prune_quantile: float = Field(default=0.0, ge=0, lt=1)


def harvest(networks: Sequence[nn.Module], *, settings: HarvestSettings | None = None) -> KernelSet:
    """Return every 3x3x3 (3x3) slice of every convolution with kernel size 3.

    Parameters
    ----------
    networks : sequence of Module
        Deterministic networks of one architecture.
    settings : HarvestSettings, optional
        The pruning rule.

    Returns
    -------
    KernelSet
        Slices in the networks' own units, ordered by network, layer, output and input channel.

    Raises
    ------
    PriorError
        No network, no such convolution, networks that differ, 2D and 3D kernels mixed, or weights
        that are not finite.
    """
    settings = settings or HarvestSettings()
    tables = [_convolutions(network) for network in networks]
    _check_alike(tables)
    names = list(tables[0])
    parts = [
        _slices(convolution, layer=i, network=number, prune_quantile=settings.prune_quantile)
        for number, table in enumerate(tables)
        for i, convolution in enumerate(table.values())
    ]
    kernels, layer, network, channels = (torch.cat(part) for part in zip(*parts, strict=True))
    return KernelSet(
        kernels=kernels,
        layer=layer,
        network=network,
        channels=channels,
        layers=tuple(_layer_info(name, i, len(names)) for i, name in enumerate(names)),
    )


def layer_kernels(network: nn.Module) -> dict[str, Tensor]:
    """Return the slices (m, *k) of each layer by name, output then input channel."""
    return {
        name: convolution.weight.detach().cpu().float().flatten(0, 1).clone()
        for name, convolution in _convolutions(network).items()
    }


def _convolutions(network: nn.Module) -> dict[str, nn.Conv2d | nn.Conv3d]:
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d) and set(module.kernel_size) == {KERNEL_SIZE}
    }


def _check_alike(tables: Sequence[dict[str, nn.Conv2d | nn.Conv3d]]) -> None:
    if not tables or not tables[0]:
        raise PriorError(
            f"A harvest needs a network with convolutions of kernel size {KERNEL_SIZE}, but there "
            f"are "
            f"{len(tables)} networks" + (" with none." if tables else "."),
            hint="Give trained deterministic networks; turn variational ones back first.",
        )
    first = {name: tuple(module.weight.shape) for name, module in tables[0].items()}
    ranks = {len(shape) for shape in first.values()}
    if len(ranks) > 1:
        raise PriorError(
            "All kernels of a network must have one dimension, but it mixes 2D and 3D convolutions."
        )
    for number, table in enumerate(tables[1:], start=1):
        other = {name: tuple(module.weight.shape) for name, module in table.items()}
        different = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if different:
            name = different[0]
            raise PriorError(
                f"All source networks must have one architecture, but layer {name!r} has weights "
                f"of shape "
                f"{first.get(name)} in network 0 and {other.get(name)} in network {number}.",
                hint="Harvest networks trained with the same configuration.",
            )


def _slices(
    convolution: nn.Conv2d | nn.Conv3d, *, layer: int, network: int, prune_quantile: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight = convolution.weight.detach().cpu().float()
    outputs, inputs = weight.shape[:2]
    kernels = weight.flatten(0, 1)
    channels = torch.cartesian_prod(torch.arange(outputs), torch.arange(inputs))
    if prune_quantile > 0:
        norm = kernels.flatten(1).norm(dim=1)
        # By rank, not by value: equal norms would otherwise all stay or all go.
        dropped = min(int(prune_quantile * len(norm)), len(norm) - 1)
        kept = norm.argsort(stable=True)[dropped:].sort().values
        kernels, channels = kernels[kept], channels[kept]
    count = (len(kernels),)
    return kernels.clone(), torch.full(count, layer), torch.full(count, network), channels


def _layer_info(name: str, position: int, n_layers: int) -> LayerInfo:
    group = DEPTH_GROUPS[position * len(DEPTH_GROUPS) // n_layers]
    return LayerInfo(name=name, group=group, depth=position / max(n_layers - 1, 1))
