"""A small picture of a scan: the axial slice with the most to see, lesions outlined."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray
from scipy import ndimage

#: Pixels of the longer side.
SIDE = 144
_OUTLINE = np.array([1.0, 0.62, 0.0])
_MARGIN = 2


def thumbnail(
    data: NDArray[np.floating],
    brain: NDArray[np.bool_],
    mask: NDArray | None,
    *,
    spacing_mm: tuple[float, float, float],
) -> bytes:
    """Return a square JPEG of one axial slice, in radiological view.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
        Axes to the right, the front and up.
    brain : ndarray of bool, shape (x, y, z)
        What is shown.
    mask : ndarray, shape (x, y, z), optional
        Above 0 in lesions; their outline is drawn, and the slice has the most of them.
    spacing_mm : tuple of float
        Along the three axes.
    """
    is_lesion = None if mask is None else mask > 0
    areas = brain.sum(axis=(0, 1))
    # The middle of the brain is more telling than the slice with the largest area.
    z = int(np.searchsorted(areas.cumsum(), 0.6 * areas.sum()))
    if is_lesion is not None and is_lesion.any():
        z = int(is_lesion.sum(axis=(0, 1)).argmax())
    flat = brain.any(axis=2)
    box = tuple(
        slice(max(int(where[0]) - _MARGIN, 0), int(where[-1]) + _MARGIN + 1)
        for where in (np.flatnonzero(flat.sum(axis=1)), np.flatnonzero(flat.sum(axis=0)))
    )
    low, high = np.quantile(data[brain], [0.01, 0.995])
    grey = np.clip((data[:, :, z][box] - low) / max(float(high - low), 1e-12), 0, 1)
    grey = np.where(brain[:, :, z][box] | (grey > 0.05), grey, 0.0)
    lengths = [side * length for side, length in zip(spacing_mm, grey.shape, strict=False)]
    zoom = [SIDE * mm / max(lengths) / n for mm, n in zip(lengths, grey.shape, strict=True)]
    picture = np.repeat(
        _turned(np.asarray(ndimage.zoom(grey, zoom, order=1)))[..., None], 3, axis=2
    )
    if is_lesion is not None:
        share = ndimage.zoom(is_lesion[:, :, z][box].astype(float), zoom, order=1)
        inside: NDArray[np.bool_] = _turned(np.asarray(share)) > 0.5
        edge = np.asarray(ndimage.binary_dilation(inside), dtype=bool) & ~inside
        picture[edge] = _OUTLINE
    square = np.zeros((SIDE, SIDE, 3))
    height, width = (min(length, SIDE) for length in picture.shape[:2])
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square[top : top + height, left : left + width] = picture[:height, :width]
    buffer = io.BytesIO()
    imsave(
        buffer, np.clip(square, 0, 1), format="jpeg", pil_kwargs={"quality": 85, "subsampling": 0}
    )
    return buffer.getvalue()


def _turned(plane: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return (right, front) as rows from front to back, the patient's right on the left."""
    return plane.T[::-1, ::-1]
