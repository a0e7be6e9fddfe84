import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from medseg.data.phantom.anatomy import mni_anatomy
from medseg.data.phantom.deformation import (
    Deformation,
    Push,
    draw_deformation,
    jacobian_determinant,
)
from medseg.data.phantom.fields import axis_grid, sample, voxel_points
from medseg.data.phantom.presets import PRESETS


@limits(max_examples=8)
@given(seed=st.integers(0, 10_000), preset=st.sampled_from(sorted(PRESETS)))
def test_deformations_have_no_folds(seed: int, preset: str) -> None:
    anatomy = mni_anatomy((6.0, 6.0, 6.0))
    drawn = draw_deformation(anatomy, PRESETS[preset].anatomy, np.random.default_rng(seed))
    assert float(jacobian_determinant(drawn).min()) > 0.05
    assert float(drawn.offset_mm.norm(dim=0).max()) > 2.0


@limits(max_examples=8)
@given(
    seed=st.integers(0, 10_000),
    radius_mm=st.floats(8.0, 27.0),
    strength=st.floats(0.05, 0.32),
)
def test_a_mass_leaves_the_map_invertible(seed: int, radius_mm: float, strength: float) -> None:
    anatomy = mni_anatomy((6.0, 6.0, 6.0))
    rng = np.random.default_rng(seed)
    drawn = draw_deformation(anatomy, PRESETS["target"].anatomy, rng)
    depth = sample(
        anatomy.depth_mm[None], anatomy.grid, drawn.template_points(voxel_points(drawn.grid))
    )[0]
    centre = (float(rng.uniform(-40, 40)), float(rng.uniform(-60, 30)), float(rng.uniform(0, 40)))
    push = Push(centre, 1.8 * radius_mm, strength)
    assert float(jacobian_determinant(drawn.pushed([push], depth)).min()) > 0.02


def test_a_mass_drives_tissue_outwards_and_spares_the_surface() -> None:
    grid = axis_grid(np.full(3, -60.0), np.full(3, 60.0), (4.0, 4.0, 4.0))
    still = Deformation(torch.zeros((3, *grid.shape)), grid)
    points = voxel_points(grid)
    deep = torch.full(grid.shape, 50.0)
    pushed = still.pushed([Push((0.0, 0.0, 0.0), 30.0, 0.3)], deep)
    seen = pushed.template_points(points)
    # What is now at 20 mm was nearer to the centre before.
    assert bool((seen.norm(dim=-1) <= points.norm(dim=-1) + 1e-4).all())
    surface = still.pushed([Push((0.0, 0.0, 0.0), 30.0, 0.3)], torch.zeros(grid.shape))
    assert float(surface.offset_mm.abs().max()) == pytest.approx(0.0, abs=1e-4)


def test_a_push_has_the_stated_size_along_a_ray() -> None:
    grid = axis_grid(np.full(3, -62.0), np.full(3, 62.0), (4.0, 4.0, 4.0))
    still = Deformation(torch.zeros((3, *grid.shape)), grid)
    pushed = still.pushed([Push((0.0, 0.0, 0.0), 30.0, 0.3)], torch.full(grid.shape, 50.0))
    place = torch.tensor([[[[20.0, 0.0, 0.0]]]])
    expected = 20.0 * (1.0 - 0.3 * np.exp(-(20.0**2) / (2 * 30.0**2)))
    assert float(pushed.template_points(place)[0, 0, 0, 0]) == pytest.approx(expected, abs=0.05)
