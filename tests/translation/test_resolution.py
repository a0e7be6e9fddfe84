"""Thin slices agree with the thick ones they were made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.errors import GeometryError, ShapeError
from medseg.geometry import Grid
from medseg.translation.apply import average_slices, thick_axis, thinner, translate
from medseg.translation.fit import train_translator
from medseg.translation.resolution import (
    SuperResolver,
    interpolate_slices,
    match_slices,
    thicken,
)


def test_any_network_averages_to_its_input() -> None:
    torch.manual_seed(0)
    network = SuperResolver(factor=3, reach=1, widths=(4, 8)).double()
    torch.nn.init.normal_(network.unet.head.weight)
    thick = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    thin = network(thick)
    assert thin.shape == (2, 1, 15, 16)
    assert (thin - match_slices(interpolate_slices(thick, 3)[:, 1:2], thick[:, 1:2], 3)).std() > 0.1
    assert torch.allclose(thicken(thin, 3), thick[:, 1:2], atol=1e-12)


def test_matching_is_the_nearest_consistent_volume() -> None:
    """The change is orthogonal to every change that keeps the averages."""
    thin, thick = torch.randn(1, 1, 8, 6).double(), torch.randn(1, 1, 4, 6).double()
    change = match_slices(thin, thick, 2) - thin
    free = torch.randn(1, 1, 8, 6).double()
    free = free - thicken(free, 2).repeat_interleave(2, dim=2)
    assert abs(float((change * free).sum())) < 1e-12
    again = match_slices(thin + change, thick, 2)
    assert torch.allclose(again, thin + change, atol=1e-12)


def test_interpolation_keeps_a_ramp_between_the_middles() -> None:
    thin = torch.arange(12.0).reshape(1, 1, 12, 1)
    found = interpolate_slices(thicken(thin, 3), 3).flatten()
    assert torch.allclose(found[1:-1], thin.flatten()[1:-1], atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_thin_scan_of_any_axis_averages_to_the_thick_one(source, settings, axis: int) -> None:
    shape, spacing = [16, 16, 16], [6.0, 6.0, 6.0]
    trained = train_translator(
        settings("super_resolution"), source({"a": lambda t: t}, shape=shape, n=2)
    )
    shape[axis], spacing[axis] = 6, 16.0
    case = source({"a": lambda t: t}, shape=shape, spacing_mm=spacing, n=1)[0]
    made = translate(trained, case)["a"]
    assert made.grid.spacing_mm[axis] == pytest.approx(8.0)
    assert np.allclose(made.grid.corners_mm().mean(0), case.grid.corners_mm().mean(0))
    averages = average_slices(made.data, axis=axis, factor=2)
    assert torch.allclose(averages, case.scans["a"].data, rtol=0, atol=2e-5)


def test_a_finer_grid_covers_the_same_space() -> None:
    affine = np.array([[0.0, 2, 0, 5], [-1, 0, 0, 7], [0, 0, 6, -3], [0, 0, 0, 1]])
    grid = Grid((4, 5, 6), affine)
    fine = thinner(grid, axis=2, factor=3)
    assert fine.shape == (4, 5, 18)
    edges = [[-0.5, -0.5, -0.5], [3.5, 4.5, 5.5]]
    fine_edges = [[-0.5, -0.5, -0.5], [3.5, 4.5, 17.5]]
    assert np.allclose(grid.to_world(edges), fine.to_world(fine_edges))


def test_what_cannot_be_divided_is_refused(source, settings) -> None:
    with pytest.raises(ShapeError, match="at least two thick slices"):
        interpolate_slices(torch.zeros(1, 1, 1, 4), 2)
    with pytest.raises(ShapeError, match="2 at a time, but there are 5"):
        thicken(torch.zeros(1, 1, 5, 4), 2)
    with pytest.raises(GeometryError, match="thicker than"):
        thick_axis(Grid((4, 4, 4), np.eye(4)))
    trained = train_translator(settings("super_resolution"), source({"a": lambda t: t}, n=1))
    single = source({"a": lambda t: t}, shape=(16, 16, 1), spacing_mm=(9.0, 9.0, 60.0), n=1)[0]
    with pytest.raises(ShapeError, match="at least two thick slices"):
        translate(trained, single)
