import numpy as np
import pytest

from medseg.errors import ModelError
from medseg.generative.manifold import KernelRegression, tangent_at


def sphere(n: int, *, seed: int = 0) -> np.ndarray:
    """Return points of the unit sphere in three of five dimensions, with a little noise."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return np.hstack([points, np.zeros((n, 2))]) + 1e-3 * rng.normal(size=(n, 5))


def test_the_tangent_of_a_sphere_is_normal_to_the_radius() -> None:
    items = sphere(4000)
    for point in items[:5]:
        found = tangent_at(items, point, dimension=2, neighbours=30)
        np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(2), atol=1e-12)
        assert np.abs(found.basis @ point).max() < 0.06
        assert np.abs(found.basis[:, 3:]).max() < 0.06
        # Two dimensions vary, the others by curvature and noise alone.
        assert found.variances[2] < 0.05 * found.variances[1]
        off = found.distance(np.stack([point, 1.5 * point]))
        assert off[0] < 0.02
        assert off[1] == pytest.approx(0.5, abs=0.03)


def test_a_smooth_function_is_recovered_and_beats_the_mean() -> None:
    rng = np.random.default_rng(1)
    items = rng.uniform(-2, 2, (400, 2))

    def truth(x: np.ndarray) -> np.ndarray:
        return np.sin(2 * x[:, 0]) + 0.5 * x[:, 1]

    found = KernelRegression.fit(items, truth(items) + 0.1 * rng.normal(size=400))
    asked = rng.uniform(-1.7, 1.7, (200, 2))
    assert np.sqrt(np.mean((found(asked) - truth(asked)) ** 2)) < 0.15
    # The noise, and what is smoothed away.
    assert 0.1 < found.error < 0.25 < 0.5 * found.baseline


def test_the_bandwidth_is_that_of_the_least_leave_one_out_error() -> None:
    rng = np.random.default_rng(2)
    items = rng.normal(size=(30, 2))
    values = items[:, 0] + 0.2 * rng.normal(size=30)
    found = KernelRegression.fit(items, values)
    errors = []
    for width in (found.bandwidth, 0.5 * found.bandwidth, 2 * found.bandwidth):
        told = [
            KernelRegression(np.delete(items, i, 0), np.delete(values, i), width, 0, 0)(items[[i]])[
                0
            ]
            for i in range(30)
        ]
        errors.append(np.sqrt(np.mean((np.array(told) - values) ** 2)))
    assert min(errors) == errors[0]


def test_the_choice_of_a_bandwidth_does_not_flatter_the_error() -> None:
    # The least of 25 leave-one-out errors beats the mean on four in ten sets of pure noise.
    rng = np.random.default_rng(4)
    fits = [KernelRegression.fit(rng.normal(size=(20, 2)), rng.normal(size=20)) for _ in range(150)]
    assert np.mean([found.error < found.baseline for found in fits]) < 1 / 3
    tiny = KernelRegression.fit(np.arange(3.0)[:, None], np.array([0.0, 1.0, 0.0]))
    assert np.isfinite(tiny.error)


def test_noise_does_not_beat_the_mean_and_far_items_get_the_nearest_value() -> None:
    rng = np.random.default_rng(3)
    items = rng.normal(size=(60, 4))
    noise = KernelRegression.fit(items, rng.normal(size=60))
    assert noise.error > 0.9 * noise.baseline
    line = KernelRegression.fit(np.arange(9.0)[:, None], np.arange(9.0))
    assert line(np.array([[1e4]]))[0] == pytest.approx(8)


def test_what_cannot_be_told_is_refused() -> None:
    items = sphere(10)
    with pytest.raises(ModelError, match="neighbours is 20"):
        tangent_at(items, items[0], dimension=2)
    with pytest.raises(ModelError, match="10 items and 9 values"):
        KernelRegression.fit(items, np.arange(9.0))
    with pytest.raises(ModelError, match="are the same"):
        KernelRegression.fit(np.ones((5, 2)), np.arange(5.0))
    with pytest.raises(ModelError, match="finite"):
        KernelRegression.fit(np.full((5, 2), np.nan), np.arange(5.0))
