"""How near one image is to another: peak signal-to-noise ratio and structural similarity."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from medseg.errors import ShapeError

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def psnr_db(found: Tensor, true: Tensor, inside: Tensor) -> float:
    """Return the peak signal-to-noise ratio in decibels: ``20 log10(range / rms error)``.

    Parameters
    ----------
    found, true : Tensor, shape (*s)
    inside : Tensor, shape (*s), bool
        Where the error and the range of ``true`` are measured.

    Returns
    -------
    float
        Infinite for equal images.

    Examples
    --------
    >>> true = torch.tensor([0.0, 10.0])
    >>> round(psnr_db(true + 1.0, true, torch.ones(2) > 0), 6)
    20.0
    """
    spread = _range(found, true, inside)
    error = float((found - true)[inside].double().square().mean().sqrt())
    return math.inf if error == 0 else 20 * math.log10(spread / error)


def ssim(found: Tensor, true: Tensor, inside: Tensor) -> float:
    """Return the mean structural similarity of axial slices, at most 1.

    Parameters
    ----------
    found, true : Tensor, shape (x, y, z)
    inside : Tensor, shape (x, y, z), bool
        Voxels whose similarity is averaged, and where the range of ``true`` is measured. Windows
        are Gaussian, 11 voxels wide with a deviation of 1.5; what they see beyond the edge is 0.

    References
    ----------
    Wang, Bovik, Sheikh and Simoncelli 2004, "Image quality assessment: from error visibility to
    structural similarity", equation 13.
    """
    spread = _range(found, true, inside)
    x, y = (volume.movedim(-1, 0)[:, None].double() for volume in (found, true))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    shared = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * spread) ** 2, (_K2 * spread) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * shared + c2)
    likeness = likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(likeness[:, 0].movedim(0, -1)[inside].mean())


def _blurred(slices: Tensor) -> Tensor:
    places = torch.arange(_WINDOW, dtype=slices.dtype) - _WINDOW // 2
    weights = torch.exp(-0.5 * (places / _SIGMA) ** 2)
    weights = weights / weights.sum()
    rows = F.conv2d(slices, weights.view(1, 1, -1, 1), padding=(_WINDOW // 2, 0))
    return F.conv2d(rows, weights.view(1, 1, 1, -1), padding=(0, _WINDOW // 2))


def _range(found: Tensor, true: Tensor, inside: Tensor) -> float:
    if found.shape != true.shape or inside.shape != true.shape or not bool(inside.any()):
        raise ShapeError(
            f"Images are compared on one grid inside a mask that is not empty, but their shapes "
            f"are {tuple(found.shape)}, {tuple(true.shape)} and {tuple(inside.shape)} with "
            f"{int(inside.sum())} voxels inside."
        )
    values = true[inside]
    spread = float(values.max() - values.min())
    if spread <= 0:
        raise ShapeError(f"A true image must vary inside the mask, but it is {float(values[0])}.")
    return spread
