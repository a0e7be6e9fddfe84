"""Real lesion masks in MNI space, carried to the head of a generated subject."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medseg.data.phantom.anatomy import Anatomy, mni_anatomy, read_canonical
from medseg.data.phantom.fields import area_average, axis_grid, sample, voxel_points
from medseg.shapes import FloatVolume

_MNI_SPACING_MM = (3.0, 3.0, 3.0)


def lesion_share(path: Path, anatomy: Anatomy) -> FloatVolume:
    """Return the share of each voxel of an anatomy that a real mask's lesions fill.

    The mask lies in MNI space. It is carried over by the map between the two brains' bounding
    boxes, and averaged over voxels of the anatomy's size first, so that coarse grids lose no small
    lesion.

    Parameters
    ----------
    path : Path
        A NIfTI mask in MNI space; above 0 is lesion.
    anatomy : Anatomy
        The template of the subject, before it is deformed.

    Raises
    ------
    ScanFileError
        The file cannot be read.
    LabelError
        The mask is empty.
    """
    data, grid = read_canonical(path)
    ends = grid.to_world([[-0.5] * 3, [length - 0.5 for length in grid.shape]])
    coarse = axis_grid(ends[0], ends[1], anatomy.grid.spacing_mm)
    share = area_average(
        torch.from_numpy((data > 0).astype(np.float32)), grid, coarse, width_mm=1.0
    )
    there, here = mni_anatomy(_MNI_SPACING_MM).box_mm(), anatomy.box_mm()
    scale = (there[1] - there[0]) / (here[1] - here[0])
    shift = there[0] - here[0] * scale
    points = voxel_points(anatomy.grid) * torch.from_numpy(scale).float()
    return sample(share[None], coarse, points + torch.from_numpy(shift).float())[0]
