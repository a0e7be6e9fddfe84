"""A case as a network wants it, and the way back to the case's own grid."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from medseg.errors import ScanError
from medseg.geometry import Grid
from medseg.preprocess.brain import brain_mask
from medseg.preprocess.crop import box_on
from medseg.preprocess.lattice import bounding_box
from medseg.preprocess.normalise import normalise
from medseg.preprocess.resample import Mode, resample, resample_labels
from medseg.scan import Case, LabelMap
from medseg.settings import settings

_log = logging.getLogger(__name__)
_PAIRS = ("RL", "AP", "SI")
_SAME_SPACING_MM = 1e-3


def _check_orientation(text: str) -> str:
    if len(text) != 3 or any(sum(letter in pair for letter in text) != 1 for pair in _PAIRS):
        raise ValueError(f"must hold one letter of each of {', '.join(_PAIRS)}, but is {text!r}")
    return text


_Length = Annotated[float, Field(gt=0)]


@settings
class PreprocessSettings:
    """How cases are brought to one shape of the world.

    Parameters
    ----------
    spacing_mm : tuple of 3 float, optional
        Voxel sizes along the axes in ``orientation``, in mm; None keeps those of the scan.
    orientation : str
        Where the axes point, one letter of each pair RL, AP, SI.
    crop_to_brain : bool
        Keep only the box around the brain.
    margin_mm : float
        Kept around that box.
    normalise : "zscore", "minmax" or "none"
        Measured inside the brain; with the first two, 0 outside.
    """

    spacing_mm: tuple[_Length, _Length, _Length] | None = (1.0, 1.0, 1.0)
    orientation: Annotated[str, AfterValidator(_check_orientation)] = "RAS"
    crop_to_brain: bool = True
    margin_mm: float = Field(default=6.0, ge=0)
    normalise: Literal["zscore", "minmax", "none"] = "zscore"


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the grid and scale of a network.

    Parameters
    ----------
    identifier, subject : str
        As in the case.
    image : Tensor, shape (c, *s), float32
        One channel per modality asked for; 0 everywhere where it is absent.
    present : Tensor, shape (c,), bool
        Whether the case has the modality.
    label : Tensor, shape (*s), an integer type, optional
        The reference.
    brain : Tensor, shape (*s), bool
        Inside the brain.
    grid, source_grid : Grid
        Where these tensors lie, and where the case's scans do.
    """

    identifier: str
    subject: str
    image: Tensor
    present: Tensor
    label: Tensor | None
    brain: Tensor
    grid: Grid
    source_grid: Grid

    def to_source(self, volume: Tensor, *, mode: Mode) -> Tensor:
        """Return volumes of this grid on the case's own grid, 0 outside.

        Parameters
        ----------
        volume : Tensor, shape (n, *s)
            For example one probability per region.
        mode : "linear" or "nearest"
            Linear gives float32. Where preparation only cropped and reoriented, values are moved
            exactly.

        Returns
        -------
        Tensor, shape (n, *source_shape)

        Raises
        ------
        ShapeError
            The volumes do not have the shape of ``grid``.
        """
        return resample(volume, self.grid, self.source_grid, mode=mode)


def prepare(
    case: Case,
    *,
    channels: Sequence[str],
    settings: PreprocessSettings,
    allow_missing: bool = False,
) -> PreparedCase:
    """Return a case reoriented, resampled, cropped to the brain and normalised.

    Each scan is interpolated at most once, straight from its own voxels to the final grid. Scans
    that are not asked for change nothing, neither the brain that is found.

    Parameters
    ----------
    case : Case
    channels : sequence of str
        Modalities in the network's order.
    settings : PreprocessSettings
    allow_missing : bool
        Accept a case without some (not all) of the modalities.

    Raises
    ------
    ScanError
        A modality is missing, no brain is found, or a scan is constant inside it.
    """
    _check_channels(case, channels, allow_missing=allow_missing)
    case = replace(case, scans={name: case.scans[name] for name in case.scans if name in channels})
    mask = brain_mask(case)
    grid = _target_grid(mask, settings)
    # Above one half rather than from one half on: a voxel half outside is outside, as for labels.
    brain = resample((mask.data > 0).float()[None], mask.grid, grid)[0] > 0.5
    if not bool(brain.any()):
        raise ScanError(
            f"Case {case.identifier!r}: no brain left at a spacing of {grid.spacing_mm} mm.",
            hint="Choose a finer spacing, or check the brain mask.",
        )
    image = torch.zeros(len(channels), *grid.shape)
    for index, name in enumerate(channels):
        if name in case.scans:
            image[index] = _channel(case, name, grid=grid, brain=brain, settings=settings)
    return PreparedCase(
        identifier=case.identifier,
        subject=case.subject,
        image=image,
        present=torch.tensor([name in case.scans for name in channels], dtype=torch.bool),
        label=_label(case, grid),
        brain=brain,
        grid=grid,
        source_grid=case.grid,
    )


def _check_channels(case: Case, channels: Sequence[str], *, allow_missing: bool) -> None:
    missing = [name for name in channels if name not in case.scans]
    if not missing or (allow_missing and len(missing) < len(channels)):
        return
    rule = "at least one" if allow_missing else "each"
    raise ScanError(
        f"Case {case.identifier!r} must have {rule} of {list(channels)}, but {missing} is missing; "
        f"it has {sorted(case.scans)}.",
        hint="Add the modality, or use a model trained with missing modalities allowed."
        if not allow_missing
        else "Add one of these modalities.",
    )


def _target_grid(mask: LabelMap, settings: PreprocessSettings) -> Grid:
    grid = mask.grid.reoriented(settings.orientation)
    spacing = settings.spacing_mm
    if spacing is not None:
        off_mm = max(abs(a - b) for a, b in zip(grid.spacing_mm, spacing, strict=True))
        # A grid that has the spacing already keeps its own voxels: nothing is interpolated.
        if off_mm > _SAME_SPACING_MM or grid.is_sheared:
            grid = grid.with_spacing(spacing)
    if settings.crop_to_brain:
        box = bounding_box(mask.data > 0)
        grid = grid.crop(*box_on(box, mask.grid, grid, margin_mm=settings.margin_mm))
    return grid


def _channel(
    case: Case, name: str, *, grid: Grid, brain: Tensor, settings: PreprocessSettings
) -> Tensor:
    scan = case.scans[name]
    data = resample(scan.data[None], case.grid, grid)[0]
    try:
        return normalise(data, brain, kind=settings.normalise)
    except ScanError as error:
        raise ScanError(
            f"Case {case.identifier!r}, {name!r}: {error.message}", hint=error.hint
        ) from error


def _label(case: Case, grid: Grid) -> Tensor | None:
    if case.label is None:
        return None
    label = resample_labels(case.label.data, case.grid, grid)
    if bool(case.label.data.any()) and not bool(label.any()):
        _log.warning(
            "Case %r: all labels vanish at a spacing of %s mm or outside the brain's box.",
            case.identifier,
            grid.spacing_mm,
        )
    return label
