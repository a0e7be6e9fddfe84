"""From tissues and disease to grey values: contrast, texture, bias field, noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Integer

from medseg.data.phantom.fields import smooth_noise
from medseg.data.phantom.presets import ScannerNumbers
from medseg.data.phantom.subject import Subject
from medseg.shapes import FloatVolume


@dataclass(frozen=True, eq=False)
class Layer:
    """One thing painted over the healthy tissue.

    Parameters
    ----------
    share : Tensor, shape (x, y, z)
        How much of it each voxel has, mostly 0 to 1.
    replace : mapping from modality to grey value
        The tissue's value gives way to this one by ``share``.
    add : mapping from modality to grey value
        ``share`` times this is added. A modality in neither mapping does not show the layer.
    """

    share: FloatVolume
    replace: Mapping[str, float] = field(default_factory=dict)
    add: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Disease:
    """A label map and how it looks: layers in the order in which they are painted."""

    label: Integer[torch.Tensor, "x y z"]
    layers: tuple[Layer, ...]


def draw_tissue_means(numbers: ScannerNumbers, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Return each modality's eight tissue means for one subject."""
    means = {}
    for name, row in numbers.contrast.items():
        varied = np.asarray(row) + rng.normal(0.0, numbers.contrast_std, len(row))
        means[name] = torch.from_numpy(np.maximum(varied, 0.05)).float()
    return means


def render(
    subject: Subject,
    layers: Sequence[Layer],
    *,
    modality: str,
    means: torch.Tensor,
    numbers: ScannerNumbers,
    rng: np.random.Generator,
) -> FloatVolume:
    """Return one image; 0 outside the brain.

    Parameters
    ----------
    subject : Subject
    layers : sequence of Layer
        Confounders and disease.
    modality : str
        Which entries of the layers to show.
    means : Tensor, shape (8,)
        Grey value of each tissue.
    numbers : ScannerNumbers
    rng : numpy.random.Generator
        Of texture, blur, bias field and noise.

    Returns
    -------
    Tensor, shape (x, y, z), float32
    """
    image = torch.einsum("t,txyz->xyz", means, subject.tissues)
    for layer in layers:
        if modality in layer.replace:
            image = image + layer.share * (layer.replace[modality] - image)
        if modality in layer.add:
            image = image + layer.share * layer.add[modality]
    voxel_mm = float(np.mean(subject.grid.spacing_mm))
    for strength, voxels in zip(numbers.texture, (3.0, 1.5), strict=True):
        image = image + strength * smooth_noise(
            subject.grid, correlation_mm=max(voxels * voxel_mm, voxels * 1.5), rng=rng
        )
    image = _blur(image, float(rng.uniform(*numbers.blur)))
    bias = smooth_noise(subject.grid, correlation_mm=numbers.bias_mm, rng=rng)
    image = image.clamp(min=0.0) * torch.exp(float(rng.uniform(*numbers.bias)) * bias)
    return rician(image, std=float(rng.uniform(*numbers.noise)), rng=rng) * subject.brain


def _blur(image: FloatVolume, weight: float) -> FloatVolume:
    mean = nnf.avg_pool3d(image[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    return image + weight * (mean - image)


def rician(image: FloatVolume, *, std: float, rng: np.random.Generator) -> FloatVolume:
    """Return the magnitude of the image with independent noise in both parts of its signal.

    References
    ----------
    Gudbjartsson and Patz, Magn. Reson. Med. 34 (1995) 910-914, equation 1.
    """
    real, imaginary = (
        torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32)) * std
        for _ in range(2)
    )
    return torch.hypot(image + real, imaginary)
