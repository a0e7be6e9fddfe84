import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.data.augment import AugmentSettings, SpatialDraw, draw_spatial
from medseg.data.patches import PlaceIndex, cut, draw_start, find_components, take_patch
from medseg.seeding import torch_generator

STILL = SpatialDraw((False, False, False))


@given(
    st.tuples(*[st.integers(-12, 12)] * 3),
    st.tuples(*[st.integers(1, 12)] * 3),
)
def test_cut_equals_cutting_from_an_endless_volume(
    start: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    volume = torch.arange(1.0, 5 * 6 * 7 + 1).view(1, 5, 6, 7)
    endless = torch.zeros(1, 60, 60, 60)
    endless[:, 20:25, 20:26, 20:27] = volume
    place = [slice(20 + a, 20 + a + n) for a, n in zip(start, size, strict=True)]
    assert torch.equal(cut(volume, start, size), endless[(slice(None), *place)])


@given(
    st.lists(st.tuples(st.integers(0, 19), st.integers(1, 30), st.integers(1, 20)), min_size=2,
             max_size=3),
    st.integers(0, 99),
)  # fmt: skip
def test_patch_contains_its_voxel_and_stays_inside(
    axes: list[tuple[int, int, int]], seed: int
) -> None:
    shape = [total for _, _, total in axes]
    size = [length for _, length, _ in axes]
    voxel = [at % total for at, _, total in axes]
    start = draw_start(voxel, size=size, shape=shape, generator=torch_generator(seed))
    for first, at, length, total in zip(start, voxel, size, shape, strict=True):
        assert first <= at < first + length
        assert (0 <= first <= total - length) if total >= length else (first <= 0)


def test_patch_moves_about_its_voxel() -> None:
    generator = torch_generator(0)
    starts = {draw_start([50], size=[16], shape=[100], generator=generator)[0] for _ in range(200)}
    assert starts == set(range(50 - 11, 50 - 3))


def test_components_touching_at_a_corner_are_one() -> None:
    mask = np.zeros((6, 6, 6), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[4:6, 4:6, 4:6] = True
    found = find_components(mask)
    assert sorted(np.diff(found.ends, prepend=0).tolist()) == [2, 8]
    assert sorted(found.voxels.tolist()) == np.flatnonzero(mask).tolist()


def test_small_component_is_drawn_as_often_as_a_large_one() -> None:
    target = torch.zeros(2, 20, 20, 20)
    target[0, :10] = 1  # 4000 voxels
    target[0, 15, 15, 15] = 1  # one voxel
    index = PlaceIndex.of(
        target, torch.tensor([True, True]), torch.ones(20, 20, 20, dtype=torch.bool)
    )
    generator = torch_generator(0)
    voxels = [index.lesion_voxel(generator) for _ in range(600)]
    assert sum(voxel == (15, 15, 15) for voxel in voxels) / 600 == pytest.approx(0.5, abs=0.07)
    assert all(target[0][voxel] == 1 for voxel in voxels)


def test_unknown_and_empty_regions_are_not_sought() -> None:
    target = torch.zeros(3, 5, 5, 5)
    target[0, 0, 0, 0] = target[2, 4, 4, 4] = 1
    brain = torch.zeros(5, 5, 5, dtype=torch.bool)
    brain[2, 2, 2] = True
    index = PlaceIndex.of(target, torch.tensor([False, True, True]), brain)
    generator = torch_generator(0)
    assert {index.lesion_voxel(generator) for _ in range(20)} == {(4, 4, 4)}
    assert {index.brain_voxel(generator) for _ in range(20)} == {(2, 2, 2)}
    healthy = PlaceIndex.of(target, torch.tensor([False, True, False]), brain)
    assert healthy.lesion_voxel(generator) == (2, 2, 2)
    nobrain = PlaceIndex.of(target, torch.tensor([True] * 3), torch.zeros_like(brain))
    assert len({nobrain.brain_voxel(generator) for _ in range(50)}) > 20


def test_still_patch_is_a_copy_of_the_voxels() -> None:
    image = torch.randn(2, 9, 8, 7, generator=torch_generator(0))
    target = (image[:1] > 0).to(torch.uint8)
    patch, labels = take_patch(image, target, start=(2, 1, 0), size=(4, 5, 6), draw=STILL)
    assert torch.equal(patch, image[:, 2:6, 1:6, 0:6])
    assert torch.equal(labels, target[:, 2:6, 1:6, 0:6].float())
    flipped, _ = take_patch(
        image, target, start=(2, 1, 0), size=(4, 5, 6), draw=SpatialDraw((True, False, True))
    )
    assert torch.equal(flipped, patch.flip(1, 3))


@pytest.mark.parametrize("dims", [2, 3])
@given(seed=st.integers(0, 300))
def test_image_and_label_stay_aligned(dims: int, seed: int) -> None:
    """An image that *is* its label, smoothed by interpolation only, must still agree with it."""
    size = (16,) * dims
    axes = torch.meshgrid(*[torch.arange(40.0)] * dims, indexing="ij")
    ball = sum((axis - 19) ** 2 for axis in axes) < 9**2  # type: ignore[union-attr]
    label = ball[None].to(torch.uint8)  # type: ignore[union-attr]
    settings = AugmentSettings(flip=0.5, flip_axes=(0, 1, 2), affine=1, elastic=1)
    draw = draw_spatial(settings, size=size, generator=torch_generator(seed))
    patch, moved = take_patch(label.float(), label, start=(20,) * dims, size=size, draw=draw)
    assert ((patch > 0.5) != (moved > 0.5)).float().mean() < 0.02
    assert set(moved.unique().tolist()) <= {0.0, 1.0}
    assert moved.any()


def test_turned_patch_shows_what_lies_beyond_its_edges() -> None:
    image = torch.ones(1, 60, 60, 60)
    settings = AugmentSettings(affine=1, rotation_degrees=45, elastic=1)
    for seed in range(5):
        draw = draw_spatial(settings, size=(16, 16, 16), generator=torch_generator(seed))
        patch, _ = take_patch(image, image, start=(22, 22, 22), size=(16, 16, 16), draw=draw)
        assert torch.allclose(patch, torch.ones_like(patch), atol=1e-4)
