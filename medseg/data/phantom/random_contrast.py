"""Grey values without any scanner in mind: every tissue and every layer of disease at random.

A network that is trained on such scans has to find lesions by shape and surroundings, and so works
on contrasts that nobody foresaw.

References
----------
Billot et al., SynthSeg: segmentation of brain MRI scans of any contrast and resolution without
retraining, Medical Image Analysis 86 (2023) 102789, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from medseg.data.phantom.anatomy import INDEX, TISSUES
from medseg.data.phantom.contrast import Layer
from medseg.data.phantom.presets import SOURCE, ScannerNumbers

#: Wider than any scanner's: blur, bias field, noise and texture of random scans.
RANDOM_SCANNER: ScannerNumbers = replace(
    SOURCE.scanner, blur=(0.0, 0.8), bias=(0.01, 0.15), noise=(0.005, 0.05), texture=(0.02, 0.015)
)
_GREY = (0.1, 1.2)
_CHANGE = (0.12, 0.6)
# Tissues of one kind look alike in every contrast.
_ALIKE = (("cortex", "cerebellar_cortex"), ("white", "cerebellar_white"), ("csf", "ventricle"))


def draw_random_means(rng: np.random.Generator) -> torch.Tensor:
    """Return random grey values of the eight tissues of one image, shape (8,)."""
    means = torch.from_numpy(rng.uniform(*_GREY, len(TISSUES))).float()
    for first, other in _ALIKE:
        means[INDEX[other]] = (means[INDEX[first]] + rng.normal(0.0, 0.05)).clamp(min=0.05)
    return means


def recolour(layers: Sequence[Layer], modality: str, rng: np.random.Generator) -> list[Layer]:
    """Return layers of disease that look at random in one image.

    What replaced the tissue gets any grey value; what was added changes it up or down, always
    enough to be seen, in every image: also where the preset's scanner would not show it.
    """
    looks: list[Layer] = []
    for layer in layers:
        if layer.replace:
            looks.append(Layer(layer.share, replace={modality: float(rng.uniform(*_GREY))}))
        if layer.add:
            change = float(rng.choice((-1.0, 1.0)) * rng.uniform(*_CHANGE))
            looks.append(Layer(layer.share, add={modality: change}))
    return looks


def fade(layers: Sequence[Layer], modality: str, rng: np.random.Generator) -> list[Layer]:
    """Return layers of healthy confounders in one image: faint, up or down."""
    return [
        Layer(layer.share, add={modality: float(rng.normal(0.0, 0.15))})
        for layer in layers
        if layer.add
    ]
