"""Gliomas: core, rim, oedema and the push they exert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from medseg.data.phantom.blobs import Blob, Density, draw_blob, draw_roughness
from medseg.data.phantom.contrast import Disease, Layer
from medseg.data.phantom.deformation import Push
from medseg.data.phantom.fields import edge, partial_volume_mm, smooth_noise, voxel_points
from medseg.data.phantom.presets import LesionNumbers
from medseg.data.phantom.subject import Subject
from medseg.errors import DataError
from medseg.geometry import Grid
from medseg.shapes import FloatVolume

NECROSIS, OEDEMA, NON_ENHANCING, ENHANCING = 1, 2, 3, 4
_SECOND_FOCUS_CHANCE = 0.15
_BARE_CHANCE = 0.12


@dataclass(frozen=True, kw_only=True, eq=False)
class TumourPlan:
    """What is decided before any voxel is drawn.

    Parameters
    ----------
    foci : tuple of Blob
        One or two cores.
    push : float
        Strength of the mass effect, see :class:`medseg.data.phantom.deformation.Push`.
    high_grade : bool
        Necrosis inside an enhancing rim; otherwise solid with at most a few enhancing patches.
    enhancing_share : float
        How much of what could enhance does; 0 for a tumour without enhancement.
    rim : float
        Thickness of the rim as a share of the radius.
    infiltration : float
        How far non-enhancing tumour reaches beyond the rim, as a share of the radius; often 0.
    reach_mm : float
        Of the oedema.
    """

    foci: tuple[Blob, ...]
    push: float
    high_grade: bool
    enhancing_share: float
    rim: float
    infiltration: float
    reach_mm: float

    def pushes(self) -> tuple[Push, ...]:
        """Return the mass effect of every focus."""
        return tuple(Push(focus.centre_mm, 1.8 * focus.radius_mm, self.push) for focus in self.foci)


def draw_tumour(
    *,
    white: FloatVolume,
    depth_mm: FloatVolume,
    grid: Grid,
    numbers: LesionNumbers,
    rng: np.random.Generator,
) -> TumourPlan:
    """Return a tumour centred in cerebral white matter.

    Parameters
    ----------
    white, depth_mm : Tensor, shape (x, y, z)
        Share of cerebral white matter and depth below the surface, before the tumour has grown.
    grid : Grid
        Any resolution.
    numbers : LesionNumbers
    rng : numpy.random.Generator

    Raises
    ------
    DataError
        There is no white matter for a centre.
    """
    low, high = np.log(numbers.core_radius_mm)
    radius = float(np.exp(rng.uniform(low, high)))
    density = white.square() * (depth_mm > 0.6 * radius)
    centre = Density(density, grid).draw(rng)
    if centre is None:
        raise DataError(
            "A tumour needs cerebral white matter deeper than "
            f"{0.6 * radius:.1f} mm, but there is none.",
            hint="Give an anatomy with cerebral white matter, or a finer spacing.",
        )
    foci = [_draw_focus(centre, radius, numbers, rng)]
    if rng.uniform() < _SECOND_FOCUS_CHANCE:
        away = (voxel_points(grid) - torch.tensor(centre)).norm(dim=-1)
        ring = density * (away > 1.5 * radius) * (away < 2.0 * radius + 25.0)
        second = Density(ring, grid).draw(rng)
        if second is not None:
            foci.append(_draw_focus(second, radius * rng.uniform(0.35, 0.7), numbers, rng))
    high_grade = bool(rng.uniform() < numbers.high_grade_chance)
    share = float(rng.uniform(0.55, 0.95) if high_grade else rng.uniform(0.08, 0.35))
    bare = rng.uniform() < _BARE_CHANCE
    infiltration = float(rng.uniform(0.1, 0.4)) if rng.uniform() < 0.45 else 0.0
    return TumourPlan(
        foci=tuple(foci),
        push=draw_push(rng),
        high_grade=high_grade,
        enhancing_share=0.0 if bare else share,
        rim=float(rng.uniform(*numbers.rim_fraction)),
        infiltration=infiltration,
        reach_mm=float(rng.uniform(*numbers.oedema_reach_mm)),
    )


def draw_push(rng: np.random.Generator) -> float:
    """Return the strength of a mass effect."""
    return float(rng.uniform(0.05, 0.32))


def _draw_focus(
    centre_mm: tuple[float, float, float],
    radius_mm: float,
    numbers: LesionNumbers,
    rng: np.random.Generator,
) -> Blob:
    return draw_blob(
        centre_mm=centre_mm,
        radius_mm=float(radius_mm),
        family=numbers.shapes,
        elongation=0.16,
        rng=rng,
    )


def paint_tumour(
    subject: Subject, plan: TumourPlan, numbers: LesionNumbers, rng: np.random.Generator
) -> Disease:
    """Return the label (1 necrosis, 2 oedema, 3 non-enhancing, 4 enhancing) and the looks.

    Enhancement is one layer that T1c alone shows; every other modality is blind to it.
    """
    level = _level_mm(subject, plan, rng)
    parts = _core_parts(subject, plan, level, rng)
    oedema = _oedema(subject, plan, level, rng)
    return compose_tumour(subject, parts, oedema, level, numbers, rng)


def compose_tumour(
    subject: Subject,
    parts: Mapping[str, FloatVolume],
    oedema: FloatVolume,
    level: FloatVolume,
    numbers: LesionNumbers,
    rng: np.random.Generator,
) -> Disease:
    """Return the label and the looks of a tumour whose parts are known.

    Parameters
    ----------
    subject : Subject
    parts : mapping of name to Tensor, shape (x, y, z)
        Shares of "core", and of the "necrosis", "enhancing" and "solid" that make it up.
    oedema : Tensor, shape (x, y, z)
        Share of swollen tissue, also below the core.
    level : Tensor, shape (x, y, z)
        Distance to the core in mm; 0 or less inside.
    numbers : LesionNumbers
    rng : numpy.random.Generator
    """
    core = parts["core"]
    label = torch.zeros(subject.grid.shape, dtype=torch.uint8)
    label[(oedema > 0.5) & subject.brain] = OEDEMA
    inside = (core > 0.5) & subject.brain
    necrosis, solid, enhancing = (parts[name] for name in ("necrosis", "solid", "enhancing"))
    label[inside] = NON_ENHANCING
    label[inside & (necrosis > torch.maximum(solid, enhancing))] = NECROSIS
    label[inside & (enhancing > torch.maximum(solid, necrosis))] = ENHANCING
    return Disease(label, _layers(subject, parts, oedema, level, numbers, rng))


def _level_mm(subject: Subject, plan: TumourPlan, rng: np.random.Generator) -> FloatVolume:
    radius = plan.foci[0].radius_mm
    roughness = draw_roughness(
        subject.grid, large_mm=max(0.6 * radius, 6.0), small_mm=max(0.25 * radius, 3.0), rng=rng
    )
    points = voxel_points(subject.grid)
    levels = [focus.level_mm(points, roughness) for focus in plan.foci]
    return torch.stack(levels).amin(dim=0)


def _core_parts(
    subject: Subject, plan: TumourPlan, level: FloatVolume, rng: np.random.Generator
) -> dict[str, FloatVolume]:
    """Return the shares of core, necrosis, enhancing and remaining solid tumour."""
    grid, radius = subject.grid, plan.foci[0].radius_mm
    fine = partial_volume_mm(grid)
    wave = smooth_noise(grid, correlation_mm=0.6 * radius, rng=rng)
    inner = edge(level, width_mm=fine + 0.2)
    spread = plan.infiltration * radius * (0.3 + 0.9 * wave).clamp(0.0, 1.6)
    core = edge(level - spread, width_mm=fine + 0.6) * bears_core(subject)
    thickness = plan.rim * radius * (1.0 + 0.5 * _noise(grid, 0.5 * radius, rng)).clamp(0.25, 2.0)
    thickness = thickness.clamp(min=1.2)
    if not plan.high_grade:
        # A solid tumour; a small cyst stays where the centre is deeper than most of the radius.
        thickness = thickness + 0.6 * radius
    necrosis = edge(level + thickness, width_mm=fine + 0.3) * core
    gate = _noise(grid, (0.8 if plan.high_grade else 0.4) * radius, rng)
    # The share of a Gaussian field above the gate's threshold is what enhances.
    threshold = float(torch.special.ndtri(torch.tensor(1.0 - plan.enhancing_share)))
    open_gate = torch.sigmoid((gate - max(threshold, -8.0)) / 0.15)
    enhancing = inner * core * (1.0 - necrosis) * open_gate
    if plan.enhancing_share == 0.0:
        enhancing = torch.zeros_like(core)
    solid = (core - necrosis - enhancing).clamp(min=0.0)
    return {"core": core, "necrosis": necrosis, "enhancing": enhancing, "solid": solid}


def _noise(grid: Grid, correlation_mm: float, rng: np.random.Generator) -> FloatVolume:
    return smooth_noise(grid, correlation_mm=max(correlation_mm, 3.0), rng=rng)


def _oedema(
    subject: Subject, plan: TumourPlan, level: FloatVolume, rng: np.random.Generator
) -> FloatVolume:
    """Return the share of oedema: far along white matter, hardly into cortex, never into fluid."""
    white = subject.tissue("white")
    paths = 0.15 + white + 0.35 * subject.tissue("deep_grey") + 0.2 * subject.tissue("brain_stem")
    sigma = [1.5 / spacing for spacing in subject.grid.spacing_mm]
    paths = torch.from_numpy(ndimage.gaussian_filter(paths.numpy(), sigma, truncate=2.5))
    wave = 1.0 + 0.45 * smooth_noise(subject.grid, correlation_mm=22.0, rng=rng)
    reach = plan.reach_mm * paths * wave.clamp(0.1, 2.2)
    width = partial_volume_mm(subject.grid) + 0.8
    share = edge(level - reach, width_mm=width) * bears_oedema(subject)
    return share * _touching(share > 0.3, level < 2.0)


def bears_core(subject: Subject) -> FloatVolume:
    """Return how much of each voxel a tumour's core can fill, 0 to 1."""
    return torch.sigmoid(subject.depth_mm / 0.7) * (1.0 - 0.9 * subject.tissue("ventricle"))


def bears_oedema(subject: Subject, *, cortex: float = 0.25) -> FloatVolume:
    """Return how much of each voxel can swell, 0 to 1: never fluid, and little of the cortex."""
    tissue = (1.0 - subject.fluid()) * torch.sigmoid(subject.depth_mm / 0.7)
    # The falx stops what would jump between the hemispheres, except deep where fibres cross.
    side = torch.sigmoid((subject.midline_mm - 2.0) / 0.7)
    tissue = tissue * torch.maximum(side, torch.exp(-subject.ventricle_mm / 6.0))
    return (tissue * (1.0 - (1.0 - cortex) * subject.tissue("cortex"))).clamp(0.0, 1.0)


def _touching(mask: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Return the parts of a mask that are connected with the seed."""
    names = np.empty(tuple(mask.shape), dtype=np.int32)
    ndimage.label((mask | seed).numpy(), output=names)
    kept = np.unique(names[seed.numpy()])
    return torch.from_numpy(np.isin(names, kept[kept > 0]) & (mask | seed).numpy())


def _layers(
    subject: Subject,
    parts: Mapping[str, FloatVolume],
    oedema: FloatVolume,
    level: FloatVolume,
    numbers: LesionNumbers,
    rng: np.random.Generator,
) -> tuple[Layer, ...]:
    grid = subject.grid
    mottle = 1.0 + 0.15 * smooth_noise(grid, correlation_mm=6.0, rng=rng)
    fade = torch.exp(-level.clamp(min=0.0) / float(rng.uniform(15.0, 60.0)))
    gain = float(rng.uniform(*numbers.oedema_flair))
    flair_solid, t1_solid = float(rng.uniform(0.82, 1.20)), float(rng.uniform(0.45, 0.62))
    cystic = rng.uniform() < 0.3
    flair_dead = float(rng.uniform(0.25, 0.45) if cystic else rng.uniform(0.75, 1.20))
    t1_dead = float(rng.uniform(0.26, 0.45))
    t2_solid, t2_dead = float(rng.uniform(0.85, 1.1)), float(rng.uniform(1.1, 1.35))
    patchy = 1.0 + 0.3 * smooth_noise(grid, correlation_mm=5.0, rng=rng)
    blood = torch.sigmoid((smooth_noise(grid, correlation_mm=8.0, rng=rng) - 1.1) / 0.15)
    bleeding = float(rng.uniform(0.15, 0.4)) if rng.uniform() < 0.25 else 0.0
    wet = oedema * fade * mottle.clamp(0.4, 1.6)
    dark = float(rng.uniform(0.10, 0.22))
    return (
        Layer(wet, add={"flair": gain, "t2": 1.1 * gain, "t1": -dark, "t1c": -dark}),
        Layer(
            parts["core"],
            replace={"flair": flair_solid, "t1": t1_solid, "t1c": t1_solid, "t2": t2_solid},
        ),
        Layer(
            parts["necrosis"] * mottle.clamp(0.6, 1.0),
            replace={"flair": flair_dead, "t1": t1_dead, "t1c": t1_dead, "t2": t2_dead},
        ),
        Layer(
            blood * parts["core"],
            add={"t1": bleeding, "t1c": bleeding, "t2": -bleeding, "flair": 0.3 * bleeding},
        ),
        Layer(
            parts["enhancing"] * patchy.clamp(0.25, 1.7),
            add={"t1c": float(rng.uniform(*numbers.enhancement)) + 0.2},
        ),
    )
