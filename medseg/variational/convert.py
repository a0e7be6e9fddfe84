"""A network and its variational twin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, TypeGuard

from torch import nn

from medseg.errors import ModelError
from medseg.networks.conv_factory import TorchConvFactory
from medseg.variational.conv import VariationalConv
from medseg.variational.settings import VariationalSettings

#: Along every axis: the kernels that filter priors are made for.
KERNEL_SIZE = 3

Replace = Callable[[nn.Module], "nn.Module | None"]


def to_variational(network: nn.Module, *, settings: VariationalSettings) -> nn.Module:
    """Return a deep copy in which every 3x3x3 (3x3) convolution is variational.

    All else stays deterministic: 1x1 and transposed convolutions, normalisation, biases. In
    evaluation the copy computes exactly what ``network`` computes.

    Parameters
    ----------
    network : nn.Module
        Not changed.
    settings : VariationalSettings
        Start and cap of the standard deviations, and the estimator.

    Raises
    ------
    ModelError
        When there is no such convolution.
    """

    def replace(module: nn.Module) -> nn.Module | None:
        if not _has_kernels(module):
            return None
        return VariationalConv.from_conv(module, settings=settings)

    twin, n_replaced = _replaced(copy.deepcopy(network), replace)
    if n_replaced == 0:
        raise ModelError(
            f"a variational network needs convolutions with kernel size 3, "
            f"but {type(network).__name__} has none",
            hint="pass a network of plain nn.Conv2d or nn.Conv3d layers, not yet converted",
        )
    return twin


def to_deterministic(network: nn.Module) -> nn.Module:
    """Return a deep copy in which every variational convolution is plain, with the mean weights.

    Inside ``sampled_weights`` it has those of the sample.
    """

    def replace(module: nn.Module) -> nn.Module | None:
        return module.to_conv() if isinstance(module, VariationalConv) else None

    return _replaced(copy.deepcopy(network), replace)[0]


def variational_layers(network: nn.Module) -> dict[str, VariationalConv]:
    """Return the variational convolutions by module name, in the order of the network."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, VariationalConv)
    }


class VariationalConvFactory:
    """A ``ConvFactory`` whose 3x3x3 (3x3) convolutions are variational from the start.

    For networks without a deterministic past. A network that was trained, or that has its own rule
    of initialisation, is better built plain and converted with ``to_variational``.

    Parameters
    ----------
    dims : 2 or 3
        Spatial axes.
    settings : VariationalSettings
        Start and cap of the standard deviations, and the estimator.
    """

    def __init__(self, dims: Literal[2, 3], *, settings: VariationalSettings) -> None:
        self._plain = TorchConvFactory(dims)
        self.settings = settings

    def __call__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, bias: bool
    ) -> nn.Module:
        """Return a variational convolution for kernel size 3, else a plain one."""
        conv = self._plain(
            in_channels, out_channels, kernel_size=kernel_size, stride=stride, bias=bias
        )
        return to_variational(conv, settings=self.settings) if _has_kernels(conv) else conv


def _has_kernels(module: nn.Module) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    return isinstance(module, nn.Conv2d | nn.Conv3d) and set(module.kernel_size) == {KERNEL_SIZE}


def _replaced(network: nn.Module, replace: Replace) -> tuple[nn.Module, int]:
    """Return ``network`` with modules exchanged in place; a module used twice stays shared."""
    new: dict[nn.Module, nn.Module] = {}
    for module in network.modules():
        substitute = replace(module)
        if substitute is not None:
            new[module] = substitute
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in new:
                setattr(parent, name, new[child])
    return new.get(network, network), len(new)
