"""Shapes of real tumours: turned, mirrored, scaled and bent, and placed in another head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from medseg.data.phantom.anatomy import read_canonical
from medseg.data.phantom.blobs import Density, Vector
from medseg.data.phantom.contrast import Disease
from medseg.data.phantom.deformation import Push
from medseg.data.phantom.fields import area_average, axis_grid, sample, smooth_noise, voxel_points
from medseg.data.phantom.presets import LesionNumbers
from medseg.data.phantom.subject import Subject
from medseg.data.phantom.tumour import (
    ENHANCING,
    NECROSIS,
    NON_ENHANCING,
    OEDEMA,
    bears_core,
    bears_oedema,
    compose_tumour,
    draw_push,
)
from medseg.data.sources.brats import (
    RELABEL,
    Convention,
    detect_convention,
    has_recent_name,
)
from medseg.errors import DataError, LabelError
from medseg.geometry import Grid
from medseg.shapes import FloatVolume

#: Order of the shares of a shape.
PARTS = (NECROSIS, OEDEMA, NON_ENHANCING, ENHANCING)
_CORE = tuple(PARTS.index(label) for label in (NECROSIS, NON_ENHANCING, ENHANCING))
_STEP_MM = 2.0
_MARGIN_MM = 12.0
_LOG_SCALE_STD, _LOG_SCALE_MOST = 0.15, 0.3
_TRIALS = 24
#: A place is taken at once where so much of the core and of the whole tumour lies in the brain.
_CORE_INSIDE, _WHOLE_INSIDE = 0.95, 0.85
#: Correlation and standard deviation of the bending, mm; weak enough not to fold.
_BENDS_MM = ((18.0, 2.2), (9.0, 0.7))

#: How much of the cortex swells: the outlines that raters draw run through it.
_CORTEX = 0.7


@dataclass(frozen=True, eq=False)
class TumourShape:
    """A tumour cut out of its head.

    Parameters
    ----------
    shares : Tensor, shape (4, x, y, z)
        How much of each voxel each of :data:`PARTS` fills; 0 at the border.
    grid : Grid
        Along the axes; its origin is the centre of the core (of the oedema where there is none).
    radius_mm : float
        Of the ball with the volume of the core, or of the oedema where there is none.
    """

    shares: Float[Tensor, "p x y z"]
    grid: Grid
    radius_mm: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedShape:
    """A shape at a place, before the head has grown round it.

    Parameters
    ----------
    shape : TumourShape
    centre_mm : tuple of 3 float
    matrix : ndarray, shape (3, 3)
        From an offset in the subject to one in the shape: rotation, mirroring and scale.
    push : float
        Strength of the mass effect, see :class:`medseg.data.phantom.deformation.Push`.
    """

    shape: TumourShape
    centre_mm: Vector
    matrix: np.ndarray
    push: float

    def pushes(self) -> tuple[Push, ...]:
        """Return the mass effect."""
        scale = abs(float(np.linalg.det(self.matrix))) ** (-1.0 / 3.0)
        return (Push(self.centre_mm, 1.8 * scale * self.shape.radius_mm, self.push),)

    def shares(self, points_mm: Float[Tensor, "x y z d"]) -> Float[Tensor, "p x y z"]:
        """Return the shares of :data:`PARTS` at places of the subject."""
        matrix = torch.from_numpy(self.matrix).float()
        offset = (points_mm - torch.tensor(self.centre_mm)) @ matrix.T
        return sample(self.shape.shares, self.shape.grid, offset)


def tumour_files(folder: Path) -> tuple[Path, ...]:
    """Return the label maps below a folder: NIfTI files with "seg" or "mask" in their names.

    Brain masks, which lie beside the tumours in many sets, are left out.

    Raises
    ------
    DataError
        There is none.
    """
    paths = [*folder.rglob("*.nii.gz"), *folder.rglob("*.nii")]
    names = {path: path.name.lower() for path in paths}
    found = [
        path
        for path, name in names.items()
        if ("seg" in name or "mask" in name) and "brain" not in name
    ]
    if not found:
        raise DataError(
            "tumour_masks must be a folder with NIfTI label maps that have 'seg' or 'mask' in "
            f"their names, at any depth, but {folder} has none.",
            hint="Correct the setting tumour_masks of the phantom.",
        )
    return tuple(sorted(found))


def read_tumour_shape(
    path: Path, spacing_mm: Sequence[float], *, convention: Convention = "auto"
) -> TumourShape:
    """Return the tumour of a label map of BraTS.

    Parameters
    ----------
    path : Path
        Label map.
    spacing_mm : sequence of 3 float
        Of the grid it will be drawn on: parts are averaged over as much, so that a coarse grid
        loses no thin rim.
    convention : {"auto", "1234", "124", "123", "123rc"}
        What its numbers mean, see :mod:`medseg.data.sources.brats`; "auto" goes by the name and the
        labels of the file.

    Raises
    ------
    ScanFileError
        The file cannot be read.
    LabelError
        It is empty, has labels that mean nothing here, or some that can mean two things.
    """
    data, grid = read_canonical(path)
    data = _as_parts(data, path, convention)
    inner = np.argwhere(np.isin(data, [PARTS[part] for part in _CORE]))
    seen = inner if len(inner) else np.argwhere(data > 0)
    volume_mm3 = len(seen) * float(np.prod(grid.spacing_mm))
    found = np.argwhere(data > 0)
    start, stop = found.min(axis=0), found.max(axis=0) + 1
    window = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    cut = grid.crop(start.tolist(), stop.tolist())
    ends = cut.to_world([[-0.5] * 3, [length - 0.5 for length in cut.shape]])
    width_mm = max(_STEP_MM, float(np.mean(spacing_mm)))
    margin_mm = _MARGIN_MM + width_mm
    coarse = axis_grid(ends[0] - margin_mm, ends[1] + margin_mm, (_STEP_MM,) * 3)
    parts = np.stack([data[window] == part for part in PARTS]).astype(np.float32)
    shares = area_average(torch.from_numpy(parts), cut, coarse, width_mm=width_mm)
    affine = coarse.affine.copy()
    affine[:3, 3] -= grid.to_world(seen.mean(axis=0))
    radius_mm = float(np.cbrt(3.0 * volume_mm3 / (4.0 * np.pi)))
    return TumourShape(shares, Grid(coarse.shape, affine), radius_mm)


def _as_parts(data: np.ndarray, path: Path, convention: Convention) -> np.ndarray:
    """Return the labels of a file as those of :data:`PARTS`."""
    values = [int(value) for value in np.unique(data)]
    # Of one convention from 2023 on the other is a part; one file may lack what tells them apart.
    guess = "123rc" if has_recent_name(path) else detect_convention(values, recent_names=False)
    chosen = guess if convention == "auto" else convention
    if chosen is None:
        raise LabelError(
            f"{path}: label 3 without any 4 can be non-enhancing tumour (BraTS until 2016) or "
            f"enhancing tumour (2023 on), and neither the labels {values} nor the name tells.",
            hint="Set tumour_labels of the phantom to '1234' or '123'.",
        )
    meanings = RELABEL[chosen]
    unknown = sorted({*values} - {0, *meanings})
    if unknown:
        raise LabelError(
            f"{path}: a tumour of convention {chosen!r} has the labels {list(meanings)}, but the "
            f"file has {unknown}.",
            hint="Set tumour_labels of the phantom, relabel the file, or leave it out of the "
            "folder tumour_masks.",
        )
    parts = np.zeros(data.shape, dtype=np.uint8)
    for value, part in meanings.items():
        parts[data == value] = part
    if not parts.any():
        raise LabelError(
            f"{path}: a tumour has one of the parts {list(PARTS)}, but the file has none of them.",
            hint="Leave it out of the folder tumour_masks.",
        )
    return parts


def place_shape(
    shape: TumourShape,
    *,
    white: FloatVolume,
    depth_mm: FloatVolume,
    side_mm: FloatVolume,
    grid: Grid,
    rng: np.random.Generator,
) -> PlacedShape:
    """Return the shape in a random pose, centred in white matter where it fits into the brain.

    Of up to 24 poses the first is taken that leaves 95 % of the core and 85 % of the whole tumour
    in one half of the brain, else the one that leaves most.

    Parameters
    ----------
    shape : TumourShape
    white, depth_mm : Tensor, shape (x, y, z)
        Share of cerebral white matter and depth below the surface, before the tumour has grown.
    side_mm : Tensor, shape (x, y, z)
        Signed distance to the plane between the hemispheres.
    grid : Grid
        Any resolution.
    rng : numpy.random.Generator

    Raises
    ------
    DataError
        There is no white matter deep enough for a centre.
    """
    density = Density(white.square() * (depth_mm > 0.6 * shape.radius_mm), grid)
    points, push = voxel_points(grid), draw_push(rng)
    trials: list[tuple[float, PlacedShape]] = []
    for _ in range(_TRIALS):
        centre = density.draw(rng)
        if centre is None:
            raise DataError(
                "A tumour needs cerebral white matter deeper than "
                f"{0.6 * shape.radius_mm:.1f} mm, but there is none.",
                hint="Give an anatomy with cerebral white matter, or smaller tumours.",
            )
        placed = PlacedShape(shape=shape, centre_mm=centre, matrix=_draw_pose(rng), push=push)
        shares = placed.shares(points)
        voxel = tuple(np.clip(np.rint(grid.to_voxel(centre)).astype(int), 0, None))
        inside = (depth_mm > 0.0) & (side_mm.sign() == side_mm[voxel].sign())
        core, whole = (
            float((part * inside).sum() / part.sum().clamp(min=1e-6))
            for part in (shares[list(_CORE)].sum(dim=0), shares.sum(dim=0))
        )
        if core >= _CORE_INSIDE and whole >= _WHOLE_INSIDE:
            return placed
        trials.append((core + whole, placed))
    return max(trials, key=lambda trial: trial[0])[1]


def _draw_pose(rng: np.random.Generator) -> np.ndarray:
    """Return a uniformly random rotation, mirrored or not, with a random scale.

    References
    ----------
    Mezzadri, Notices of the AMS 54 (2007) 592-604: the sign correction makes it uniform.
    """
    orthogonal, upper = np.linalg.qr(rng.standard_normal((3, 3)))
    turn = orthogonal * np.sign(np.diag(upper))
    log_scale = np.clip(rng.normal(0.0, _LOG_SCALE_STD), -_LOG_SCALE_MOST, _LOG_SCALE_MOST)
    return turn * float(np.exp(-log_scale))


def paint_shape(
    subject: Subject, placed: PlacedShape, numbers: LesionNumbers, rng: np.random.Generator
) -> Disease:
    """Return the label (1 necrosis, 2 oedema, 3 non-enhancing, 4 enhancing) and the looks.

    Only the looks come from the generator; of the shape, what leaves the brain or fills fluid is
    cut off.
    """
    grid = subject.grid
    points = voxel_points(grid)
    for correlation_mm, std_mm in _BENDS_MM:
        bend = [smooth_noise(grid, correlation_mm=correlation_mm, rng=rng) for _ in range(3)]
        points = points + std_mm * torch.stack(bend, dim=-1)
    shares = placed.shares(points)
    necrosis, _, solid, enhancing = shares * bears_core(subject)
    parts = {
        "core": necrosis + solid + enhancing,
        "necrosis": necrosis,
        "enhancing": enhancing,
        "solid": solid,
    }
    # The core lies in oedema, so that no healthy seam is left between the two.
    oedema = shares.sum(dim=0) * bears_oedema(subject, cortex=_CORTEX)
    outside = (parts["core"] <= 0.5).numpy()
    level = np.zeros(grid.shape)
    if not outside.all():
        level = np.asarray(ndimage.distance_transform_edt(outside, sampling=grid.spacing_mm))
    return compose_tumour(subject, parts, oedema, torch.from_numpy(level).float(), numbers, rng)
