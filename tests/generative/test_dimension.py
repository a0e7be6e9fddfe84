"""Intrinsic dimensions of manifolds whose dimension is known, beside scikit-dimension."""

import numpy as np
import pytest
import torch

from medseg.errors import ModelError
from medseg.generative.dimension import (
    intrinsic_dimension,
    latent_size,
    mle_dimension,
    propose_latent,
    two_nn_dimension,
)
from medseg.seeding import numpy_generator


def plane(d: int, size: int, n: int = 1500) -> np.ndarray:
    """Return n items of a d-dimensional flat cube inside ``size`` dimensions."""
    rng = numpy_generator(0, "plane", d, size)
    directions = np.linalg.qr(rng.normal(size=(size, d)))[0]
    return rng.uniform(size=(n, d)) @ directions.T


def sphere(d: int, n: int = 1500) -> np.ndarray:
    """Return n items on the surface of a ball in d + 1 dimensions."""
    points = numpy_generator(0, "sphere", d).normal(size=(n, d + 1))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def swiss_roll(n: int = 1500) -> np.ndarray:
    rng = numpy_generator(0, "roll")
    angle, height = rng.uniform(5, 14, n), rng.uniform(0, 20, n)
    return np.stack([angle * np.cos(angle), height, angle * np.sin(angle)], 1)


@pytest.mark.parametrize(
    ("items", "d"),
    [(plane(1, 20), 1), (plane(2, 27), 2), (plane(5, 27), 5), (sphere(2), 2), (swiss_roll(), 2)],
    ids=["line", "plane", "cube 5", "sphere", "swiss roll"],
)
def test_the_dimension_of_known_manifolds(items: np.ndarray, d: int) -> None:
    found = intrinsic_dimension(items, generator=numpy_generator(0))
    assert found.two_nn == pytest.approx(d, rel=0.12)
    assert found.mle == pytest.approx(d, rel=0.12)
    assert found.low < found.two_nn < found.high
    assert latent_size(found) in (d, d + 1)


def test_moving_turning_and_stretching_all_directions_alike_changes_nothing() -> None:
    items = plane(3, 10, n=400)
    turn = np.linalg.qr(numpy_generator(1).normal(size=(10, 10)))[0]
    a = intrinsic_dimension(items, generator=numpy_generator(0))
    b = intrinsic_dimension(7 * items @ turn + 3, generator=numpy_generator(0))
    # Copies are sorted out first, so the resamples differ but the estimates do not.
    assert b.two_nn == pytest.approx(a.two_nn, rel=1e-6)
    assert b.mle == pytest.approx(a.mle, rel=1e-6)


def test_noise_is_seen_at_the_finest_scale_only() -> None:
    noise = 0.01 * numpy_generator(2).normal(size=(2000, 12))
    found = intrinsic_dimension(plane(2, 12, n=2000) + noise, generator=numpy_generator(0))
    sizes = sorted(found.by_items)
    assert found.by_items[sizes[-1]] > found.by_items[sizes[0]]
    assert found.by_items[sizes[0]] < 4


def test_it_agrees_with_scikit_dimension() -> None:
    oracle = pytest.importorskip("skdim", reason="scikit-dimension is not installed")
    from sklearn.neighbors import NearestNeighbors

    items = plane(4, 15, n=800)
    distances, _ = NearestNeighbors(n_neighbors=20).fit(items).kneighbors()
    assert two_nn_dimension(distances) == pytest.approx(
        oracle.id.TwoNN().fit(items).dimension_, rel=0.01
    )
    assert mle_dimension(distances) == pytest.approx(
        oracle.id.MLE(K=20).fit(items, n_neighbors=20).dimension_, rel=0.05
    )


def test_a_code_is_shorter_than_what_it_stands_for() -> None:
    items = torch.from_numpy(numpy_generator(0).normal(size=(500, 3)))
    assert propose_latent(items, generator=numpy_generator(0)) == 2
    kernels = torch.from_numpy(plane(4, 27)).reshape(-1, 3, 3, 3)
    assert propose_latent(kernels, generator=numpy_generator(0)) in (4, 5)


def test_too_few_different_items_are_refused() -> None:
    with pytest.raises(ModelError, match="10 different items, but there are 1"):
        intrinsic_dimension(np.ones((50, 3)), generator=numpy_generator(0))
    with pytest.raises(ModelError, match="finite"):
        intrinsic_dimension(np.full((50, 3), np.nan), generator=numpy_generator(0))
