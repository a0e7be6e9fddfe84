"""What a prediction will take of the memory, known beforehand, and the windows that fit into it.

The estimate follows the network's own way: the features that a level keeps for later, the largest
set that one of its blocks works on, and what the rest of the process holds meanwhile. It is meant
to lie above what is measured, by less than two thirds of it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from medseg.errors import ConfigError
from medseg.geometry import Grid
from medseg.inference.engines.engine import Engine
from medseg.inference.intensity_prior import refinement_bytes
from medseg.inference.model import Model
from medseg.inference.predictor import MOST_WINDOW_VOXELS, OVERLAPS
from medseg.inference.settings import PredictSettings
from medseg.inference.splitter import choose_plan
from medseg.networks.unet import UNetSettings
from medseg.shapes import Image

log = logging.getLogger(__name__)

MIB, GIB = 2**20, 2**30
#: Interpreter, libraries, and the buffers they make at their first use.
PROCESS_BYTES = 400 * MIB
#: Share of the free memory that is taken where nobody says how much.
FREE_SHARE = 0.8
#: A window of fewer voxels along an axis shows a network too little; nor must the coarsest level be
#: of one voxel, whose normalisation says nothing.
LEAST_SIDE, LEAST_COARSEST = 32, 2
#: Blocks below 32 MiB are not given back to the system one by one (glibc's largest threshold).
HEAP_BYTES = 256 * MIB
#: Scratch of convolutions, and gaps between blocks.
LOOSE_BYTES = 24 * MIB


class _Habits(NamedTuple):
    """What an engine takes: of a window against the walk through the network, and of weights."""

    window: float
    weight_copies: int
    normalises_in_place: bool = False


_ENGINES = {
    "eager": _Habits(1.1, 2),
    # Weights and deviations, a draw, and a plain network made of it.
    "samples": _Habits(1.1, 4),
    "torch": _Habits(1.1, 3, normalises_in_place=True),
    "openvino": _Habits(1.1, 4),
    "onnx": _Habits(0.95, 4),
}
#: Engines whose features take two bytes a number.
_HALVED = {("torch", "bf16"), ("torch", "float16")}


def numbers_per_voxel(architecture: UNetSettings, *, in_place: bool = False) -> tuple[float, float]:
    """Return the numbers that a U-Net holds at its peak for each voxel of a window.

    Parameters
    ----------
    architecture : UNetSettings
    in_place : bool
        Whether normalisation writes over its input.

    Returns
    -------
    peak : float
        Of the level where it is largest, with all that is kept from other levels.
    coarser : float
        The largest set that a level below the finest works on: small blocks, which may not have
        gone back to the system when the peak is reached.
    """
    maps = [w / 2 ** (architecture.dims * level) for level, w in enumerate(architecture.widths)]
    # The skip, the upsampled map, and what comes of the two: both again with "concat", else their
    # sum, which has a place of its own where an odd length is cropped.
    joined = 4 if architecture.skip == "concat" else 3
    working = []
    for level, features in enumerate(maps):
        # The image itself is copied twice: as part of a volume, then in another memory order.
        entry = 2 * architecture.in_channels if level == 0 else maps[level - 1]
        down = entry + (_block(architecture.encoder_convs) - in_place) * features
        up = 0.0
        if level + 1 < len(maps):
            block = _block(architecture.decoder_convs) - in_place
            up = maps[level + 1] + (joined + block) * features
        working.append(max(down, up))
    # Logits, and what makes probabilities of them.
    working[0] = max(working[0], maps[0] + 4 * architecture.out_channels)
    peaks = [own + sum(maps[:level]) for level, own in enumerate(working)]
    return max(peaks), max(working[1:])


def _block(convs: int) -> int:
    """Return the maps of a block at its peak, without its input.

    A convolution's result, the normalised one, what the convolution came from, and with three and
    more the start of the residual sum.
    """
    return min(convs + 1, 4)


@dataclass(frozen=True)
class Job:
    """What decides how much memory a prediction takes.

    Parameters
    ----------
    architecture : UNetSettings
    weight_bytes : int
    image_shape : tuple of 4 int
        Channels and voxels of the prepared image.
    source_voxels : int
        Of the case's own grid.
    regions : int
    engine : str
        "eager", "torch", "openvino" or "onnx"; "samples" of a variational network.
    number_bytes : int
        Of a number of the network's features.
    refinement_bytes : int
        For holding the samples against the scan's intensities.
    """

    architecture: UNetSettings
    weight_bytes: int
    image_shape: tuple[int, int, int, int]
    source_voxels: int
    regions: int
    engine: str = "eager"
    number_bytes: int = 4
    refinement_bytes: int = 0

    @classmethod
    def of(
        cls,
        model: Model,
        image: Image,
        *,
        source_shape: tuple[int, int, int] | None = None,
        engine: Engine | None = None,
        samples: int = 1,
    ) -> Job:
        """Return the job of predicting a prepared image (c, x, y, z) with a model.

        ``engine`` is what computes the logits where that is not the network itself. The number of
        samples counts where they are held against the scan's intensities.
        """
        weights = model.network.state_dict().values()
        c, x, y, z = image.shape
        source = torch.Size(source_shape or (x, y, z)).numel()
        network = "samples" if model.spec.is_random else "eager"
        return cls(
            architecture=model.spec.architecture,
            weight_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
            image_shape=(c, x, y, z),
            source_voxels=source,
            regions=len(model.spec.regions.names),
            engine=network if engine is None else engine.name,
            number_bytes=2 if engine and (engine.name, engine.precision) in _HALVED else 4,
            refinement_bytes=refinement_bytes(
                model.spec.intensities,
                image,
                outputs=model.spec.architecture.out_channels,
                samples=samples,
            ),
        )

    @property
    def window_shape(self) -> tuple[int, ...]:
        """The whole image along the network's axes."""
        return self.image_shape[1 : 1 + self.architecture.dims]

    @property
    def fixed_bytes(self) -> int:
        """All but the window: process, weights, and volumes, also those of the cases beside it.

        While one case is at the network, the next is read and the last is written.
        """
        c, *sides = self.image_shape
        voxels, outputs = torch.Size(sides).numel(), self.architecture.out_channels
        # Image and brain; running moments, the sample before, the sum of its windows and their
        # weights, probabilities and logits of the mean weights.
        prepared = 4 * voxels * (c + 1 + 7 * outputs + 1)
        written = 4 * voxels * 4 * self.regions + self.source_voxels * (self.regions + 4 * 4)
        ahead = reading_bytes(self.source_voxels, scans=c) + 4 * voxels * (c + 1)
        held = prepared + written + ahead + self.refinement_bytes
        return PROCESS_BYTES + self.weights_held + held

    @property
    def weights_held(self) -> int:
        """All copies of the weights; a posterior sample is one too."""
        return _ENGINES[self.engine].weight_copies * self.weight_bytes

    def window_bytes(self, voxels: int) -> int:
        """Return what a window of so many voxels takes."""
        peak, coarser = self._bytes_per_voxel()
        return int(voxels * peak + min(voxels * coarser, HEAP_BYTES)) + LOOSE_BYTES

    def most_voxels(self, room: int) -> int:
        """Return the voxels of the largest window that ``room`` bytes hold."""
        peak, coarser = self._bytes_per_voxel()
        room -= LOOSE_BYTES
        return max(0, int((room - HEAP_BYTES) / peak), int(room / (peak + coarser)))

    def _bytes_per_voxel(self) -> tuple[float, float]:
        habits = _ENGINES[self.engine]
        factor = self.number_bytes * habits.window
        peak, coarser = numbers_per_voxel(self.architecture, in_place=habits.normalises_in_place)
        return peak * factor, coarser * factor

    def least_voxels(self) -> int:
        """Return the voxels of the smallest window that is of use."""
        least = max(LEAST_SIDE, LEAST_COARSEST * 2 ** (len(self.architecture.widths) - 1))
        return math.prod(min(side, least) for side in self.window_shape)


def reading_bytes(voxels: int, *, scans: int) -> int:
    """Return what reading and preparing a case takes, where each voxel may be a double."""
    # All scans in float32, and one file: its bytes, the scaled doubles, and their float32.
    return voxels * (4 * scans + 8 + 8 + 4)


def free_bytes(device: torch.device) -> int:
    """Return what this process may take in all: what it has, and a safe share of what is free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(FREE_SHARE * free) + torch.cuda.memory_reserved(device)
    return int(FREE_SHARE * _free_of_machine()) + _resident()


def _free_of_machine() -> int:
    """Return the bytes that can be had without swapping, also inside a container."""
    limits = []
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    most, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if most and used and most[0].isdigit():
        limits.append(max(0, int(most[0]) - int(used[0])))
    if not limits:
        try:
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
        except (AttributeError, ValueError, OSError):
            limits.append(4 * GIB)
    return min(limits)


def _resident() -> int:
    """Return the bytes that this process has now, 0 where the system does not say."""
    lines = _lines("/proc/self/statm")
    return int(lines[0].split()[1]) * os.sysconf("SC_PAGE_SIZE") if lines else 0


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []


def fitted(
    settings: PredictSettings,
    *,
    job: Job,
    device: torch.device,
    trained: PredictSettings | None = None,
) -> PredictSettings:
    """Return settings whose windows fit into memory, as their profile wants them.

    Parameters
    ----------
    settings : PredictSettings
    job : Job
    device : torch.device
        On a GPU the bound is about its memory, which holds weights and windows only.
    trained : PredictSettings, optional
        The same with windows of the size of the training, which are taken where they fit.

    Raises
    ------
    ConfigError
        Not even the smallest window fits, or not the one that was asked for.
    """
    fixed = job.weights_held if device.type == "cuda" else job.fixed_bytes
    budget = free_bytes(device) if settings.memory_gib is None else int(settings.memory_gib * GIB)
    most = job.most_voxels(budget - fixed)
    if settings.window is not None:
        needed = _cut(settings.window, job)
        if settings.memory_gib is not None:
            _check(job, fixed, budget, needed, most)
        return _batched(settings, job, most // needed)
    _check(job, fixed, budget, job.least_voxels(), most)
    if trained is not None and trained.window is not None:
        if (together := most // _cut(trained.window, job)) > 0:
            return _batched(trained, job, together)
        size, gib = " x ".join(map(str, trained.window)), budget / GIB
        log.warning("windows as in training (%s) do not fit into %.2f GiB", size, gib)
    chosen = _sliced(settings, job, most) or _windowed(settings, job, most)
    window = chosen.window or job.window_shape
    together = chosen.slices_per_batch if job.architecture.dims == 2 else 1
    log.log(
        logging.DEBUG if window == job.window_shape else logging.INFO,
        "windows of %s of %s voxels: about %.2f of %.2f GiB",
        " x ".join(map(str, window)),
        " x ".join(map(str, job.window_shape)),
        (fixed + job.window_bytes(together * math.prod(window))) / GIB,
        budget / GIB,
    )
    return chosen


def _cut(window: Sequence[int], job: Job) -> int:
    """Return the voxels of a window that is cut to the image."""
    return math.prod(min(pair) for pair in zip(window, job.window_shape, strict=False))


def _batched(settings: PredictSettings, job: Job, together: int) -> PredictSettings:
    """Return settings with no more slices at once than fit, but one."""
    most = settings.slices_per_batch if job.architecture.dims == 3 else max(1, together)
    return replace(settings, slices_per_batch=min(most, settings.slices_per_batch))


def _check(job: Job, fixed: int, budget: int, needed: int, most: int) -> None:
    if needed <= most:
        return
    least = (fixed + job.window_bytes(needed)) / GIB
    raise ConfigError(
        f"A prediction on {job.image_shape[1:]} voxels must fit into the memory, but there are "
        f"{budget / GIB:.2f} GiB and it needs {least:.2f} GiB.",
        hint=f"Allow {least + 0.005:.2f} GiB or more, free memory, or use a coarser spacing.",
    )


def _sliced(settings: PredictSettings, job: Job, most: int) -> PredictSettings | None:
    """Return settings with as many whole slices at once as fit, or None where not one does."""
    together = most // math.prod(job.window_shape)
    if together == 0 or job.architecture.dims == 3:
        return None
    return _batched(settings, job, together)


def _windowed(settings: PredictSettings, job: Job, most: int) -> PredictSettings:
    """Return settings with the windows of their profile, or of their own bound, that fit."""
    shape, bound = job.window_shape, settings.max_window_voxels
    overlaps = OVERLAPS[settings.profile] if settings.overlap is None else (settings.overlap,)
    if settings.profile == "best" and bound is None:
        bound = MOST_WINDOW_VOXELS
    plan = choose_plan(shape, max_voxels=min(most, bound or most), overlaps=overlaps)
    batch = settings.slices_per_batch if job.architecture.dims == 3 else 1
    return replace(settings, window=plan.window, overlap=plan.overlap, slices_per_batch=batch)


def check_reading(grids: Sequence[Grid], *, memory_gib: float | None) -> None:
    """Refuse to read scans that do not fit into memory.

    Parameters
    ----------
    grids : sequence of Grid
        One per file of a case, from the headers alone.
    memory_gib : float, optional
        As in :class:`PredictSettings`, for the processor's memory.

    Raises
    ------
    ConfigError
        They do not; the message names what they need.
    """
    budget = free_bytes(torch.device("cpu")) if memory_gib is None else int(memory_gib * GIB)
    voxels = max((torch.Size(grid.shape).numel() for grid in grids), default=0)
    needed = PROCESS_BYTES + reading_bytes(voxels, scans=len(grids))
    if needed <= budget:
        return
    raise ConfigError(
        f"Scans must fit into the memory, but {len(grids)} of up to {voxels:,} voxels need "
        f"{needed / GIB:.2f} GiB to be read, and there are {budget / GIB:.2f} GiB.",
        hint=f"Allow {needed / GIB + 0.005:.2f} GiB or more, or resample the scans first.",
    )
