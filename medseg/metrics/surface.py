"""Distances between the surfaces of two masks, in mm.

The surface of a mask is its voxels that have a face neighbour outside it, where everything beyond
the edge of the image is outside. Distances run between centres of surface voxels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from medseg.errors import ShapeError
from medseg.metrics.masks import Mask, check_spacing, mask_pair
from medseg.metrics.metric import Metric

HD95_MM = Metric(
    name="hd95_mm",
    title="HD95",
    unit="mm",
    direction="lower",
    empty="both empty: 0; one empty: the diagonal of the image",
    perfect=0.0,
    worst=None,
)
NSD = Metric(
    name="nsd",
    title="NSD",
    unit="1",
    direction="higher",
    empty="both empty: 1; one empty: 0",
    perfect=1.0,
    worst=0.0,
)


def image_diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Return the length in mm of the diagonal of an image, outer corner to outer corner."""
    return float(np.linalg.norm(np.asarray(shape) * check_spacing(spacing_mm, dims=len(shape))))


def _surface_points_mm(mask: Mask, spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    inner = mask[box]
    eroded = np.asarray(ndimage.binary_erosion(inner), dtype=bool)
    points = np.argwhere(inner & ~eroded).astype(np.float64)
    return (points + [part.start for part in box]) * spacing


def surface_distances_mm(
    prediction: ArrayLike, reference: ArrayLike, *, spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distance of each surface voxel of one mask to the other's surface, both ways.

    Parameters
    ----------
    prediction, reference : boolean arrays of one shape
        Neither is empty.
    spacing_mm : sequence of float
        Voxel size in mm along each axis.

    Returns
    -------
    from_prediction, from_reference : ndarray, shape (surface voxels,), mm

    Raises
    ------
    ShapeError
        One mask is empty, so that it has no surface.

    Notes
    -----
    A k-d tree over surface voxels gives the same numbers as a distance transform and its cost
    follows the surface, not the box around it: scattered lesions fill a box with nearly nothing.
    """
    predicted, true = mask_pair(prediction, reference)
    spacing = check_spacing(spacing_mm, dims=predicted.ndim)
    if not (predicted.any() and true.any()):
        raise ShapeError(
            "Surface distances need two masks with at least one voxel, but they have "
            f"{int(predicted.sum())} and {int(true.sum())}.",
            hint="Use hausdorff_mm or surface_dice, which have a policy for empty masks.",
        )
    points = _surface_points_mm(predicted, spacing)
    true_points = _surface_points_mm(true, spacing)
    from_prediction, _ = KDTree(true_points, leafsize=32).query(points)
    from_reference, _ = KDTree(points, leafsize=32).query(true_points)
    return np.atleast_1d(from_prediction), np.atleast_1d(from_reference)


def surface_scores(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: Sequence[float],
    percentile: float = 95.0,
    tolerance_mm: float = 2.0,
) -> tuple[float, float]:
    """Return Hausdorff distance in mm and normalised surface Dice from one pass over the surfaces.

    Parameters
    ----------
    prediction, reference : boolean arrays of one shape
    spacing_mm : sequence of float
        Voxel size in mm along each axis.
    percentile : float
        Of the directed distances, linearly interpolated; 100 is the classical Hausdorff distance.
        The larger of the two directions counts.
    tolerance_mm : float
        Surface voxels no farther than this from the other surface agree.

    Returns
    -------
    hausdorff_mm, nsd : float
        0 and 1 when both masks are empty; the image's diagonal and 0 when one is.

    References
    ----------
    Huttenlocher et al., "Comparing images using the Hausdorff distance", 1993.
    Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck
    anatomy for radiotherapy", 2018: surface Dice at a tolerance; here each surface voxel counts as
    one.
    """
    predicted, true = mask_pair(prediction, reference)
    empty = not predicted.any(), not true.any()
    if all(empty):
        return 0.0, 1.0
    if any(empty):
        return image_diagonal_mm(predicted.shape, spacing_mm), 0.0
    distances = surface_distances_mm(predicted, true, spacing_mm=spacing_mm)
    hausdorff = max(float(np.percentile(one_way, percentile)) for one_way in distances)
    agreeing = sum(int(np.count_nonzero(one_way <= tolerance_mm)) for one_way in distances)
    return hausdorff, agreeing / sum(one_way.size for one_way in distances)


def hausdorff_mm(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: Sequence[float],
    percentile: float = 95.0,
) -> float:
    """Return the Hausdorff distance in mm at a percentile; see :func:`surface_scores`."""
    return surface_scores(prediction, reference, spacing_mm=spacing_mm, percentile=percentile)[0]


def surface_dice(
    prediction: ArrayLike, reference: ArrayLike, *, spacing_mm: Sequence[float], tolerance_mm: float
) -> float:
    """Return the normalised surface Dice at a tolerance in mm; see :func:`surface_scores`."""
    return surface_scores(prediction, reference, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)[
        1
    ]
