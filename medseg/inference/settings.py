"""What a prediction can be asked for."""

import re
from typing import Literal

from pydantic import Field

from medseg.errors import ConfigError
from medseg.metrics.lesions import LesionSettings
from medseg.settings import settings

EngineName = Literal["auto", "eager", "torch", "openvino", "onnx"]
Profile = Literal["fast", "default", "best"]

_GIB = 2**30
_UNITS = {"M": 2**20, "MIB": 2**20, "G": _GIB, "GIB": _GIB, "T": 1024 * _GIB, "TIB": 1024 * _GIB}
_UNITS |= {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_memory(text: str) -> float:
    """Return an amount of memory in GiB.

    Raises
    ------
    ConfigError
        It is no positive number with a unit.

    Examples
    --------
    >>> parse_memory("4G"), parse_memory("512MiB"), parse_memory("1.5 GiB")
    (4.0, 0.5, 1.5)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) == 0:
        raise ConfigError(
            f"An amount of memory is a positive number with a unit, but it is {text!r}.",
            hint="Write 4G (the same as 4GiB) or 500M.",
        )
    return float(found[1]) * unit / _GIB


@settings
class PredictSettings:
    """Windows, samples, thresholds and where to compute.

    Parameters
    ----------
    profile : "fast", "default" or "best"
        What decides where the next four are left out. "fast": windows overlap by an eighth, and
        int8 where it passed its check; "default": by a quarter, largest ones by up to a half where
        that makes no more of them; both look at the box of the brain without its margin. "best": by
        half, margin and all, in float32.
    windows : "trained" or "largest"
        Of the size of the patches that the network was trained on, where the model tells: instance
        normalisation counts what it sees, and answers otherwise when shown more. Or as few as
        memory allows (in "best" of at most 128^3 voxels), which is the least work.
    window : tuple of int, optional
        Voxels of a window along each axis of the network: three, or two for a network of axial
        slices.
    max_window_voxels : int, optional
        Bound on the voxels of a window where ``window`` is left out, in place of the size of the
        training. 3D networks only; slices are whole where memory allows.
    overlap : float, optional
        Least share of a window that its neighbour covers too.
    memory_gib : float, optional
        Bound on the memory of the whole prediction in GiB, which windows are made to fit, those of
        the training too; an explicit ``window`` that does not fit is refused. When left
        out, a safe share of what the machine has free. On a GPU both are about the GPU's memory.
    slices_per_batch : int
        Axial slices a 2D network sees at once, fewer where memory asks for it.
    samples : int
        Draws from the posterior over weights; a deterministic network makes one.
    posterior : "full" or "focused"
        Whether every sample sees the whole volume. "focused": what a sample changes is computed in
        the box where the mean weights are uncertain; elsewhere all samples are alike.
    seed : int
        Of these draws. Sample k is the same whatever the number of samples.
    refine : bool
        Hold what the network says against the scan's own intensities, where the model knows how its
        scans look.
    threshold : float
        A voxel belongs to a region above this probability; mode "classes" takes the most probable.
    lesions : LesionSettings
        What the lesion table calls a lesion, and when a sample has it.
    device : str
        "auto", "cpu", "cuda", "cuda:1", ...
    engine : "auto", "eager", "torch", "openvino" or "onnx"
        What runs a deterministic network; "auto" takes the fastest that agrees with "eager".
    precision : "auto", "float32", "bf16", "float16" or "int8"
        Of the network's products, where the engine has it; everything after it is float32.
    """

    profile: Profile = "default"
    windows: Literal["trained", "largest"] = "trained"
    window: tuple[int, ...] | None = None
    max_window_voxels: int | None = Field(default=None, ge=1)
    overlap: float | None = Field(default=None, ge=0, lt=1)
    memory_gib: float | None = Field(default=None, gt=0)
    slices_per_batch: int = Field(default=16, ge=1)
    samples: int = Field(default=10, ge=1)
    posterior: Literal["full", "focused"] = "full"
    seed: int = 0
    refine: bool = True
    threshold: float = Field(default=0.5, gt=0, lt=1)
    lesions: LesionSettings = LesionSettings()
    device: str = "auto"
    engine: EngineName = "torch"
    precision: Literal["auto", "float32", "bf16", "float16", "int8"] = "auto"
