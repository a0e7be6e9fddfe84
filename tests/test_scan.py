import numpy as np
import pytest
import torch

from medseg.errors import GeometryError, ScanError, ShapeError
from medseg.geometry import Grid
from medseg.scan import Case, LabelMap, Scan


def _grid(offset_mm: float = 0.0, shape: tuple[int, int, int] = (4, 5, 6)) -> Grid:
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    affine[0, 3] = offset_mm
    return Grid(shape, affine)


def _scan(grid: Grid) -> Scan:
    return Scan(torch.zeros(grid.shape), grid)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scan(torch.zeros(4, 5, 7), _grid()),
        lambda: LabelMap(torch.zeros(4, 5, 7, dtype=torch.uint8), _grid()),
        lambda: Scan(torch.zeros(4, 5, 6, dtype=torch.int32), _grid()),
        lambda: LabelMap(torch.zeros(4, 5, 6), _grid()),
        lambda: LabelMap(torch.zeros(4, 5, 6, dtype=torch.bool), _grid()),
    ],
)
def test_data_that_do_not_fit_are_refused(make) -> None:
    # jaxtyping may refuse the type before the class does, where it is switched on.
    with pytest.raises((ShapeError, TypeError)):
        make()


def test_volume_counts_the_labels_asked_for() -> None:
    data = torch.zeros(4, 5, 6, dtype=torch.uint8)
    data[0, 0, :3] = 1
    data[1, 0, :5] = 4
    label_map = LabelMap(data, _grid())
    assert label_map.volume_ml((1,)) == pytest.approx(3 * 2 / 1000)
    assert label_map.volume_ml((1, 4)) == pytest.approx(8 * 2 / 1000)
    assert label_map.volume_ml((2,)) == 0


def test_a_case_has_the_grid_of_its_scans() -> None:
    case = Case("a", "s", {"flair": _scan(_grid()), "t1": _scan(_grid(0.05))})
    assert case.grid.matches(_grid(), tolerance_mm=0)
    assert not case.synthetic


def test_a_case_without_scans_is_refused() -> None:
    with pytest.raises(ScanError, match="'a'"):
        Case("a", "s", {})


def test_scans_that_lie_apart_are_refused_in_mm() -> None:
    with pytest.raises(GeometryError, match=r"'t1'.*3\.50 mm.*'flair'"):
        Case("a", "s", {"flair": _scan(_grid()), "t1": _scan(_grid(3.5))})


def test_masks_must_share_the_grid_too() -> None:
    other = _grid(shape=(4, 5, 7))
    mask = LabelMap(torch.zeros(other.shape, dtype=torch.uint8), other)
    with pytest.raises(GeometryError, match=r"\(4, 5, 6\).*'label'.*\(4, 5, 7\)"):
        Case("a", "s", {"flair": _scan(_grid())}, label=mask)
    with pytest.raises(GeometryError, match="'brain mask'"):
        Case("a", "s", {"flair": _scan(_grid())}, brain=mask)
