"""ONNX Runtime on the CPU, in float32."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import nn

from medseg.inference.engines.compiled import kept, stem
from medseg.inference.engines.memory import memory_errors
from medseg.inference.engines.packages import optional_package
from medseg.inference.engines.plain import example_images, image_layout, plain_network
from medseg.shapes import ImageBatch, LogitBatch

_MODEL = "model.onnx"
#: The oldest with everything that the plain networks use.
_OPSET = 17


class ONNXEngine:
    """A network run by ONNX Runtime.

    Parameters
    ----------
    network : nn.Module
        Copied; a variational one gives its means.
    cache : Path, optional
        Keeps the exported network.

    Raises
    ------
    ConfigError
        A package is missing.
    """

    name = "onnx"
    precision = "float32"

    def __init__(self, network: nn.Module, *, cache: Path | None = None) -> None:
        self.layout = image_layout(network)
        runtime = optional_package("onnxruntime")
        exported = kept(
            cache,
            stem(network, engine=self.name, precision=self.precision),
            build=lambda: _exported(network),
            write=lambda content, folder: (folder / _MODEL).write_bytes(content),
            read=lambda folder: (folder / _MODEL).read_bytes(),
        )
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        self._session = runtime.InferenceSession(
            exported, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: ImageBatch) -> LogitBatch:
        """Return logits (b, n, *s), float32, for images (b, c, *s), on the images' device.

        Raises
        ------
        ShapeError
            The network takes other images.
        EngineMemoryError
            The images' activations do not fit into memory.
        """
        self.layout.check(images)
        array = images.detach().to("cpu", torch.float32).contiguous().numpy()
        with memory_errors(tuple(images.shape), "the CPU"):
            (logits,) = self._session.run(["logits"], {"images": array})
        return torch.from_numpy(logits).to(images.device)


def _exported(network: nn.Module) -> bytes:
    optional_package("onnx")
    layout, content = image_layout(network), io.BytesIO()
    axes = {0: "b", **{axis + 2: name for axis, name in enumerate("xyz"[: layout.dims])}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The newer exporter fixes the sizes on which the network decides how to crop.
        torch.onnx.export(
            plain_network(network),
            (example_images(network),),
            content,  # pyright: ignore[reportArgumentType] - the older exporter takes streams
            dynamo=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": axes, "logits": axes},
            opset_version=_OPSET,
        )
    return content.getvalue()
