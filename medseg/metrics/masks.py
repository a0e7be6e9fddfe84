"""Checks that all metrics of masks share."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.errors import GeometryError, LabelError, ShapeError

Mask = NDArray[np.bool_]


def as_mask(values: ArrayLike, *, name: str) -> Mask:
    """Return ``values`` as a boolean array.

    Parameters
    ----------
    values : array or CPU tensor
        Boolean, or integers that are all 0 or 1.
    name : str
        What the array is, for the error.

    Raises
    ------
    LabelError
        The values are not boolean and something else than 0 and 1 is among them.
    """
    array = np.asarray(values)
    if array.dtype == np.bool_:
        return array
    is_integer = np.issubdtype(array.dtype, np.integer)
    if not is_integer or not np.isin(array, (0, 1)).all():
        extent = f"from {array.min()} to {array.max()}" if array.size else "absent"
        raise LabelError(
            f"The {name} must be a mask of true and false, but its values are of type "
            f"{array.dtype} and {extent}.",
            hint="Threshold probabilities, or choose the labels of a region, before scoring.",
        )
    return array.astype(bool)


def mask_pair(prediction: ArrayLike, reference: ArrayLike) -> tuple[Mask, Mask]:
    """Return both as boolean arrays of one shape.

    Raises
    ------
    ShapeError
        Their shapes differ, or they have no voxel.
    LabelError
        One is not a mask.
    """
    pair = as_mask(prediction, name="prediction"), as_mask(reference, name="reference")
    if pair[0].shape != pair[1].shape or pair[0].size == 0:
        raise ShapeError(
            "Prediction and reference must have one shape with at least one voxel, but theirs are "
            f"{pair[0].shape} and {pair[1].shape}.",
            hint="Bring the prediction to the reference's grid first.",
        )
    return pair


def check_spacing(spacing_mm: Sequence[float], *, dims: int) -> NDArray[np.float64]:
    """Return the spacing as an array of ``dims`` positive lengths in mm.

    Raises
    ------
    GeometryError
        Wrong number of lengths, or one that is not positive and finite.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (dims,) or not np.isfinite(spacing).all() or not (spacing > 0).all():
        raise GeometryError(
            f"The spacing of a mask with {dims} axes is {dims} positive lengths in mm, "
            f"but it is {spacing.tolist()}.",
            hint="Take it from Grid.spacing_mm.",
        )
    return spacing
