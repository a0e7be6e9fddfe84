"""What a prediction can be asked for."""

from typing import Literal

from pydantic import Field

from medseg.metrics.lesions import LesionSettings
from medseg.settings import settings


@settings
class PredictSettings:
    """Windows, samples, thresholds and where to compute.

    Parameters
    ----------
    window : tuple of int, optional
        Voxels of a window along each axis of the network: three, or two for a network of axial
        slices. When left out, the whole image is one window, or as few as hold
        at most ``max_window_voxels`` each.
    max_window_voxels : int
        Bound on memory where ``window`` is left out. 3D networks only; slices are always whole.
    overlap : float
        Least share of a window that its neighbour covers too.
    slices_per_batch : int
        Axial slices a 2D network sees at once.
    samples : int
        Draws from the posterior over weights; a deterministic network makes one.
    seed : int
        Of these draws. Sample k is the same whatever the number of samples.
    threshold : float
        A voxel belongs to a region above this probability; mode "classes" takes the most probable.
    lesions : LesionSettings
        What the lesion table calls a lesion, and when a sample has it.
    device : str
        "auto", "cpu", "cuda", "cuda:1", ...
    precision : "auto", "float32" or "bf16"
        Of the network's products; everything after it is float32.
    """

    window: tuple[int, ...] | None = None
    max_window_voxels: int = Field(default=128**3, ge=1)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    slices_per_batch: int = Field(default=16, ge=1)
    samples: int = Field(default=10, ge=1)
    seed: int = 0
    threshold: float = Field(default=0.5, gt=0, lt=1)
    lesions: LesionSettings = LesionSettings()
    device: str = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"
