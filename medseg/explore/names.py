"""What each feature is called, its unit, and the scale on which it is compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MODALITIES = {"flair": "FLAIR", "t1": "T1", "t1c": "T1c", "t2": "T2"}

#: Name -> title, unit, and whether ratios count more than differences.
_OF_SCAN: dict[str, tuple[str, str, bool]] = {
    "grid.in_plane_mm": ("finest voxel side", "mm", True),
    "grid.slice_mm": ("coarsest voxel side", "mm", True),
    "grid.voxel_mm3": ("voxel volume", "mm³", True),
    "grid.extent_x_mm": ("field of view, left-right", "mm", False),
    "grid.extent_y_mm": ("field of view, front-back", "mm", False),
    "grid.extent_z_mm": ("field of view, foot-head", "mm", False),
    "brain.volume_ml": ("brain volume", "ml", False),
    "brain.cut_share": ("brain cut by the field of view", "", False),
    "lesion.volume_ml": ("lesion volume", "ml", True),
    "lesion.count": ("lesion count", "", True),
    "lesion.largest_ml": ("largest lesion", "ml", True),
    "lesion.median_ml": ("median lesion", "ml", True),
    "lesion.share": ("lesion share of the brain", "", True),
    "lesion.sphericity": ("lesion sphericity", "", False),
    "lesion.extent": ("lesion extent", "", False),
    "lesion.elongation": ("lesion elongation", "", True),
    "lesion.left_right": ("lesions left or right", "", False),
    "lesion.height_mm": ("lesion height", "mm", False),
}
_OF_IMAGE: dict[str, tuple[str, str, bool]] = {
    "here": ("present", "", False),
    "p05": ("dark tissue (5 %)", "", False),
    "p50": ("middle tissue (50 %)", "", False),
    "p95": ("bright tissue (95 %)", "", False),
    "skew": ("skewness", "", False),
    "noise": ("noise", "", True),
    "sharpness": ("sharpness", "/mm", True),
    "shading": ("shading", "", False),
    "slice_jump": ("slice-to-slice jumps", "", True),
    "contrast": ("lesion contrast", "", False),
}
#: What each feature measures, for the page's glossary.
MEANINGS = {
    "noise": "deviation of the finest diagonal detail, as a share of the tissue range (5-95 %)",
    "sharpness": "95th percentile of the gradient, as a share of the tissue range per mm",
    "shading": "largest difference of medians between halves of the brain, over the tissue range",
    "slice_jump": "median bend between the medians of neighbouring slices, over the tissue range",
    "contrast": "mean inside lesions minus mean in the shell around, over the tissue range",
    "sphericity": "surface of the ball of equal volume over the lesion's surface, volume-weighted",
    "extent": "lesion volume over that of its bounding box, volume-weighted",
    "elongation": "longest over middle principal axis, volume-weighted",
    "left_right": "lesion volume on the right minus left, over their sum",
    "cut_share": "share of the brain's voxels on the faces of the volume",
}


@dataclass(frozen=True)
class Name:
    """How a feature is shown and compared."""

    title: str
    unit: str = ""
    logarithmic: bool = False


def name_of(feature: str) -> Name:
    """Return title, unit and scale of a feature.

    Examples
    --------
    >>> name_of("flair.noise").title, name_of("lesion.volume_ml").unit, name_of("age").title
    ('FLAIR noise', 'ml', 'age')
    """
    if feature in _OF_SCAN:
        return Name(*_OF_SCAN[feature])
    image, _, what = feature.rpartition(".")
    if image == "label":
        return Name(f"volume of label {what.removesuffix('_ml')}", "ml", logarithmic=True)
    if image and what in _OF_IMAGE:
        title, unit, logarithmic = _OF_IMAGE[what]
        return Name(f"{image_title(image)} {title}", unit, logarithmic)
    return Name(feature.replace("_", " "))


def image_title(image: str) -> str:
    """Return the usual spelling of a modality."""
    return _MODALITIES.get(image, image)


def ratio_scale(feature: str, values: NDArray[np.floating]) -> float | None:
    """Return the unit of ``log(1 + x / unit)`` where ratios count, None where differences do.

    A tenth of the median of what is above 0, so that 0 stays finite.
    """
    found = np.asarray(values, dtype=np.float64)
    known = found[np.isfinite(found)]
    if not name_of(feature).logarithmic or known.size == 0 or known.min() < 0:
        return None
    return 0.1 * float(np.median(known[known > 0])) if (known > 0).any() else None


def compared(feature: str, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return values on the scale on which they are compared: a logarithm where ratios count."""
    found = np.asarray(values, dtype=np.float64)
    scale = ratio_scale(feature, found)
    return found if scale is None else np.log1p(found / scale)


def shown(value: float, feature: str = "") -> str:
    """Return a value with three significant digits and its unit.

    Examples
    --------
    >>> shown(1234.5, "brain.volume_ml"), shown(0.01234), shown(float("nan"))
    ('1,230 ml', '0.0123', 'n/a')
    """
    if not math.isfinite(value):
        return "n/a"
    rounded = float(f"{value:.3g}")
    text = f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"
    unit = name_of(feature).unit if feature else ""
    space = "" if unit.startswith("/") else " "
    return f"{text.replace('-', '−')}{space}{unit}" if unit else text.replace("-", "−")
