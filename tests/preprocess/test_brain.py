import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medseg.errors import ScanError
from medseg.geometry import Grid
from medseg.io.nifti import read_label_map, read_scan
from medseg.preprocess.brain import (
    background_value,
    brain_mask,
    filled,
    largest_component,
    otsu_threshold,
)
from medseg.scan import Case, LabelMap, Scan

SHAPE = (24, 26, 22)
GRID = Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]))


def _ball(radius: float) -> np.ndarray:
    index = np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2
    return np.linalg.norm(index, axis=-1) <= radius


def _case(data: np.ndarray, **members: LabelMap) -> Case:
    return Case(
        "a", "a", {"flair": Scan(torch.from_numpy(data.astype(np.float32)), GRID)}, **members
    )


def _head(background: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(_ball(9), rng.normal(100, 20, SHAPE), background)


@pytest.mark.parametrize("background", [0.0, -3.16, 250.0])
def test_a_stripped_brain_is_what_is_not_background(background) -> None:
    data = _head(background)
    data[12, 13, 11] = background  # a hole
    data[1, 1, 1] = 5  # a speck
    mask = brain_mask(_case(data))
    assert np.array_equal(mask.data.numpy() > 0, _ball(9))
    assert mask.grid is GRID


def test_a_whole_head_in_noisy_air_is_found_by_otsu() -> None:
    rng = np.random.default_rng(0)
    data = np.abs(np.where(_ball(9), rng.normal(100, 15, SHAPE), rng.normal(0, 5, SHAPE)))
    assert background_value(torch.from_numpy(data)) is None
    found = brain_mask(_case(data)).data.numpy() > 0
    assert (found == _ball(9)).mean() > 0.99


def test_a_given_mask_is_taken_as_it_is_even_if_small() -> None:
    given_mask = torch.zeros(SHAPE, dtype=torch.uint8)
    given_mask[3, 3, 3] = 7
    case = _case(_head(0), brain=LabelMap(given_mask, GRID))
    assert brain_mask(case).data.sum() == 1


def test_no_brain_is_refused_with_its_volume() -> None:
    with pytest.raises(ScanError, match=r"'a'.*no brain found.*20 ml.*2\.05 ml"):
        brain_mask(_case(np.where(_ball(2), 5.0, 0.0)))
    empty = LabelMap(torch.zeros(SHAPE, dtype=torch.uint8), GRID)
    with pytest.raises(ScanError, match="no brain found"):
        brain_mask(_case(_head(0), brain=empty))


def test_the_scans_of_a_case_find_the_brain_together() -> None:
    left, right = _head(0), _head(0)
    left[14:], right[:10] = 0, 0  # each lost a part
    scans = {
        name: Scan(torch.from_numpy(data.astype(np.float32)), GRID)
        for name, data in (("flair", left), ("t1", right))
    }
    mask = brain_mask(Case("a", "a", scans))
    assert np.array_equal(mask.data.numpy() > 0, _ball(9))


@given(st.integers(0, 10**6), st.floats(0.2, 0.7))
def test_filling_and_components_are_those_of_scipy(seed, share) -> None:
    mask = np.random.default_rng(seed).random((8, 9, 7)) < share
    assert np.array_equal(filled(mask), ndimage.binary_fill_holes(mask))
    pieces, n = ndimage.label(mask)
    sizes = ndimage.sum(mask, pieces, range(1, n + 1))
    ours = largest_component(mask)
    assert ours.sum() == max(sizes)
    assert ndimage.label(ours)[1] == 1


def test_nothing_has_no_component() -> None:
    assert not largest_component(np.zeros((3, 4, 5), dtype=bool)).any()
    assert not filled(np.zeros((3, 4, 5), dtype=bool)).any()


@given(st.integers(0, 10**6))
def test_otsu_is_that_of_simpleitk(seed) -> None:
    rng = np.random.default_rng(seed)
    data = np.concatenate([rng.normal(0, 5, 900), rng.normal(40, 8, 600)]).reshape(10, 10, 15)
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(256)
    otsu.Execute(sitk.GetImageFromArray(data))
    assert otsu_threshold(data) == pytest.approx(otsu.GetThreshold(), abs=(np.ptp(data)) / 100)


def test_the_real_tumour_brain_is_found_without_its_mask(shared_data) -> None:
    folder = shared_data / "tumour_brats2013/pat0003"
    reference = read_label_map(folder / "brainmask.nii.gz").data > 0
    scan = read_scan(folder / "flair_znorm.nii.gz")  # background -3.16, cut at the back
    found = brain_mask(Case("p", "p", {"flair": scan})).data > 0
    overlap = 2 * (found & reference).sum() / (found.sum() + reference.sum())
    assert overlap > 0.99
