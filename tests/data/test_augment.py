import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import affine_transform

from medseg.data.augment import (
    AugmentSettings,
    SpatialDraw,
    add_noise,
    augment_intensity,
    change_contrast,
    coarsen,
    draw_kept_channels,
    draw_spatial,
    flip,
    multiply_bias,
    reach_voxels,
    rotation_matrix,
    sampling_grid,
    warp,
)
from medseg.seeding import torch_generator

EVERYTHING = AugmentSettings(
    affine=1, elastic=1, intensity=1, noise=1, bias=1, resolution=1, flip=1, flip_axes=(0, 1, 2)
)
NOTHING = AugmentSettings(
    flip=0, affine=0, elastic=0, intensity=0, noise=0, bias=0, resolution=0, modality_dropout=0
)
#: Every change happens, with no strength.
FEEBLE = AugmentSettings(
    flip=0, affine=1, rotation_degrees=0, log_scale=0, elastic=1, elastic_voxels=0,
    intensity=1, log_gain=0, shift=0, log_gamma=0, noise=1, noise_std=0, bias=1, log_bias=0,
    resolution=1, resolution_factor=1,
)  # fmt: skip


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 8, 9, 7, generator=torch_generator(0, "image"))


@pytest.fixture
def inside() -> torch.Tensor:
    mask = torch.zeros(1, 8, 9, 7, dtype=torch.bool)
    mask[:, 1:6, 2:8, 1:6] = True
    return mask


@given(st.integers(0, 1000))
def test_same_generator_same_draw(seed: int) -> None:
    first, second = (
        draw_spatial(EVERYTHING, size=(8, 8, 8), generator=torch_generator(seed)) for _ in range(2)
    )
    assert first.flips == second.flips == (True, True, True)
    assert torch.equal(first.matrix, second.matrix)  # type: ignore[arg-type]
    assert torch.equal(first.displacement, second.displacement)  # type: ignore[arg-type]
    other = draw_spatial(EVERYTHING, size=(8, 8, 8), generator=torch_generator(seed + 1))
    assert not torch.equal(first.matrix, other.matrix)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [NOTHING, FEEBLE])
def test_zero_strength_leaves_intensities(
    image: torch.Tensor, inside: torch.Tensor, settings: AugmentSettings
) -> None:
    changed = augment_intensity(image, inside, settings=settings, generator=torch_generator(1))
    assert torch.allclose(changed, image, atol=1e-5)


def test_zero_strength_leaves_places(image: torch.Tensor) -> None:
    assert draw_spatial(NOTHING, size=(8, 9, 7), generator=torch_generator(1)).is_exact
    draw = draw_spatial(FEEBLE, size=(8, 9, 7), generator=torch_generator(1))
    grid = sampling_grid(draw, size=(8, 9, 7), centre=torch.tensor([3.5, 4, 3]), shape=(8, 9, 7))
    assert torch.allclose(warp(image, grid, mode="bilinear"), image, atol=1e-4)
    assert torch.equal(warp(image, grid, mode="nearest"), image)


@given(st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_flip_is_exact_and_its_own_inverse(flips: tuple[bool, bool, bool]) -> None:
    patch = torch.randn(2, 3, 4, 5, generator=torch_generator(0))
    flipped = flip(patch, flips)
    assert torch.equal(flip(flipped, flips), patch)
    corner = tuple(-1 if flipped_axis else 0 for flipped_axis in flips)
    assert torch.equal(flipped[:, 0, 0, 0], patch[(slice(None), *corner)])


@pytest.mark.parametrize("dims", [2, 3])
def test_rotations_are_rotations(dims: int) -> None:
    angles = torch.tensor([0.3] if dims == 2 else [0.3, -0.4, 0.5])
    matrix = rotation_matrix(angles)
    assert torch.allclose(matrix @ matrix.T, torch.eye(dims), atol=1e-6)
    assert torch.linalg.det(matrix) == pytest.approx(1)
    quarter = rotation_matrix(torch.tensor([math.pi / 2]))
    assert torch.allclose(quarter, torch.tensor([[0.0, -1.0], [1.0, 0.0]]), atol=1e-6)


def test_affine_agrees_with_scipy() -> None:
    block = torch.randn(1, 14, 12, 13, generator=torch_generator(0))
    matrix = rotation_matrix(torch.tensor([0.2, 0.1, -0.3])) * torch.tensor([1.1, 0.9, 1.0])
    size, centre = (5, 4, 6), torch.tensor([6.2, 5.5, 6.0])
    grid = sampling_grid(
        SpatialDraw((False,) * 3, matrix), size=size, centre=centre, shape=(14, 12, 13)
    )
    half = torch.tensor([(length - 1) / 2 for length in size])
    offset = centre - matrix @ half
    expected = affine_transform(
        block[0].numpy(),
        matrix.numpy(),
        offset=offset.tolist(),  # pyright: ignore[reportArgumentType]
        output_shape=size,
        order=1,
    )
    found = warp(block, grid, mode="bilinear")[0]
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-4)


def test_displacement_moves_by_whole_voxels(image: torch.Tensor) -> None:
    displacement = torch.zeros(3, 3, 3, 3)
    displacement[1] = 2.0
    draw = SpatialDraw((False,) * 3, displacement=displacement)
    grid = sampling_grid(draw, size=(8, 9, 7), centre=torch.tensor([3.5, 4, 3]), shape=(8, 9, 7))
    moved = warp(image, grid, mode="nearest")
    assert torch.equal(moved[:, :, :7], image[:, :, 2:])
    assert not moved[:, :, 7:].any()
    assert reach_voxels(draw, (8, 9, 7))[1] >= 4 + 2


@given(st.integers(0, 200))
def test_nothing_changes_outside_the_brain(seed: int) -> None:
    brain = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    brain[:, 2:6, 2:6, 2:6] = True
    image = torch.randn(2, 8, 8, 8, generator=torch_generator(seed)) * brain
    changed = augment_intensity(image, brain, settings=EVERYTHING, generator=torch_generator(seed))
    assert torch.isfinite(changed).all()
    assert not changed[~brain.expand_as(changed)].any()
    assert not torch.allclose(changed, image)


def test_no_brain_in_sight(image: torch.Tensor) -> None:
    nowhere = torch.zeros(1, 8, 9, 7, dtype=torch.bool)
    changed = augment_intensity(image, nowhere, settings=EVERYTHING, generator=torch_generator(0))
    assert torch.equal(changed, image)


def test_contrast_curve(image: torch.Tensor, inside: torch.Tensor) -> None:
    inside = inside.expand_as(image)
    gain, shift, gamma = torch.tensor([2.0, 1.0]), torch.tensor([0.0, 0.5]), torch.tensor([1.0, 2])
    changed = change_contrast(image, inside, gain=gain, shift=shift, gamma=gamma)
    assert torch.allclose(changed[0][inside[0]], 2 * image[0][inside[0]], atol=1e-4)
    before, after = image[1][inside[1]], changed[1][inside[1]]
    assert torch.equal(before.argsort(), after.argsort())  # order is kept
    assert after.min() == pytest.approx(float(before.min()) + 0.5, abs=1e-4)
    assert after.max() == pytest.approx(float(before.max()) + 0.5, abs=1e-4)


def test_bias_scales_the_signal_above_zero(image: torch.Tensor, inside: torch.Tensor) -> None:
    inside = inside.expand_as(image)
    changed = multiply_bias(
        image, inside, log_field=torch.full_like(image, math.log(2)), scanner_zero=-3.0
    )
    assert torch.allclose(changed[inside], (image[inside] + 3) * 2 - 3, atol=1e-5)
    assert torch.equal(changed[~inside], image[~inside])


def test_noise_is_added(image: torch.Tensor, inside: torch.Tensor) -> None:
    inside = inside.expand_as(image)
    changed = add_noise(image, inside, noise=torch.ones_like(image))
    assert torch.equal(changed, image + inside)


def test_coarsening_keeps_the_mean_and_smooths_one_axis() -> None:
    image = torch.randn(1, 8, 8, 8, generator=torch_generator(0))
    everywhere = torch.ones_like(image, dtype=torch.bool)
    coarse = coarsen(image, everywhere, axis=1, factor=2.0)
    assert float(coarse.mean()) == pytest.approx(float(image.mean()), abs=1e-5)
    assert coarse.diff(dim=2).abs().mean() < 0.6 * image.diff(dim=2).abs().mean()


@given(st.lists(st.booleans(), min_size=1, max_size=4), st.integers(0, 500))
def test_dropout_spares_one_present_channel(present: list[bool], seed: int) -> None:
    mask = torch.tensor(present)
    kept = draw_kept_channels(mask, chance=0.9, generator=torch_generator(seed))
    assert not (kept & ~mask).any()
    assert bool(kept.any()) == any(present)
    whole = draw_kept_channels(mask, chance=0.0, generator=torch_generator(seed))
    assert torch.equal(whole, mask)


def test_dropout_frequency() -> None:
    present = torch.ones(2, dtype=torch.bool)
    generator = torch_generator(0)
    kept = torch.stack(
        [draw_kept_channels(present, chance=0.3, generator=generator) for _ in range(2000)]
    )
    # Both are dropped in 9 % of the draws, and then one of them is brought back.
    assert kept.float().mean().item() == pytest.approx(0.7 + 0.045, abs=0.03)
    assert kept[:, 0].float().mean().item() == pytest.approx(0.745, abs=0.04)
