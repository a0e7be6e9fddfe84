"""What the rest of medseg asks of an engine, and how one is made."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.inference.engines.eager import EagerEngine
from medseg.inference.engines.onnx import ONNXEngine
from medseg.inference.engines.openvino import OpenVINOEngine
from medseg.inference.engines.torch_fast import TorchEngine
from medseg.networks.precision import resolve_device
from medseg.settings import settings
from medseg.shapes import ImageBatch, LogitBatch

EngineName = Literal["eager", "torch", "openvino", "onnx"]
EnginePrecision = Literal["float32", "bf16", "float16", "int8"]

#: What each engine can compute in, where the device can.
PRECISIONS: dict[EngineName, tuple[EnginePrecision, ...]] = {
    "eager": ("float32",),
    "torch": ("float32", "bf16", "float16"),
    "openvino": ("float32", "bf16", "float16", "int8"),
    "onnx": ("float32",),
}


@runtime_checkable
class Engine(Protocol):
    """One deterministic network, ready to run.

    Laws, held by ``tests/contracts/test_engines.py`` for every engine that is installed: the logits
    are those of the network in eager float32, to the rounding of the engine's precision; they lie
    on the grid of the images, in float32 and on their device; images of any spatial size are taken,
    also of one voxel, one after the other of different sizes; the cases of a batch do not mix;
    equal images give equal logits; what the network does not take is refused with a `ShapeError`,
    and what does not fit into memory with an `EngineMemoryError`; the network itself is not
    changed.
    """

    name: str
    precision: str

    def __call__(self, images: ImageBatch) -> LogitBatch:
        """Return logits (b, n, *s), float32, for images (b, c, *s), float32."""
        ...


@settings
class EngineChoice:
    """Which engine, and how it computes.

    Parameters
    ----------
    name : "eager", "torch", "openvino" or "onnx"
    precision : "float32", "bf16", "float16" or "int8"
        Of products; see ``PRECISIONS`` for what each engine has.
    device : str
        "auto", "cpu", "cuda", ... for "torch"; "eager" stays where the network is, the others run
        on the CPU.
    compiled : bool
        ``torch.compile``, for "torch".
    """

    name: EngineName = "torch"
    precision: EnginePrecision = "float32"
    device: str = "auto"
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.precision}{' compiled' if self.compiled else ''}"


def make_engine(
    choice: EngineChoice,
    network: nn.Module,
    *,
    cache: Path | None = None,
    calibration: Iterable[Tensor] | None = None,
) -> Engine:
    """Return a network compiled into an engine.

    Parameters
    ----------
    choice : EngineChoice
    network : nn.Module
        Deterministic, or variational and represented by its mean weights.
    cache : Path, optional
        Folder for compiled forms, named by a SHA-256 over all they are made from. Never the folder
        of the input. One that cannot be written to is done without.
    calibration : iterable of Tensor, optional
        Images (b, c, *s) that int8 is calibrated with where the cache has no compiled form.

    Raises
    ------
    ConfigError
        The engine has no such precision, here or anywhere, or its package is not installed.
    """
    if choice.precision not in PRECISIONS[choice.name]:
        raise ConfigError(
            f"the engine {choice.name} computes in {', '.join(PRECISIONS[choice.name])}, but "
            f"precision is {choice.precision}",
            hint="Choose one of these, or another engine.",
        )
    if choice.name == "eager":
        return EagerEngine(network)
    if choice.name == "torch":
        return TorchEngine(
            network,
            precision=choice.precision,
            device=resolve_device(choice.device),
            compiled=choice.compiled,
        )
    if choice.name == "openvino":
        return OpenVINOEngine(
            network, precision=choice.precision, cache=cache, calibration=calibration
        )
    return ONNXEngine(network, cache=cache)
