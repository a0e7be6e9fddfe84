"""Torch, with everything prepared beforehand that inference alone allows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medseg.errors import ConfigError
from medseg.inference.engines.memory import memory_errors
from medseg.inference.engines.plain import frozen_copy, image_layout
from medseg.networks.blocks import ConvBlock
from medseg.networks.convolution import PointwiseConv
from medseg.networks.norm_act import LEAKY_SLOPE, Activation, InstanceNormAct
from medseg.shapes import ImageBatch, LogitBatch

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}


class TorchEngine:
    """A copy of a network in torch: fast memory order, products in ``precision``.

    Parameters
    ----------
    network : nn.Module
        Copied; a variational one gives its means, or the sample that it holds.
    precision : "float32", "bf16" or "float16"
        Of products, under autocast; statistics of normalisations and logits are float32.
    device : torch.device
    compiled : bool
        Through ``torch.compile``: seconds to minutes at the first image of each shape.

    Raises
    ------
    ConfigError
        float16 without a GPU.
    """

    name = "torch"

    def __init__(
        self, network: nn.Module, *, precision: str, device: torch.device, compiled: bool = False
    ) -> None:
        if precision == "float16" and device.type != "cuda":
            raise ConfigError(
                f"torch computes in float16 on CUDA devices, but the device is {device}",
                hint="Set precision to float32 or bf16, or use the engine openvino.",
            )
        self.precision = precision
        self.device = device
        self.layout = image_layout(network)
        self._dtype = DTYPES[precision]
        self.network = self._prepared(network)
        if compiled:
            self.network.compile()

    def _prepared(self, network: nn.Module) -> nn.Module:
        copy = frozen_copy(network)
        for module in copy.modules():
            if isinstance(module, ConvBlock):
                # Its normalisations alone are known to be the only readers of what they get.
                module.norms = nn.ModuleList(
                    _InPlaceNormAct(norm) if isinstance(norm, InstanceNormAct) else norm
                    for norm in module.norms
                )
            elif isinstance(module, nn.modules.conv._ConvNd | PointwiseConv):
                # Else autocast converts the weights again at every call.
                module.to(self._dtype)
        order = torch.channels_last_3d if self.layout.dims == 3 else torch.channels_last
        return copy.to(self.device).to(memory_format=order)  # pyright: ignore[reportCallIssue]

    def __call__(self, images: ImageBatch) -> LogitBatch:
        """Return logits (b, n, *s), float32, for images (b, c, *s), on the images' device.

        Raises
        ------
        ShapeError
            The network takes other images.
        EngineMemoryError
            The images' activations do not fit into the device's memory.
        """
        self.layout.check(images)
        reduced = self._dtype != torch.float32
        autocast = torch.autocast(self.device.type, dtype=self._dtype, enabled=reduced)
        with torch.no_grad(), autocast, memory_errors(tuple(images.shape), str(self.device)):
            logits = self.network(images.to(self.device, torch.float32))
            return logits.to(images.device, torch.float32)


_ACTIVATIONS: dict[Activation, Callable[[Tensor], object]] = {
    "relu": F.relu_,
    "leaky_relu": lambda image: F.leaky_relu_(image, LEAKY_SLOPE),
    "elu": F.elu_,
    "none": lambda image: None,
}


class _InPlaceNormAct(nn.Module):
    """`InstanceNormAct` that writes its result over its input."""

    def __init__(self, layer: InstanceNormAct) -> None:
        super().__init__()
        self.gain, self.shift = layer.gain, layer.shift
        self.activation: Activation = layer.activation
        self.eps = layer.eps

    def forward(self, image: Tensor, residual: Tensor | None = None) -> Tensor:
        statistics = torch.empty_like(self.gain), torch.empty_like(self.gain)
        # Batch normalisation of a single case is instance normalisation.
        for case in image.split(1):
            torch.native_batch_norm(
                case, self.gain, self.shift, None, None, True, 0.0, self.eps,
                out=(case, *statistics),
            )  # fmt: skip
        if residual is not None:
            image.add_(residual)
        _ACTIVATIONS[self.activation](image)
        return image
