"""The numbers that tell the two presets apart, all in one place.

Intensities are fractions of a common scale; the order of a contrast row is that of
:data:`medseg.data.phantom.anatomy.TISSUES`: csf, ventricle, cortex, white, deep grey, brain stem,
cerebellar cortex, cerebellar white. A model trained on one preset and tested on the other meets
another anatomy, another family of shapes, another scanner's contrast and other noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Range = tuple[float, float]
MODALITIES = ("flair", "t1", "t1c", "t2")


@dataclass(frozen=True, kw_only=True)
class AnatomyNumbers:
    """How far subjects differ from the template.

    ``warps`` are pairs of correlation length and standard deviation of the velocity field, both mm;
    ``ventricle_mm`` is the range of the push that widens (positive) the ventricles.
    """

    log_scale_mean: tuple[float, float, float]
    log_scale_std: float
    shear_std: float
    rotation_std_deg: float
    mirror_chance: float
    warps: tuple[tuple[float, float], ...]
    ventricle_mm: Range
    folding: float
    folding_mm: float


@dataclass(frozen=True, kw_only=True)
class ScannerNumbers:
    """How tissue becomes grey value.

    ``contrast`` maps a modality to its eight tissue means; ``bias`` is the standard deviation of
    the logarithm of the bias field, ``noise`` the Rician standard deviation, ``blur`` the weight of
    a 3 x 3 x 3 mean.
    """

    contrast: Mapping[str, tuple[float, ...]]
    contrast_std: float
    texture: tuple[float, float]
    blur: Range
    bias: Range
    bias_mm: float
    noise: Range
    vessels: Range
    surface: Range
    white_dots: float


@dataclass(frozen=True, kw_only=True)
class LesionNumbers:
    """Shape family and brightness of disease; FLAIR and T1c gains are added to healthy tissue."""

    shapes: Literal["noise", "metaballs"]
    ms_radius_mm: float
    ms_flair: Range
    core_radius_mm: Range
    high_grade_chance: float
    rim_fraction: Range
    enhancement: Range
    oedema_reach_mm: Range
    oedema_flair: Range


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One population and one scanner."""

    anatomy: AnatomyNumbers
    scanner: ScannerNumbers
    lesions: LesionNumbers


SOURCE = Preset(
    anatomy=AnatomyNumbers(
        log_scale_mean=(0.0, 0.0, 0.0),
        log_scale_std=0.04,
        shear_std=0.03,
        rotation_std_deg=4.0,
        mirror_chance=0.5,
        warps=((30.0, 3.0), (14.0, 0.7)),
        ventricle_mm=(-0.5, 3.0),
        folding=0.55,
        folding_mm=7.0,
    ),
    scanner=ScannerNumbers(
        contrast={
            "flair": (0.25, 0.15, 0.78, 0.60, 0.70, 0.62, 0.76, 0.62),
            "t1": (0.22, 0.15, 0.56, 0.80, 0.68, 0.73, 0.56, 0.77),
            "t1c": (0.24, 0.15, 0.57, 0.80, 0.69, 0.74, 0.58, 0.78),
            "t2": (1.20, 1.30, 0.74, 0.52, 0.58, 0.58, 0.72, 0.54),
        },
        contrast_std=0.035,
        texture=(0.012, 0.008),
        blur=(0.0, 0.35),
        bias=(0.01, 0.06),
        bias_mm=70.0,
        noise=(0.006, 0.02),
        vessels=(0.25, 0.6),
        surface=(0.0, 0.30),
        white_dots=4.0,
    ),
    lesions=LesionNumbers(
        shapes="noise",
        ms_radius_mm=2.3,
        ms_flair=(0.18, 0.45),
        core_radius_mm=(11.0, 26.0),
        high_grade_chance=0.85,
        rim_fraction=(0.15, 0.5),
        enhancement=(0.20, 0.75),
        oedema_reach_mm=(5.0, 24.0),
        oedema_flair=(0.35, 0.80),
    ),
)

TARGET = Preset(
    anatomy=AnatomyNumbers(
        log_scale_mean=(0.04, -0.05, 0.03),
        log_scale_std=0.05,
        shear_std=0.03,
        rotation_std_deg=6.0,
        mirror_chance=0.0,
        warps=((45.0, 3.5), (18.0, 1.0)),
        ventricle_mm=(0.5, 3.5),
        folding=0.8,
        folding_mm=9.0,
    ),
    scanner=ScannerNumbers(
        contrast={
            "flair": (0.30, 0.20, 0.70, 0.62, 0.67, 0.64, 0.69, 0.63),
            "t1": (0.30, 0.24, 0.60, 0.72, 0.66, 0.68, 0.60, 0.71),
            "t1c": (0.33, 0.25, 0.63, 0.73, 0.67, 0.70, 0.63, 0.72),
            "t2": (1.05, 1.12, 0.80, 0.60, 0.63, 0.66, 0.78, 0.62),
        },
        contrast_std=0.05,
        texture=(0.014, 0.012),
        blur=(0.2, 0.6),
        bias=(0.03, 0.09),
        bias_mm=50.0,
        noise=(0.014, 0.03),
        vessels=(0.35, 0.8),
        surface=(0.1, 0.45),
        white_dots=8.0,
    ),
    lesions=LesionNumbers(
        shapes="metaballs",
        ms_radius_mm=2.4,
        ms_flair=(0.15, 0.40),
        core_radius_mm=(12.0, 27.0),
        high_grade_chance=0.85,
        rim_fraction=(0.12, 0.65),
        enhancement=(0.15, 0.65),
        oedema_reach_mm=(6.0, 24.0),
        oedema_flair=(0.32, 0.70),
    ),
)

PRESETS: dict[str, Preset] = {"source": SOURCE, "target": TARGET}
