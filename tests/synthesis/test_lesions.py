import pytest
import torch

from medseg.errors import DataError
from medseg.synthesis.lesions import (
    LabelledScan,
    cut_lesions,
    fill_outside,
    normal_tissue,
    order_labels,
    sample_cube,
)


def test_labels_are_ordered_from_the_inside(scans: list[LabelledScan]) -> None:
    assert order_labels(scans) == (4, 2)


def test_a_cut_lesion_is_nested_and_has_the_looks_of_its_tissue(scans: list[LabelledScan]) -> None:
    (lesion,) = cut_lesions(scans[5], labels=(4, 2), side=16, least_voxels=5)
    core, whole = lesion.parts
    assert bool((core <= whole).all())
    assert 0 < float(core.sum()) < float(whole.sum())
    # In deviations of the normal tissue, which has 0.3.
    assert float(lesion.image[0][whole > 0].median()) == pytest.approx(10, abs=1.5)
    assert float(lesion.image[1][core > 0].median()) == pytest.approx(16.7, abs=2.5)


def test_size_is_kept_apart_from_shape(scans: list[LabelledScan]) -> None:
    sizes = [
        cut_lesions(scan, labels=(4, 2), side=16, least_voxels=5)[0].half_side_mm for scan in scans
    ]
    assert sizes == sorted(sizes)
    # A ball of radius 4.5 voxels of 2 mm, with a fifth of room.
    assert sizes[-1] == pytest.approx(4.5 * 2 * 1.2, rel=0.15)
    shares = [
        float(cut_lesions(s, labels=(4, 2), side=16, least_voxels=5)[0].parts[-1].mean())
        for s in scans
    ]
    # The largest ball has more than three times the voxels of the smallest, but the same shape.
    assert max(shares) / min(shares) < 1.6


def test_every_component_is_a_lesion_and_small_ones_are_left_out(
    scans: list[LabelledScan],
) -> None:
    label = scans[0].label.clone()
    label[3, 12, 12] = 2
    scan = LabelledScan("two", scans[0].image, label, scans[0].brain, (2.0, 2.0, 2.0))
    assert len(cut_lesions(scan, labels=(4, 2), side=8, least_voxels=1)) == 2
    assert len(cut_lesions(scan, labels=(4, 2), side=8, least_voxels=2)) == 1


def test_turning_is_a_rearrangement(scans: list[LabelledScan]) -> None:
    (lesion,) = cut_lesions(scans[2], labels=(4, 2), side=8, least_voxels=5)
    turned = lesion.turned((1, 2, 0), (0,))
    assert torch.equal(turned.turned((0, 1, 2), (0,)).turned((2, 0, 1), ()).image, lesion.image)


def test_a_cube_of_the_volumes_own_voxels_is_exact() -> None:
    volume = torch.arange(64.0).view(1, 4, 4, 4)
    cube = sample_cube(volume, torch.tensor([1.5] * 3), torch.tensor([2.0] * 3), 4)
    assert torch.allclose(cube, volume, atol=1e-4)


def test_filling_leaves_the_inside_and_spreads_the_nearest() -> None:
    image = torch.tensor([[[[1.0, 2.0, 7.0, 7.0]]]])
    inside = torch.tensor([[[True, True, False, False]]])
    assert fill_outside(image, inside).flatten().tolist() == [1.0, 2.0, 2.0, 2.0]


def test_nothing_to_learn_from_is_refused(scans: list[LabelledScan]) -> None:
    empty = torch.zeros_like(scans[0].label)
    healthy = LabelledScan("h", scans[0].image, empty, scans[0].brain, (2.0, 2.0, 2.0))
    with pytest.raises(DataError, match="none of 1 scans"):
        order_labels([healthy])
    with pytest.raises(DataError, match="every voxel"):
        normal_tissue(scans[0].image, torch.ones_like(empty), scans[0].brain)
