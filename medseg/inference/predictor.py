"""Image in, probabilities on the same grid out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from medseg.errors import ConfigError, ModelError, ShapeError
from medseg.inference.engines.memory import EngineMemoryError, memory_errors
from medseg.inference.merger import Merger
from medseg.inference.settings import PredictSettings, Profile
from medseg.inference.splitter import WindowPlan, choose_plan, plan_windows
from medseg.shapes import Image

log = logging.getLogger(__name__)

HeadMode = Literal["regions", "classes"]
#: Images (b, c, *s) to logits (b, n, *s).
Engine = Callable[[Tensor], Tensor]

#: Shares of a window that its neighbour covers too, to choose from.
OVERLAPS: dict[Profile, tuple[float, ...]] = {
    "fast": (0.125,),
    "default": (0.25, 0.375, 0.5),
    "best": (0.5,),
}
#: Of a window where nothing says how much memory there is.
MOST_WINDOW_VOXELS = 128**3
#: How often a window is halved when memory does not hold it.
MOST_HALVINGS = 4


class Predictor(Protocol):
    """Turns one image into probabilities.

    Laws, held by ``tests/contracts/test_predictors.py``: a network that says the same of every
    voxel gives a constant volume; in mode "classes" the channels sum to 1; windows cover
    everything; cutting into windows changes nothing for a network that sees single voxels; a window
    in which the image is 0 altogether may be left out, which changes nothing elsewhere.
    """

    def __call__(self, image: Image) -> Tensor:
        """Return probabilities (n, x, y, z), float32, for an image (c, x, y, z)."""
        ...


#: One for all channels of a head, or one for each.
Temperature = float | tuple[float, ...]


def to_probabilities(logits: Tensor, *, mode: HeadMode, temperature: Temperature = 1.0) -> Tensor:
    """Return sigmoids per region, or a softmax over axis 1, of ``logits / temperature``.

    Parameters
    ----------
    logits : Tensor, shape (b, n, *s)
    mode : "regions" or "classes"
    temperature : float, or n of them
        Above 1 it makes probabilities less extreme.

    References
    ----------
    Guo et al. 2017, "On calibration of modern neural networks", section 4.2.
    """
    if isinstance(temperature, tuple):
        scale = torch.tensor(temperature, device=logits.device)
        scaled = logits.float() / scale.view(1, -1, *[1] * (logits.ndim - 2))
    else:
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
    temperature : float or tuple of float
        Logits are divided by it; one for each channel, or one for all.
    device : torch.device
        Where the network is; windows travel there, results come back to the image's device.
    dtype : torch.dtype
        ``torch.bfloat16`` runs the network under autocast.
    settings : PredictSettings
        Windows and batches.

    Notes
    -----
    Windows and slices in which the image is 0 in all channels hold no brain: the network is not
    asked, and what only they cover is background. When memory does not hold a window, half of it is
    tried, a few times, and for the next images at once.

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
        temperature: Temperature = 1.0,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        settings: PredictSettings | None = None,
    ) -> None:
        several = temperature if isinstance(temperature, tuple) else (temperature,)
        if dims not in (2, 3) or not all(one > 0 for one in several):
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
        self._most_images = self.settings.slices_per_batch
        self._halvings = 0

    def __call__(self, image: Image) -> Tensor:
        """Return probabilities (n, x, y, z), float32, for an image (c, x, y, z).

        Raises
        ------
        ShapeError
            An image that is not (c, x, y, z), or logits on another grid.
        ModelError
            The network returns values that are not finite.
        EngineMemoryError
            Not even windows of a sixteenth fit into memory.
        """
        if image.ndim != 4 or 0 in image.shape:
            raise ShapeError(
                f"A predictor takes an image (c, x, y, z), but its shape is {tuple(image.shape)}.",
                hint="Give one case, channels first, without a batch axis.",
            )
        with torch.no_grad():
            if self.dims == 3:
                return self._background(self._batch(image.unsqueeze(0)))[0]
            return self._slices(image.permute(3, 0, 1, 2)).permute(1, 2, 3, 0).contiguous()

    def _slices(self, slices: Tensor) -> Tensor:
        """Return probabilities (z, n, x, y) of slices (z, c, x, y)."""
        seen = [index for index, part in enumerate(slices) if bool(part.any())]
        batches = torch.tensor(seen or range(len(slices))).split(self._most_images)
        parts = torch.cat([self._batch(slices[batch]) for batch in batches])
        probabilities = parts.new_zeros((len(slices), *parts.shape[1:]))
        probabilities[torch.cat(batches)] = parts
        return self._background(probabilities)

    def _background(self, probabilities: Tensor) -> Tensor:
        """Say background where the network was not asked, for images (b, n, *s)."""
        if self.mode == "classes":
            probabilities[:, 0] += probabilities.sum(dim=1) == 0
        return probabilities

    def _batch(self, images: Tensor) -> Tensor:
        """Return probabilities (b, n, *s), 0 where the network was not asked."""
        if len(images) > self._most_images:
            return torch.cat([self._batch(part) for part in images.split(self._most_images)])
        try:
            return self._windows(images)
        except EngineMemoryError as error:
            if not self._shrink(images):
                raise
            log.warning("%s: half of it is tried", error.message)
        return self._batch(images)

    def _windows(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape[2:])
        plan = self.plan(shape)
        windows = plan_windows(shape, plan.window, overlap=plan.overlap)
        if len(windows) == 1:
            return self._probabilities(images)
        with_brain = [bool(images[(..., *window)].any()) for window in windows]
        merger = Merger(shape)
        for window, wanted in zip(windows, with_brain, strict=True):
            if wanted or not any(with_brain):
                merger.add(window, self._probabilities(images[(..., *window)]))
            else:
                merger.skip(window)
        return merger.merged()

    def plan(self, shape: tuple[int, ...]) -> WindowPlan:
        """Return the windows of an image of ``shape`` voxels along the network's axes."""
        settings = self.settings
        overlaps = OVERLAPS[settings.profile] if settings.overlap is None else (settings.overlap,)
        if settings.window is not None:
            plan = WindowPlan(settings.window, max(overlaps))
        elif self.dims == 2:
            plan = WindowPlan(shape, max(overlaps))
        else:
            most = settings.max_window_voxels or MOST_WINDOW_VOXELS
            plan = choose_plan(shape, max_voxels=most, overlaps=overlaps)
        if not self._halvings:
            return plan
        return WindowPlan(halved(plan.window, shape, times=self._halvings), plan.overlap)

    def _shrink(self, images: Tensor) -> bool:
        """Ask for half as much at once from now on, and return whether that was possible."""
        if len(images) > 1:
            self._most_images = len(images) // 2
            return True
        window = self.plan(tuple(images.shape[2:])).window
        if self._halvings == MOST_HALVINGS or max(window) == 1:
            return False
        self._halvings += 1
        return True

    def _probabilities(self, images: Tensor) -> Tensor:
        reduced = self.dtype != torch.float32
        autocast = torch.autocast(self.device.type, dtype=self.dtype, enabled=reduced)
        with memory_errors(tuple(images.shape), str(self.device)), autocast:
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


def halved(window: Sequence[int], shape: Sequence[int], *, times: int) -> tuple[int, ...]:
    """Return a window whose longest side was halved some times; it is cut to the image first.

    Examples
    --------
    >>> halved((100, 80, 60), (70, 90, 70), times=2)
    (35, 40, 60)
    """
    sides = [min(side, length) for side, length in zip(window, shape, strict=True)]
    for _ in range(times):
        longest = sides.index(max(sides))
        sides[longest] = (sides[longest] + 1) // 2
    return tuple(sides)
