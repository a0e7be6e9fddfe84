import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.calibration.review import can_flag, joint_doubt
from medseg.errors import DataError, ShapeError


def usual_signs(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return n cases with eleven signs: related, of all sizes, with heavy tails, one constant."""
    shared = rng.normal(size=(n, 1))
    signs = np.exp(shared * rng.uniform(0, 1, 11) + rng.standard_t(3, size=(n, 11)))
    signs *= np.logspace(-4, 4, 11)
    signs[:, 3] = 0.0
    return signs


@pytest.mark.parametrize("n", [4, 5, 9, 19, 40])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_as_many_usual_cases_are_flagged_as_may_be(n: int, share: float) -> None:
    repeats, rng = 3000, np.random.default_rng(n)
    flagged = []
    for _ in range(repeats):
        signs = usual_signs(rng, n + 1)
        flagged.append(joint_doubt(signs[:n], signs[n]).flagged(share).any())
    exact = math.floor(share * (n + 1) + 1e-9) / (n + 1)
    error = 4 * math.sqrt(exact * (1 - exact) / repeats)
    assert share - 1 / (n + 1) < exact <= share
    assert np.mean(flagged) == pytest.approx(exact, abs=error)


@given(st.integers(0, 10_000), st.integers(1, 30), st.floats(0.05, 0.9))
def test_a_case_beyond_all_is_flagged_where_any_can_be(seed: int, n: int, share: float) -> None:
    signs = usual_signs(np.random.default_rng(seed), n)
    beyond = signs.max(axis=0) + 100 * np.ptp(signs, axis=0) + 1.0
    found = joint_doubt(signs, beyond)
    assert found.flagged(share).any() == can_flag(n, share)
    assert found.percentile == 100


def test_one_strange_sign_is_enough_and_is_the_one_named() -> None:
    signs = usual_signs(np.random.default_rng(0), 20)
    strange = np.median(signs, axis=0)
    strange[5] += 1000 * np.ptp(signs[:, 5])
    found = joint_doubt(signs, strange)
    assert found.flagged(0.2).nonzero()[0].tolist() == [5]
    assert found.joint == found.scores[5]


@given(st.integers(0, 10_000), st.floats(0.001, 1000), st.floats(-5, 5))
def test_units_of_a_sign_do_not_matter(seed: int, factor: float, offset: float) -> None:
    signs = np.random.default_rng(seed).exponential(size=(12, 3))
    other = signs * [1.0, factor, 1.0] + [0.0, offset, 0.0]
    one, two = (joint_doubt(rows[:-1], rows[-1]) for rows in (signs, other))
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-6)


def test_cases_that_are_all_alike_are_not_flagged() -> None:
    assert not joint_doubt(np.zeros((30, 4)), np.zeros(4)).flagged(0.2).any()


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ShapeError, match="signs of usual ones"):
        joint_doubt(np.zeros((5, 3)), np.zeros(2))
    with pytest.raises(DataError, match="at least one usual case"):
        joint_doubt(np.zeros((0, 3)), np.zeros(3))
    with pytest.raises(DataError, match="not finite"):
        joint_doubt(np.zeros((5, 3)), np.array([0.0, np.nan, 0.0]))
