"""One head grown from an anatomy: its own folds, ventricles and shape, not yet imaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from medseg.data.phantom.anatomy import INDEX, TISSUES, Anatomy
from medseg.data.phantom.deformation import Deformation
from medseg.data.phantom.fields import sample, smooth_noise, voxel_points
from medseg.data.phantom.presets import AnatomyNumbers
from medseg.geometry import Grid
from medseg.shapes import FloatVolume

_SHARPEN = 0.6
_KEPT_MM = 4.0


@dataclass(frozen=True, eq=False)
class Subject:
    """The tissues of one generated head on the working grid.

    Parameters
    ----------
    tissues : Tensor, shape (8, x, y, z)
        Shares in the order of :data:`medseg.data.phantom.anatomy.TISSUES`; they add up to 1.
    depth_mm, ventricle_mm, midline_mm : Tensor, shape (x, y, z)
        Depth below the brain's surface; distance to the ventricles, and to the plane between the
        hemispheres.
    brain : Tensor, shape (x, y, z), bool
        What a skull-stripping tool would keep: the brain and a little of the fluid around it.
    grid : Grid
    """

    tissues: Float[torch.Tensor, "t x y z"]
    depth_mm: FloatVolume
    ventricle_mm: FloatVolume
    midline_mm: FloatVolume
    brain: Bool[torch.Tensor, "x y z"]
    grid: Grid

    def tissue(self, *names: str) -> FloatVolume:
        """Return the share of each voxel that the named tissues fill together."""
        return self.tissues[[INDEX[name] for name in names]].sum(dim=0)

    def fluid(self) -> FloatVolume:
        """Return the share of cerebrospinal fluid, in and outside the ventricles."""
        return self.tissue("csf", "ventricle")


def grow_subject(
    anatomy: Anatomy,
    deformation: Deformation,
    numbers: AnatomyNumbers,
    rng: np.random.Generator,
) -> Subject:
    """Return the subject that a deformation of an anatomy describes.

    The average of many heads has blurred folds. Random fields that favour grey, white or fluid, and
    a product that sharpens, give every subject sulci of its own where the average is undecided.
    """
    grid = _subject_grid(anatomy, deformation)
    points = deformation.template_points(voxel_points(grid))
    maps = sample(anatomy.maps(), grid, points)
    shares = maps[: len(TISSUES)].clamp(min=0.0)
    weights = shares * (_SHARPEN * shares + (1.0 - _SHARPEN))
    for names in (("csf",), ("cortex", "cerebellar_cortex"), ("white", "cerebellar_white")):
        noise = smooth_noise(grid, correlation_mm=numbers.folding_mm, rng=rng)
        favour = torch.exp(numbers.folding * noise)
        for name in names:
            weights[INDEX[name]] *= favour
    depth_mm, ventricle_mm = maps[-2], maps[-1]
    margin_mm = float(rng.uniform(-2.0, 1.0))
    middle = float(anatomy.box_mm()[:, 0].mean())
    return Subject(
        tissues=weights.div_(weights.sum(dim=0).clamp(min=1e-6)),
        depth_mm=depth_mm,
        ventricle_mm=ventricle_mm,
        midline_mm=(points[..., 0] - middle).abs(),
        brain=depth_mm > margin_mm,
        grid=grid,
    )


def _subject_grid(anatomy: Anatomy, deformation: Deformation) -> Grid:
    """Return the part of the anatomy's grid that the deformed brain needs, with a small margin."""
    coarse = deformation.grid
    template = deformation.template_points(voxel_points(coarse))
    depth_mm = sample(anatomy.depth_mm[None], anatomy.grid, template)[0]
    inside = torch.nonzero(depth_mm > -_KEPT_MM).numpy()
    corners = coarse.to_world(np.stack([inside.min(axis=0), inside.max(axis=0)]))
    low, high = anatomy.grid.to_voxel(corners)
    start = np.clip(np.floor(low), 0, None).astype(int)
    stop = np.minimum(np.ceil(high).astype(int) + 1, anatomy.grid.shape)
    return anatomy.grid.crop(start.tolist(), stop.tolist())
