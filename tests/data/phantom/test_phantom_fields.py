import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.data.phantom.fields import (
    area_average,
    axis_grid,
    edge,
    sample,
    smooth_noise,
    voxel_points,
)

BOX = np.array([[-40.0, -50.0, -30.0], [41.0, 35.0, 37.0]])


@given(correlation_mm=st.floats(4.0, 30.0), seed=st.integers(0, 1000))
def test_noise_is_the_same_for_the_same_generator_state(correlation_mm: float, seed: int) -> None:
    grid = axis_grid(BOX[0], BOX[1], (6.0, 5.0, 7.0))
    first, second = (
        smooth_noise(grid, correlation_mm=correlation_mm, rng=np.random.default_rng(seed))
        for _ in range(2)
    )
    assert tuple(first.shape) == grid.shape
    assert torch.equal(first, second)


def test_noise_has_unit_root_mean_square_and_the_stated_correlation() -> None:
    grid = axis_grid(BOX[0], BOX[1], (1.5, 1.5, 1.5))
    noise = smooth_noise(grid, correlation_mm=6.0, rng=np.random.default_rng(0))
    assert float(noise.square().mean().sqrt()) == pytest.approx(1.0, rel=0.15)
    near = float((noise[1:] * noise[:-1]).mean())
    far = float((noise[16:] * noise[:-16]).mean())
    assert near > 0.8
    assert abs(far) < 0.15


def test_sampling_a_linear_field_gives_its_exact_values() -> None:
    grid = axis_grid(BOX[0], BOX[1], (4.0, 5.0, 6.0))
    points = voxel_points(grid)
    field = (points @ torch.tensor([0.3, -0.2, 0.5]))[None]
    inner = points[1:-1, 1:-1, 1:-1] + torch.tensor([1.0, -2.0, 0.7])
    expected = inner @ torch.tensor([0.3, -0.2, 0.5])
    torch.testing.assert_close(sample(field, grid, inner)[0], expected, atol=1e-3, rtol=1e-4)


@given(step=st.tuples(*[st.floats(2.0, 9.0)] * 3))
def test_area_average_keeps_the_total_volume(step: tuple[float, float, float]) -> None:
    source = axis_grid(BOX[0], BOX[1], (1.5, 2.0, 1.0))
    mask = ((voxel_points(source) - 1.0).norm(dim=-1) < 20.0).float()
    target = axis_grid(BOX[0] - 10.0, BOX[1] + 10.0, step)
    average = area_average(mask, source, target, width_mm=0.1)
    before = float(mask.sum()) * source.voxel_volume_mm3
    after = float(average.sum()) * target.voxel_volume_mm3
    assert after == pytest.approx(before, rel=1e-3)


def test_an_edge_is_one_half_on_the_border_and_falls_outwards() -> None:
    profile = edge(torch.linspace(-5.0, 5.0, 11), width_mm=1.0)
    assert float(profile[5]) == 0.5
    assert bool((profile.diff() < 0).all())
