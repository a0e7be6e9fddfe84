"""Image in, probabilities on the same grid out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from medseg.errors import ConfigError, ModelError, ShapeError
from medseg.inference.merger import Merger
from medseg.inference.settings import PredictSettings
from medseg.inference.splitter import choose_window, plan_windows
from medseg.shapes import Image

HeadMode = Literal["regions", "classes"]
#: Images (b, c, *s) to logits (b, n, *s).
Engine = Callable[[Tensor], Tensor]


class Predictor(Protocol):
    """Turns one image into probabilities.

    Laws, held by ``tests/contracts/test_predictors.py``: a network that says the same of every
    voxel gives a constant volume; in mode "classes" the channels sum to 1; windows cover
    everything; cutting into windows changes nothing for a network that sees single voxels.
    """

    def __call__(self, image: Image) -> Tensor:
        """Return probabilities (n, x, y, z), float32, for an image (c, x, y, z)."""
        ...


def to_probabilities(logits: Tensor, *, mode: HeadMode, temperature: float = 1.0) -> Tensor:
    """Return sigmoids per region, or a softmax over axis 1, of ``logits / temperature``.

    Parameters
    ----------
    logits : Tensor, shape (b, n, *s)
    mode : "regions" or "classes"
    temperature : float
        Above 1 it makes probabilities less extreme.

    References
    ----------
    Guo et al. 2017, "On calibration of modern neural networks", section 4.2.
    """
    scaled = logits.float() / temperature
    return scaled.sigmoid() if mode == "regions" else scaled.softmax(dim=1)


class SlidingWindow:
    """A network over windows of a volume, or over windows of its axial slices.

    Parameters
    ----------
    network : callable
        Images (b, c, *s) to logits (b, n, *s), on the same grid.
    mode : "regions" or "classes"
        How logits become probabilities.
    dims : 2 or 3
        Spatial axes that the network sees; 2 means slices along the last axis of the volume.
    temperature : float
        Logits are divided by it.
    device : torch.device
        Where the network is; windows travel there, results come back to the image's device.
    dtype : torch.dtype
        ``torch.bfloat16`` runs the network under autocast.
    settings : PredictSettings
        Windows and batches.

    Raises
    ------
    ConfigError
        ``dims`` or ``temperature`` is impossible.
    """

    def __init__(
        self,
        network: Engine,
        *,
        mode: HeadMode,
        dims: int = 3,
        temperature: float = 1.0,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        settings: PredictSettings | None = None,
    ) -> None:
        if dims not in (2, 3) or not temperature > 0:
            raise ConfigError(
                "A predictor needs 2 or 3 spatial axes and a positive temperature, but they are "
                f"{dims} and {temperature}.",
                hint="Take both from the model's settings.",
            )
        self.network = network
        self.mode: HeadMode = mode
        self.dims = dims
        self.temperature = temperature
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.settings = settings or PredictSettings()

    def __call__(self, image: Image) -> Tensor:
        """Return probabilities (n, x, y, z), float32, for an image (c, x, y, z).

        Raises
        ------
        ShapeError
            An image that is not (c, x, y, z), or logits on another grid.
        ModelError
            The network returns values that are not finite.
        """
        if image.ndim != 4 or 0 in image.shape:
            raise ShapeError(
                f"A predictor takes an image (c, x, y, z), but its shape is {tuple(image.shape)}.",
                hint="Give one case, channels first, without a batch axis.",
            )
        with torch.no_grad():
            if self.dims == 3:
                return self._batch(image.unsqueeze(0))[0]
            slices = image.permute(3, 0, 1, 2)
            parts = [self._batch(part) for part in slices.split(self.settings.slices_per_batch)]
            return torch.cat(parts).permute(1, 2, 3, 0).contiguous()

    def _batch(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape[2:])
        windows = plan_windows(shape, self._window(shape), overlap=self.settings.overlap)
        if len(windows) == 1:
            return self._probabilities(images)
        merger = Merger(shape)
        for window in windows:
            merger.add(window, self._probabilities(images[(..., *window)]))
        return merger.merged()

    def _window(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.settings.window is not None:
            return self.settings.window
        if self.dims == 2:
            return shape
        settings = self.settings
        return choose_window(shape, max_voxels=settings.max_window_voxels, overlap=settings.overlap)

    def _probabilities(self, images: Tensor) -> Tensor:
        reduced = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=reduced):
            logits = self.network(images.to(self.device, torch.float32))
        if logits.shape[0] != images.shape[0] or logits.shape[2:] != images.shape[2:]:
            raise ShapeError(
                f"A network keeps the grid of its input {tuple(images.shape)}, but its logits are "
                f"{tuple(logits.shape)}.",
                hint="Pad inside the network and crop the logits back.",
            )
        probabilities = to_probabilities(logits, mode=self.mode, temperature=self.temperature)
        if not bool(probabilities.isfinite().all()):
            raise ModelError(
                "Logits must be finite, but the network returned NaN for a window of shape "
                f"{tuple(images.shape)}.",
                hint="Look for NaN in the scan or the weights, or set precision to float32.",
            )
        return probabilities.to(images.device)
