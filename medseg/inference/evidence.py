"""Signs, in numbers, that a prediction may be wrong; each is larger where there is more doubt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medseg.calibration.conformal import OFFSET_ML
from medseg.geometry import Grid
from medseg.inference.lesions import Lesion
from medseg.inference.predict import Prediction

#: What each sign says where it is beyond what is usual, in words for who looks at the scan.
WORDS: Mapping[str, str] = {
    "volume_spread": "repeated predictions disagree about the volume",
    "lesion_doubt": "much of the marked volume is in lesions that only some of the repeated "
    "predictions show",
    "overlap_doubt": "the outline is unsure: many marked voxels are hardly more likely than those "
    "left out",
    "mutual_information_nats": "repeated predictions disagree about single voxels",
    "shape": "size, number or form of the marked lesions is unlike those that the model was "
    "checked on",
    "intensity": "the scans look unlike those that the model was checked on (brightness or "
    "contrast)",
}
#: Voxels below this mean probability are no candidates.
CANDIDATE = 0.1


def doubts(
    prediction: Prediction, index: int, probability: Tensor, mutual_information_nats: Tensor
) -> dict[str, float]:
    """Return the signs of one region that need no comparison with other cases.

    Parameters
    ----------
    prediction : Prediction
    index : int
        Of the region.
    probability, mutual_information_nats : Tensor, shape (x, y, z)
        The region's maps on the case's own grid.

    Returns
    -------
    dict
        ``volume_spread``: log ratio of the samples' 95th and 5th percentile of the volume.
        ``lesion_doubt``: 1 less the samples' share per lesion, averaged over lesions by volume.
        ``overlap_doubt``: 1 less the Dice that the probabilities expect of the mask.
        ``mutual_information_nats``: mean over candidate voxels.
        Each is 0 where there is nothing to doubt.
    """
    name, mask = prediction.regions[index], prediction.mask[index]
    interval = prediction.volume_interval(name)
    lesions = [lesion for lesion in prediction.lesions if lesion.region == name]
    total_mm3 = sum(lesion.volume_mm3 for lesion in lesions)
    sure_mm3 = sum(lesion.volume_mm3 * lesion.probability for lesion in lesions)
    expected = float(probability.double().sum())
    both = float(probability[mask].double().sum())
    size = float(mask.sum()) + expected
    candidates = mutual_information_nats[probability > CANDIDATE]
    return {
        "volume_spread": math.log(interval.high_ml + OFFSET_ML)
        - math.log(interval.low_ml + OFFSET_ML),
        "lesion_doubt": 1.0 - sure_mm3 / total_mm3 if total_mm3 else 0.0,
        "overlap_doubt": 1.0 - 2.0 * both / size if size else 0.0,
        "mutual_information_nats": float(candidates.double().mean()) if candidates.numel() else 0.0,
    }


def shape_features(mask: NDArray[np.bool_], grid: Grid, n_lesions: int) -> NDArray[np.float64]:
    """Return what a mask looks like in five numbers, none of which depends on where it lies.

    They are the logarithms of: its volume in ml; its number of lesions and one; the volume of its
    bounding box to its own; the longest side of the box to the shortest; and the share of its
    voxels that touch the outside. An empty mask has its volume and zeros.

    Parameters
    ----------
    mask : boolean ndarray, shape (x, y, z)
    grid : Grid
    n_lesions : int

    Returns
    -------
    ndarray, shape (5,)
    """
    voxels = int(np.count_nonzero(mask))
    volume = math.log(voxels * grid.voxel_volume_mm3 / 1000.0 + OFFSET_ML)
    if not voxels:
        return np.array([volume, 0.0, 0.0, 0.0, 0.0])
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    part = mask[box]
    sides_mm = np.array(part.shape) * np.array(grid.spacing_mm)
    inner = int(np.count_nonzero(ndimage.binary_erosion(part)))
    return np.array(
        [
            volume,
            math.log1p(n_lesions),
            math.log(part.size / voxels),
            math.log(sides_mm.max() / sides_mm.min()),
            math.log((voxels - inner) / voxels),
        ]
    )


def count_of(lesions: Sequence[Lesion], region: str) -> int:
    """Return how many lesions are of a region."""
    return sum(lesion.region == region for lesion in lesions)
