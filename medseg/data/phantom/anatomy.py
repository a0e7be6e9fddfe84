"""Soft tissue maps to build subjects from: the MNI152 average, or a label map of one head."""

from __future__ import annotations

import importlib.resources
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medseg.data.phantom.fields import area_average, axis_grid, sample, voxel_points
from medseg.errors import LabelError, ScanFileError
from medseg.geometry import Grid
from medseg.io.nifti import read_label_map

TISSUES = (
    "csf",
    "ventricle",
    "cortex",
    "white",
    "deep_grey",
    "brain_stem",
    "cerebellar_cortex",
    "cerebellar_white",
)
INDEX = {name: position for position, name in enumerate(TISSUES)}

#: FreeSurfer-like identifiers of each tissue; every other identifier lies outside the brain.
LABEL_IDS: dict[str, tuple[int, ...]] = {
    "csf": (24,),
    "ventricle": (4, 43, 5, 44, 14, 15, 72),
    "cortex": (3, 42, 17, 53, 18, 54),
    "white": (2, 41, 77, 85, 28, 60),
    "deep_grey": (10, 11, 12, 13, 49, 50, 51, 52, 26, 58),
    "brain_stem": (16,),
    "cerebellar_cortex": (8, 47),
    "cerebellar_white": (7, 46),
}
#: Centres of mass in MNI space, posterior-anterior and inferior-superior, mm.
_MNI_CENTRES_MM: dict[str, tuple[float, float]] = {
    "ventricle": (-11.8, 9.6),
    "cortex": (-15.9, 13.7),
    "deep_grey": (-3.6, 4.2),
    "brain_stem": (-27.2, -28.4),
    "cerebellar_cortex": (-63.5, -33.9),
}
_MARGIN_MM = 12.0
_DISTANCE_STEP_MM = 2.0
_CLOSING_MM = 8.0
_SOFT_LABEL_MM = 1.6


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The tissues of one head.

    Parameters
    ----------
    fractions : Tensor, shape (8, x, y, z), float32
        Share of each voxel that each of :data:`TISSUES` fills; they add up to 1 everywhere, also
        outside the brain, where all is cerebrospinal fluid.
    depth_mm : Tensor, shape (x, y, z)
        Distance below the brain's surface; negative outside.
    ventricle_mm : Tensor, shape (x, y, z)
        Distance to the nearest ventricle; 0 inside.
    grid : Grid
        Along the world's axes.
    """

    fractions: Float[Tensor, "t x y z"]
    depth_mm: Float[Tensor, "x y z"]
    ventricle_mm: Float[Tensor, "x y z"]
    grid: Grid

    def maps(self) -> Float[Tensor, "t x y z"]:
        """Return tissues, depth and ventricle distance as one stack of ten channels."""
        return torch.cat([self.fractions, self.depth_mm[None], self.ventricle_mm[None]])

    def mirrored(self) -> Anatomy:
        """Return the head with left and right exchanged."""
        return replace(
            self,
            fractions=self.fractions.flip(1),
            depth_mm=self.depth_mm.flip(0),
            ventricle_mm=self.ventricle_mm.flip(0),
        )

    def box_mm(self) -> NDArray[np.float64]:
        """Return the lowest and highest corner, shape (2, 3), of the brain's bounding box."""
        inside = torch.nonzero(self.depth_mm > 0).numpy()
        return self.grid.to_world(np.stack([inside.min(axis=0), inside.max(axis=0)]))

    @property
    def n_bytes(self) -> int:
        """Memory that the maps take."""
        return 4 * (self.fractions.numel() + self.depth_mm.numel() + self.ventricle_mm.numel())


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    names = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=names)
    if not mask.any():
        return mask
    return names == 1 + int(np.argmax(np.bincount(names.ravel())[1:]))


def _distance(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the distance of each voxel inside the mask to its outside, in voxels."""
    return np.asarray(ndimage.distance_transform_edt(mask), dtype=np.float64)


def _distances(parenchyma: Tensor, ventricle: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Grid]:
    """Return depth and ventricle distance on a coarse grid: they are smooth, and slow to find."""
    corners = grid.to_world([[-0.5] * 3, [n - 0.5 for n in grid.shape]])
    coarse = axis_grid(corners[0], corners[1], (_DISTANCE_STEP_MM,) * 3)
    both = area_average(torch.stack([parenchyma, ventricle]), grid, coarse, width_mm=2.0).numpy()
    reach = round(_CLOSING_MM / _DISTANCE_STEP_MM)
    # Closing by distances: dilate, then erode, so that sulci and cisterns belong to the brain.
    brain = _largest(both[0] > 0.4)
    dilated = _distance(~brain) <= reach
    closed = (_distance(dilated) > reach) | brain
    outside = ~np.asarray(ndimage.binary_fill_holes(closed), dtype=np.bool_)
    # The mask of the average has steps; a surface has none.
    depth = ndimage.gaussian_filter(_distance(~outside) - _distance(outside), 0.8)
    near = both[1] > 0.35
    far = _distance(~near) if near.any() else np.full(near.shape, 99.0)
    scaled = [torch.from_numpy(field * _DISTANCE_STEP_MM).float() for field in (depth, far)]
    return scaled[0], scaled[1], coarse


def _assemble(
    tissues: Tensor, source: Grid, spacing_mm: tuple[float, float, float], *, width_mm: float
) -> Anatomy:
    """Return the anatomy of tissue fractions given on any grid along the world's axes.

    ``tissues`` has all channels but the first: fluid is what the others leave.
    """
    parenchyma = tissues[1:].sum(dim=0)
    depth, ventricle, coarse = _distances(parenchyma, tissues[0], source)
    inside = torch.nonzero(depth > 0).numpy()
    low, high = coarse.to_world(np.stack([inside.min(axis=0), inside.max(axis=0)]))
    grid = axis_grid(low - _MARGIN_MM, high + _MARGIN_MM, spacing_mm)
    fractions = area_average(tissues, source, grid, width_mm=width_mm).clamp(0.0, 1.0)
    maps = sample(torch.stack([depth, ventricle]), coarse, voxel_points(grid))
    # Islands beyond the brain (eyes, nerves) are not part of it.
    fractions = fractions * (maps[0] > -_DISTANCE_STEP_MM)
    fluid = (1.0 - fractions.sum(dim=0)).clamp(min=0.0)
    fractions = torch.cat([fluid[None], fractions])
    return Anatomy(fractions / fractions.sum(dim=0), maps[0], maps[1], grid)


def _ellipsoid(points: Tensor, centre: tuple[float, ...], radii: tuple[float, ...]) -> Tensor:
    """Return a soft indicator of an ellipsoid, about 2 mm wide at its border."""
    scaled = (points - torch.tensor(centre)) / torch.tensor(radii)
    return torch.sigmoid((1.0 - scaled.norm(dim=-1)) * min(radii) / 1.5)


def _split_mni(grey: Tensor, white: Tensor, fluid: Tensor, grid: Grid) -> Tensor:
    """Divide grey, white and fluid into seven tissues by their place in MNI space.

    The regions are simple bodies in world coordinates (mm, RAS), fitted by eye to the average.
    """
    points = voxel_points(grid)
    x, y, z = points[..., 0].abs(), points[..., 1], points[..., 2]
    folded = torch.stack([x, y, z], dim=-1)
    roof = 3.0 - 0.5 * x - 0.22 * (-55.0 - y).clamp(min=0.0)
    cerebellum = torch.sigmoid((roof - z) / 1.0) * torch.sigmoid((-39.0 - 0.12 * x - y) / 1.5)
    stem = _ellipsoid(folded, (0.0, -27.0, -34.0), (17.0, 18.0, 32.0)) * (1.0 - cerebellum)
    deep = _ellipsoid(folded, (19.0, -4.0, 6.0), (16.5, 32.0, 19.0)) * (1.0 - stem)
    lateral = _ellipsoid(folded, (0.0, -8.0, 13.0), (34.0, 48.0, 24.0))
    cistern = torch.sigmoid((-30.0 - y) / 1.0) * torch.sigmoid((11.0 - x) / 1.0)
    fourth = _ellipsoid(folded, (0.0, -45.0, -32.0), (12.0, 12.0, 14.0))
    ventricle = torch.maximum(lateral * (1.0 - cistern) * (1.0 - stem), fourth)
    cerebrum = (1.0 - cerebellum) * (1.0 - stem)
    return torch.stack(
        [
            fluid * ventricle,
            grey * cerebrum * (1.0 - deep),
            white * cerebrum,
            grey * cerebrum * deep,
            (grey + white) * stem,
            grey * cerebellum,
            white * cerebellum,
        ]
    )


def _crop(grid: Grid, mask: NDArray[np.bool_], margin: int) -> tuple[Grid, tuple[slice, ...]]:
    # Projections instead of argwhere: the volumes have sixteen million voxels.
    start, stop = [], []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        start.append(max(int(hit[0]) - margin, 0))
        stop.append(min(int(hit[-1]) + 1 + margin, mask.shape[axis]))
    return grid.crop(start, stop), tuple(slice(a, b) for a, b in zip(start, stop, strict=True))


def _packaged_map(name: str) -> tuple[NDArray[np.uint8], Grid]:
    folder = importlib.resources.files("nilearn") / "datasets" / "data"
    entry = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    try:
        with importlib.resources.as_file(entry) as path:
            image = nib.Nifti1Image.from_filename(path)
            data = np.asarray(image.dataobj, dtype=np.uint8)
    except FileNotFoundError as error:
        raise ScanFileError(
            f"The MNI152 maps come with nilearn, but {entry} is not there.",
            hint="Install nilearn 0.14: pip install 'nilearn>=0.14,<0.15'.",
        ) from error
    return data, Grid(data.shape, np.asarray(image.affine))


@lru_cache(maxsize=4)
def mni_anatomy(spacing_mm: tuple[float, float, float]) -> Anatomy:
    """Return the MNI152 average's tissues at a spacing; read once per process.

    References
    ----------
    Fonov et al., NeuroImage 54 (2011) 313-327, ICBM 152 non-linear symmetric 2009a.
    """
    head, full = _packaged_map("t1")
    grid, window = _crop(full, head > 0, 14)
    inside = torch.from_numpy(np.ascontiguousarray(head[window] > 0))
    grey, white = (
        torch.from_numpy(_packaged_map(name)[0][window].astype(np.float32) / 255.0)
        for name in ("gm", "wm")
    )
    classes = torch.stack([grey, white, (1.0 - grey - white).clamp(min=0.0) * inside])
    if min(spacing_mm) >= 2.0:
        # Eight times less to divide, and a coarse grid keeps nothing finer anyway.
        ends = grid.to_world([[-0.5] * 3, [length - 0.5 for length in grid.shape]])
        coarse = axis_grid(ends[0], ends[1], (2.0, 2.0, 2.0))
        classes, grid = area_average(classes, grid, coarse, width_mm=2.0), coarse
    tissues = _split_mni(classes[0], classes[1], classes[2], grid)
    return _assemble(tissues, grid, spacing_mm, width_mm=1.0)


def label_map_anatomy(path: Path, spacing_mm: tuple[float, float, float]) -> Anatomy:
    """Return the tissues of an anatomical label map with FreeSurfer-like identifiers.

    Parameters
    ----------
    path : Path
        A NIfTI label map of a whole head or brain; :data:`LABEL_IDS` says what is read.
    spacing_mm : tuple of 3 float
        Of the maps that are returned.

    Raises
    ------
    ScanFileError
        The file cannot be read.
    LabelError
        No cerebral white matter (2, 41) or no ventricle (4, 43) in it.
    """
    data, grid = read_canonical(path)
    table = np.zeros(max(int(data.max()) + 1, 100), dtype=np.uint8)
    for tissue, identifiers in LABEL_IDS.items():
        table[list(identifiers)] = INDEX[tissue] + 1
    classes = table[np.clip(data, 0, None)]
    for tissue in ("white", "ventricle"):
        if not (classes == INDEX[tissue] + 1).any():
            raise LabelError(
                f"{path}: an anatomical label map needs {tissue} (identifiers "
                f"{LABEL_IDS[tissue]}), but has none of them.",
                hint="Give maps with FreeSurfer-like identifiers.",
            )
    grid, window = _crop(grid, classes > INDEX["csf"] + 1, 14)
    classes = classes[window]
    tissues = np.stack([classes == position + 1 for position in range(1, len(TISSUES))])
    volume = torch.from_numpy(tissues).float()
    return _levelled(_assemble(volume, grid, spacing_mm, width_mm=_SOFT_LABEL_MM))


def _pitch_rad(anatomy: Anatomy) -> float:
    """Return the angle about the left-right axis that turns the head as it lies in MNI space.

    The closed-form least-squares rotation of the tissues' centres of mass in the sagittal plane.
    """
    points = voxel_points(anatomy.grid)[..., 1:]
    inside = anatomy.fractions * (anatomy.depth_mm > 0)
    centres = torch.stack(
        [
            (inside[INDEX[name], ..., None] * points).sum(dim=(0, 1, 2)) / inside[INDEX[name]].sum()
            for name in _MNI_CENTRES_MM
        ]
    )
    target = torch.tensor(list(_MNI_CENTRES_MM.values()))
    centres, target = centres - centres.mean(dim=0), target - target.mean(dim=0)
    cross = (centres[:, 0] * target[:, 1] - centres[:, 1] * target[:, 0]).sum()
    return float(torch.atan2(cross, (centres * target).sum()))


def _levelled(anatomy: Anatomy) -> Anatomy:
    """Return the head turned about the left-right axis to lie as in MNI space."""
    angle = _pitch_rad(anatomy)
    turn = torch.eye(3)
    turn[1:, 1:] = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    inside = voxel_points(anatomy.grid)[anatomy.depth_mm > 0]
    centre = inside.mean(dim=0)
    turned = (inside - centre) @ turn.T + centre
    low, high = turned.amin(dim=0).double().numpy(), turned.amax(dim=0).double().numpy()
    grid = axis_grid(low - _MARGIN_MM, high + _MARGIN_MM, anatomy.grid.spacing_mm)
    # Pulled back by the inverse rotation: a row vector times the matrix itself.
    points = (voxel_points(grid) - centre) @ turn + centre
    maps = sample(anatomy.maps(), anatomy.grid, points)
    return Anatomy(maps[: len(TISSUES)], maps[-2], maps[-1], grid)


def read_canonical(path: Path) -> tuple[NDArray[np.integer], Grid]:
    """Return a label map's values turned to RAS, on a grid along the world's axes.

    A small obliqueness is dropped: only the place of one structure beside another matters here.

    Raises
    ------
    ScanFileError, GeometryError, LabelError
        As :func:`medseg.io.nifti.read_label_map`; an empty map is refused.
    """
    found = read_label_map(path)
    turn = nib.orientations.io_orientation(found.grid.affine)
    data = nib.orientations.apply_orientation(found.data.numpy(), turn)
    whole = found.grid.reoriented("RAS")
    affine = np.diag([*whole.spacing_mm, 1.0])
    affine[:3, 3] = whole.affine[:3, 3]
    return np.ascontiguousarray(data), Grid(whole.shape, affine)
