"""OpenVINO on the CPU, in float32, bf16, float16, or int8 after calibration."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.inference.engines.compiled import kept, stem
from medseg.inference.engines.memory import memory_errors
from medseg.inference.engines.packages import optional_package
from medseg.inference.engines.plain import example_images, image_layout, plain_network
from medseg.shapes import ImageBatch, LogitBatch

log = logging.getLogger(__name__)

#: Precision -> OpenVINO's name of it as a hint, and as a capability of the processor.
_HINTS = {"float32": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "float16": ("f16", "FP16")}
_MODEL = "model.xml"
#: What int8 leaves in float: normalisations, with their gains, and sums and interpolations.
_IN_FLOAT = ["MVN", "Multiply", "Add", "Interpolate"]


class OpenVINOEngine:
    """A network compiled by OpenVINO for the processor it runs on.

    Parameters
    ----------
    network : nn.Module
        Copied; a variational one gives its means.
    precision : "float32", "bf16", "float16" or "int8"
        Weights are kept in float32 but for int8: the same form serves every processor.
    cache : Path, optional
        Keeps the converted network.
    calibration : iterable of Tensor, optional
        Images (b, c, *s) as the network will see them. Only "int8" needs them, and only where
        ``cache`` does not hold the quantised network.

    Raises
    ------
    ConfigError
        A package is missing, the processor lacks the precision, or there are no images to
        calibrate int8 with.

    References
    ----------
    NNCF, "Basic quantization flow": the ranges of convolutions' inputs are measured on the
    calibration images, and their weights become symmetric int8.
    """

    name = "openvino"

    def __init__(
        self,
        network: nn.Module,
        *,
        precision: str,
        cache: Path | None = None,
        calibration: Iterable[Tensor] | None = None,
    ) -> None:
        self.precision = precision
        self.layout = image_layout(network)
        openvino = optional_package("openvino")
        self._core = core = openvino.Core()
        self._options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        if precision in _HINTS:
            self._options["INFERENCE_PRECISION_HINT"] = _supported_hint(core, precision)
        self._model = kept(
            cache,
            stem(network, engine=self.name, precision=precision),
            build=lambda: _converted(network, precision, calibration),
            write=lambda model, folder: openvino.save_model(
                model, folder / _MODEL, compress_to_fp16=False
            ),
            read=lambda folder: core.read_model(folder / _MODEL),
        )
        self._request: Any = self._new_request()

    def _new_request(self) -> Any:
        return self._core.compile_model(self._model, "CPU", self._options).create_infer_request()

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
        array = np.ascontiguousarray(images.detach().to("cpu", torch.float32).numpy())
        with memory_errors(tuple(images.shape), "the CPU"):
            # One that failed remembers shapes that it never computed, and is not used again.
            request, self._request = self._request or self._new_request(), None
            # Not `infer`: out of memory, it returns the logits of the call before without a word.
            request.start_async(array, share_inputs=True)
            request.wait()
            self._request = request
        return torch.from_numpy(request.get_output_tensor().data.copy()).to(images.device)


def _supported_hint(core: Any, precision: str) -> str:
    """Return OpenVINO's name of a precision.

    Where the processor lacks it, OpenVINO would compute in float32 and not say so.
    """
    hint, capability = _HINTS[precision]
    found = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if capability not in found:
        raise ConfigError(
            f"OpenVINO computes in {precision} where the processor can, but this one has "
            f"{', '.join(found)}",
            hint="Set precision to float32.",
        )
    return hint


def _converted(network: nn.Module, precision: str, calibration: Iterable[Tensor] | None) -> Any:
    openvino = optional_package("openvino")
    samples = _calibration(calibration) if precision == "int8" else []
    layout, example = image_layout(network), example_images(network)
    shape = openvino.PartialShape([-1, layout.channels, *[-1] * layout.dims])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A large example would be run again for the check, at several times the cost of converting.
        traced = torch.jit.trace(plain_network(network), example, check_trace=False)
        model = openvino.convert_model(traced, input=shape, example_input=example)
    return _quantised(model, samples) if samples else model


def _calibration(images: Iterable[Tensor] | None) -> list[NDArray[np.float32]]:
    samples = [image.detach().to("cpu", torch.float32).numpy() for image in images or ()]
    if not samples:
        raise ConfigError(
            "int8 is calibrated with images that the network will see, but there are none",
            hint="Give calibration images, or set precision to float32.",
        )
    return samples


def _quantised(model: Any, samples: Sequence[NDArray[np.float32]]) -> Any:
    """Return the model with its convolutions in int8, but for the first and the last.

    With the inputs of normalisations and sums in int8 as well, a narrow network is a sixth faster,
    a wide one not at all, and three times as many voxels of the masks differ.
    """
    nncf = optional_package("nncf")
    nncf.set_log_level(logging.WARNING)
    names = [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution"
    ]
    # Its progress bars go to the terminal, which is not theirs.
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(
                names=[names[0], names[-1]], types=_IN_FLOAT, validate=False
            ),
        )
