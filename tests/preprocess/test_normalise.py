import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import minmax_scale, scale

from medseg.errors import ScanError, ShapeError
from medseg.geometry import Grid
from medseg.preprocess.normalise import Normalise, normalise
from medseg.scan import LabelMap, Scan

SHAPE = (5, 6, 7)
ORACLES = {"zscore": scale, "minmax": minmax_scale}


def _case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    data = torch.from_numpy(rng.normal(300, 40, SHAPE).astype(np.float32))
    return data, torch.from_numpy(rng.random(SHAPE) < 0.5)


@given(st.integers(0, 10**6), st.sampled_from(["zscore", "minmax"]))
def test_inside_as_sklearn_does_and_zero_outside(seed, kind) -> None:
    data, mask = _case(seed)
    ours = normalise(data, mask, kind=kind)
    assert np.allclose(ours[mask], ORACLES[kind](data[mask].double().numpy()), atol=1e-4)
    assert not ours[~mask].any()


@given(st.floats(0.1, 100), st.floats(-500, 500), st.sampled_from(["zscore", "minmax"]))
def test_units_of_the_scanner_do_not_matter(gain, offset, kind) -> None:
    data, mask = _case(0)
    a, b = normalise(data, mask, kind=kind), normalise(gain * data + offset, mask, kind=kind)
    assert torch.allclose(a, b, atol=5e-3)


def test_none_changes_nothing() -> None:
    data, mask = _case(0)
    assert torch.equal(normalise(data, mask, kind="none"), data)


@pytest.mark.parametrize("kind", ["zscore", "minmax"])
def test_a_brain_without_contrast_is_refused(kind) -> None:
    data, mask = _case(0)
    data[mask] = 300.1
    with pytest.raises(ScanError, match=r"300\.1 everywhere"):
        normalise(data, mask, kind=kind)


def test_a_mask_of_another_grid_is_refused() -> None:
    data, mask = _case(0)
    step = Normalise(LabelMap(mask.to(torch.uint8), Grid(SHAPE, np.eye(4))))
    with pytest.raises(ShapeError, match=r"\(4, 6, 7\)"):
        step.apply(Scan(data[:4].contiguous(), Grid((4, 6, 7), np.eye(4))))
