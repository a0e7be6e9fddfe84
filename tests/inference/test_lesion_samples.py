import numpy as np
import pytest
import torch

from medseg.geometry import Grid
from medseg.inference.lesions import PackedMasks, find_lesions, paint_regions
from medseg.metrics.lesions import LesionSettings

SHAPE = (11, 9, 7)
GRID = Grid(SHAPE, np.diag([-2.0, 1.0, 3.0, 1.0]))


def box(x: int, y: int, z: int, size: int = 2) -> torch.Tensor:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[x : x + size, y : y + size, z : z + size] = True
    return mask


def packed(*masks: torch.Tensor) -> PackedMasks:
    kept = PackedMasks(SHAPE)
    for mask in masks:
        kept.add(mask)
    return kept


def test_packing_gives_masks_back() -> None:
    masks = [torch.rand(SHAPE) < 0.3 for _ in range(3)]
    kept = packed(*masks)
    assert len(kept) == 3
    for index, mask in enumerate(masks):
        assert (kept[index] == mask.numpy()).all()


def test_probability_is_the_share_of_samples_that_have_the_lesion() -> None:
    large, small = box(0, 0, 0, 3), box(7, 6, 4)
    nothing = torch.zeros(SHAPE, dtype=torch.bool)
    samples = packed(large | small, large, box(1, 1, 1), nothing)
    std = torch.where(large, 0.1, 0.3)
    first, second = find_lesions(
        large | small,
        region="core",
        grid=GRID,
        samples=samples,
        std=std,
        settings=LesionSettings(),
    )
    assert (first.lesion, first.probability, second.probability) == (1, 0.75, 0.25)
    assert first.volume_mm3 == pytest.approx(27 * 6)
    assert (first.x_mm, first.y_mm, first.z_mm) == pytest.approx((-2, 1, 3))
    assert (first.mean_std, second.mean_std) == pytest.approx((0.1, 0.3))


def test_the_matching_rule_is_that_of_the_settings() -> None:
    samples = packed(box(0, 0, 0, 1), box(0, 0, 0))
    strict = LesionSettings(min_overlap_share=0.5)
    (lesion,) = find_lesions(
        box(0, 0, 0),
        region="core",
        grid=GRID,
        samples=samples,
        std=torch.zeros(SHAPE),
        settings=strict,
    )
    assert lesion.probability == 0.5


def test_an_empty_region_has_no_lesions() -> None:
    nothing = torch.zeros(SHAPE, dtype=torch.bool)
    lesions = find_lesions(
        nothing,
        region="core",
        grid=GRID,
        samples=packed(nothing),
        std=torch.zeros(SHAPE),
        settings=LesionSettings(),
    )
    assert lesions == []


def test_inner_regions_are_painted_over_outer_ones() -> None:
    core, whole = box(2, 2, 2), box(1, 1, 1, 4)
    labels, order = paint_regions(torch.stack([core, whole]), definition=[(1, 3, 4), (1, 2, 3, 4)])
    assert order == (1, 0)
    assert (labels[core] == 1).all()
    assert (labels[whole & ~core] == 2).all()
    assert (labels[~whole] == 0).all()
