"""Where the windows lie: as few as cover the image with the overlap asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from medseg.errors import ConfigError

Window = tuple[slice, ...]


def window_starts(length: int, window: int, *, overlap: float) -> tuple[int, ...]:
    """Return the fewest, evenly spread first voxels of windows along one axis.

    Parameters
    ----------
    length, window : int
        Voxels of the image and of a window; a window longer than the image is cut to it.
    overlap : float
        Share of a window that its neighbour covers too, in [0, 1); up to rounding to whole voxels.

    Examples
    --------
    >>> window_starts(10, 4, overlap=0.5)
    (0, 2, 4, 6)
    >>> window_starts(9, 4, overlap=0.0)
    (0, 3, 5)
    >>> window_starts(3, 4, overlap=0.5)
    (0,)
    """
    last = length - window
    if last <= 0:
        return (0,)
    stride = max(1.0, window * (1 - overlap))
    # The small slack keeps 6 / (4 * 0.5) from becoming 4 gaps.
    gaps = math.ceil(last / stride - 1e-9)
    return tuple((2 * i * last + gaps) // (2 * gaps) for i in range(gaps + 1))


def plan_windows(
    shape: Sequence[int], window: Sequence[int], *, overlap: float
) -> tuple[Window, ...]:
    """Return windows that cover every voxel of an image.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the image along each axis.
    window : sequence of int
        Voxels of a window along each axis; cut to the image where longer.
    overlap : float
        Least share of a window that its neighbour covers too.

    Raises
    ------
    ConfigError
        A window with another number of axes than the image, or one that is empty.
    """
    if len(window) != len(shape) or min(window) < 1:
        raise ConfigError(
            f"A window has one positive length per axis of the image, but the window is "
            f"{tuple(window)} and the image {tuple(shape)}.",
            hint="Give three lengths for volumes, two for axial slices, or leave window out.",
        )
    axes = [
        [slice(start, min(start + width, length)) for start in starts]
        for length, width, starts in (
            (length, width, window_starts(length, width, overlap=overlap))
            for length, width in zip(shape, window, strict=True)
        )
    ]
    return tuple(product(*axes))


@dataclass(frozen=True)
class WindowPlan:
    """Windows to come: their voxels along each axis, and the least share that neighbours share."""

    window: tuple[int, ...]
    overlap: float


def choose_plan(shape: Sequence[int], *, max_voxels: int, overlaps: Sequence[float]) -> WindowPlan:
    """Return the plan with the fewest windows, and of these the one that overlap the most.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the image along each axis.
    max_voxels : int
        Bound on the voxels of a window.
    overlaps : sequence of float
        To choose from.

    Examples
    --------
    >>> choose_plan((150, 190, 150), max_voxels=2_500_000, overlaps=(0.25, 0.5))
    WindowPlan(window=(150, 109, 150), overlap=0.25)
    >>> choose_plan((150, 190, 150), max_voxels=3_000_000, overlaps=(0.25, 0.5))
    WindowPlan(window=(150, 127, 150), overlap=0.5)
    """
    plans = []
    for overlap in overlaps:
        window = choose_window(shape, max_voxels=max_voxels, overlap=overlap)
        plans.append((len(plan_windows(shape, window, overlap=overlap)), -overlap, window))
    _, overlap, window = min(plans)
    return WindowPlan(window, -overlap)


def choose_window(shape: Sequence[int], *, max_voxels: int, overlap: float) -> tuple[int, ...]:
    """Return the window, shaped like the image, that a memory bound allows.

    An image that fits is one window: the network sees all of it at once and nothing is computed
    twice. Else there are as few windows as fit (exact to 32 along an axis), none of them thinner
    than half a cube of ``max_voxels``, and among equals the longest side is the shortest.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the image along each axis.
    max_voxels : int
        Bound on the voxels of a window.
    overlap : float
        As for :func:`plan_windows`, which makes of this window as many as were counted here.

    Examples
    --------
    >>> choose_window((140, 176, 140), max_voxels=128**3, overlap=0.25)
    (140, 101, 140)
    """
    if max_voxels < 1:
        raise ConfigError(
            f"A window has at least one voxel, but at most {max_voxels} are allowed.",
            hint="Raise max_window_voxels.",
        )
    least = max(1, int(0.5 * max_voxels ** (1 / len(shape))))
    sides = [_sides(length, overlap=overlap, least=least) for length in shape]
    most, best = 2, None
    while best is None:
        best = _fewest(sides, most=most, max_voxels=max_voxels)
        most *= 2
    # No axis of a better choice has more windows than this choice has altogether.
    better = _fewest(sides, most=min(best[0], 32), max_voxels=max_voxels)
    return min(best, better or best)[2]


def _fewest(
    sides: Sequence[Mapping[int, int]], *, most: int, max_voxels: int
) -> tuple[int, int, tuple[int, ...]] | None:
    """Return number of windows, longest side and sides of the best choice that fits, if one does.

    Each axis has at most ``most`` windows.
    """
    fitting = [
        (math.prod(k for k, _ in choice), max(side for _, side in choice), choice)
        for choice in product(*(list(axis.items())[:most] for axis in sides))
        if math.prod(side for _, side in choice) <= max_voxels
    ]
    if not fitting:
        return None
    count, longest, choice = min(fitting)
    return count, longest, tuple(side for _, side in choice)


def _sides(length: int, *, overlap: float, least: int) -> dict[int, int]:
    """Return the side of a window by the number of windows along an axis, 1 first.

    Sides below ``least`` are left out: a network sees too little in a thin slab.
    """
    # k windows of side w that overlap by o * w cover w * (k - (k - 1) * o) voxels.
    sides = {k: math.ceil(length / (k - (k - 1) * overlap) - 1e-9) for k in range(1, length)}
    sides[length] = 1
    return {k: side for k, side in sides.items() if side >= min(least, length)}
