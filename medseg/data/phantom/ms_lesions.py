"""Multiple-sclerosis lesions: where they lie, what shape they have, how they look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from medseg.data.phantom.blobs import Blob, Density, draw_blob, window
from medseg.data.phantom.contrast import Disease, Layer
from medseg.data.phantom.fields import edge, partial_volume_mm, smooth_noise, voxel_points
from medseg.data.phantom.presets import LesionNumbers
from medseg.data.phantom.subject import Subject
from medseg.shapes import FloatVolume

_COUNT_RANGE = (5, 60)
#: Share of lesions by place, about as in the McDonald criteria's four typical regions.
_PLACES = {"periventricular": 0.5, "deep": 0.27, "cortical": 0.13, "infratentorial": 0.10}
_RADIUS_RANGE_MM = (1.4, 10.0)
_ENHANCING_SHARE = 0.12


@dataclass(frozen=True, eq=False)
class PlacedLesion:
    """One lesion before it is drawn on the grid: its body and the kind of place it lies in."""

    blob: Blob
    place: str


def draw_lesions(
    subject: Subject, numbers: LesionNumbers, rng: np.random.Generator
) -> tuple[PlacedLesion, ...]:
    """Return 5 to 60 lesions, few more often than many; periventricular ones are larger.

    Periventricular lesions are longest away from the ventricle (Dawson's fingers).
    """
    low, high = _COUNT_RANGE
    count = int(np.clip(np.rint(low + (high - low) * rng.uniform() ** 1.4), low, high))
    load = float(np.exp(rng.normal(0.0, 0.28)))
    densities = {name: Density(w, subject.grid) for name, w in _densities(subject).items()}
    anywhere = Density(subject.tissue("white", "brain_stem"), subject.grid)
    names = list(_PLACES)
    lesions: list[PlacedLesion] = []
    while len(lesions) < count:
        place = names[int(rng.choice(len(names), p=list(_PLACES.values())))]
        centre = densities[place].draw(rng)
        if centre is None:
            # A grid too coarse for this region: the deep white matter is always there.
            place, centre = "deep", anywhere.draw(rng)
        if centre is None:
            break
        larger = 1.35 if place == "periventricular" else 1.0
        radius = numbers.ms_radius_mm * load * larger * float(np.exp(rng.normal(0.0, 0.5)))
        blob = draw_blob(
            centre_mm=centre,
            radius_mm=float(np.clip(radius, *_RADIUS_RANGE_MM)),
            family=numbers.shapes,
            elongation=0.22,
            rng=rng,
            long_axis=_away_from_ventricle(subject, centre) if larger > 1.0 else None,
        )
        lesions.append(PlacedLesion(blob, place))
    return tuple(lesions)


def _densities(subject: Subject) -> dict[str, FloatVolume]:
    white = subject.tissue("white").square() * (subject.depth_mm > 4.0)
    near = torch.exp(-((subject.ventricle_mm - 3.0) / 4.0).square())
    cortex = subject.tissue("cortex")
    return {
        "periventricular": white * near,
        "deep": white * torch.exp(-subject.ventricle_mm / 25.0) * (subject.ventricle_mm > 6.0),
        "cortical": cortex * subject.tissue("white") * (subject.depth_mm > 3.0),
        "infratentorial": (
            subject.tissue("brain_stem") + 0.6 * subject.tissue("cerebellar_white")
        ).square()
        * (subject.depth_mm > 3.0),
    }


def _away_from_ventricle(subject: Subject, centre_mm: tuple[float, ...]) -> np.ndarray | None:
    voxel = np.rint(subject.grid.to_voxel(centre_mm)).astype(int)
    voxel = np.clip(voxel, 1, np.array(subject.grid.shape) - 2)
    slope = np.zeros(3)
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis]
        ahead, behind = tuple(voxel + step), tuple(voxel - step)
        rise = float(subject.ventricle_mm[ahead] - subject.ventricle_mm[behind])
        slope[axis] = rise / (2.0 * subject.grid.spacing_mm[axis])
    length = float(np.linalg.norm(slope))
    return slope / length if length > 0.2 else None


def paint_lesions(
    subject: Subject, lesions: tuple[PlacedLesion, ...], rng: np.random.Generator
) -> FloatVolume:
    """Return the share of each voxel that lesions fill, 0 to 1."""
    share = torch.zeros(subject.grid.shape)
    roughness = 0.25 * smooth_noise(subject.grid, correlation_mm=4.0, rng=rng)
    width_mm = partial_volume_mm(subject.grid) + 0.15
    host = _host(subject)
    for lesion in lesions:
        blob = lesion.blob
        box = window(subject.grid, blob.centre_mm, 2.6 * blob.radius_mm + 4.0 * width_mm)
        part = subject.grid.crop([a.start for a in box], [a.stop for a in box])
        level = blob.level_mm(voxel_points(part), roughness[box].clamp(-0.5, 0.6))
        inside = edge(level, width_mm=width_mm)
        # Lesions in the cortex may fill it; the others end where white matter does.
        allowed = host[box] if lesion.place != "cortical" else 1.0 - subject.fluid()[box]
        share[box] = torch.maximum(share[box], inside * allowed)
    return share


def _host(subject: Subject) -> FloatVolume:
    """Return how willingly each voxel's tissue takes a lesion, 0 to 1."""
    return (
        (
            subject.tissue("white", "brain_stem", "cerebellar_white")
            + 0.5 * subject.tissue("deep_grey")
            + 0.3 * subject.tissue("cortex")
        )
        .mul(1.15)
        .clamp(0.0, 1.0)
    )


def clip_mask(subject: Subject, share: FloatVolume) -> FloatVolume:
    """Return a real mask's shares, kept where the tissue of this head can bear a lesion."""
    return share.clamp(0.0, 1.0) * _host(subject)


def make_disease(
    subject: Subject, share: FloatVolume, numbers: LesionNumbers, rng: np.random.Generator
) -> Disease:
    """Return the label and the looks of lesions.

    Every connected lesion has its own brightness; large ones may have a dark centre on FLAIR and
    T1; about one in eight enhances on T1c, as a ring or as a whole; all have a faint halo.

    Parameters
    ----------
    share : Tensor, shape (x, y, z)
        0 to 1. The label is 1 from one half on, or from 0.6 of the maximum where small lesions on
        coarse grids nowhere fill half a voxel: a subject is never without a label.
    """
    share = share * subject.brain
    threshold = min(0.5, 0.6 * float(share.max()))
    label = ((share >= threshold) & (share > 0.0)).to(torch.uint8)
    names = np.empty(tuple(share.shape), dtype=np.int32)
    touching = np.ones((3, 3, 3))
    ndimage.label((share > 0.5 * threshold).numpy(), structure=touching, output=names)
    count, index = int(names.max()), torch.from_numpy(names).long()
    strength, black, ring = (torch.zeros(count + 1) for _ in range(3))
    strength[1:] = torch.from_numpy(rng.uniform(0.55, 1.15, count)).float()
    black[1:] = torch.from_numpy(rng.uniform(0.2, 1.0, count)).float()
    enhancing = rng.uniform(size=count) < _ENHANCING_SHARE
    ring[1:] = torch.from_numpy(np.where(enhancing, rng.uniform(0.5, 1.0, count), 0.0)).float()
    mottle = 1.0 + 0.18 * smooth_noise(subject.grid, correlation_mm=5.0, rng=rng)
    body = share * mottle.clamp(0.5, 1.5)
    depth_mm = _depth_inside(label, subject)
    core = ((depth_mm - 3.0) / 3.0).clamp(0.0, 1.0) * (black[index] > 0.85)
    rim = share * torch.where(depth_mm > 3.0, 0.25, 1.0) * ring[index]
    gain = float(rng.uniform(*numbers.ms_flair))
    dark = float(rng.uniform(0.08, 0.30))
    halo = _halo(subject, share)
    layers = (
        Layer(halo, add={"flair": 0.35 * gain, "t2": 0.3 * gain, "t1": -0.04, "t1c": -0.04}),
        Layer(body * strength[index], add={"flair": gain, "t2": 1.3 * gain}),
        Layer(body * black[index], add={"t1": -dark, "t1c": -dark}),
        Layer(core * share, add={"flair": -0.7 * gain, "t1": -0.1, "t1c": -0.1, "t2": 0.2}),
        Layer(rim, add={"t1c": float(rng.uniform(0.3, 0.6)) + dark}),
    )
    return Disease(label, layers)


def _depth_inside(label: torch.Tensor, subject: Subject) -> FloatVolume:
    depth = torch.zeros(subject.grid.shape)
    mask = label.numpy()
    # Only round the lesions: the transform is slow, and most of the head has none.
    for box in ndimage.find_objects(mask)[:1]:
        around = tuple(slice(max(axis.start - 1, 0), axis.stop + 1) for axis in box)
        inner = ndimage.distance_transform_edt(mask[around], sampling=subject.grid.spacing_mm)
        depth[around] = torch.from_numpy(np.asarray(inner)).float()
    return depth


def _halo(subject: Subject, share: FloatVolume) -> FloatVolume:
    """Return a faint spread round the lesions: their borders on FLAIR are graded."""
    sigma = [2.0 / spacing for spacing in subject.grid.spacing_mm]
    spread = ndimage.gaussian_filter(share.numpy(), sigma, truncate=2.5)
    return (torch.from_numpy(spread) - share).clamp(min=0.0) * (1.0 - subject.fluid())
