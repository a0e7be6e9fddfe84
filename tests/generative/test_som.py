import math

import numpy as np
import pytest
import torch
from minisom import MiniSom
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from torch import Tensor

from medseg.errors import ModelError, ShapeError
from medseg.generative.codebook import (
    CompetitionSettings,
    grid_distances,
    online_step,
    start_nodes,
    train_codebook,
)
from medseg.generative.som import Som, SomSettings
from medseg.priors.gaussian import FullGaussian
from medseg.seeding import torch_generator

GRID = (5, 4)


def correlated(n: int = 300, d: int = 4) -> Tensor:
    generator = torch_generator(0, "correlated")
    factor = torch.randn(d, d, generator=generator)
    return torch.randn(n, d, generator=generator) @ factor.T


def blobs(n: int = 50) -> Tensor:
    generator = torch_generator(0, "blobs")
    centres = torch.tensor([[5.0, 5.0], [5.0, 8.0], [9.0, 5.0], [9.0, 9.0]])
    return torch.cat([c + 0.3 * torch.randn(n, 2, generator=generator) for c in centres])


def ring(n: int, generator: torch.Generator) -> Tensor:
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    return 3 * circle + 0.2 * torch.randn(n, 2, generator=generator)


def options(**competition: object) -> SomSettings:
    return SomSettings(
        size_x=GRID[0],
        size_y=GRID[1],
        standardise="none",
        competition=CompetitionSettings(**competition),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def oracle() -> tuple[MiniSom, Som, Tensor]:
    """minisom trained on the items, and a map of ours with minisom's nodes."""
    items = correlated()
    theirs = MiniSom(*GRID, 4, sigma=2.5, learning_rate=0.5, random_seed=0)
    theirs.random_weights_init(items.numpy())
    theirs.train_random(items.numpy(), 3000)
    ours = Som((4,), options())
    nodes = torch.from_numpy(theirs.get_weights().reshape(-1, 4)).float()
    ours.codebook.copy_(nodes)
    return theirs, ours, items


def test_errors_equal_those_of_minisom(oracle: tuple[MiniSom, Som, Tensor]) -> None:
    theirs, ours, items = oracle
    expected = theirs.quantization_error(items.numpy())
    assert ours.quantisation_error(items) == pytest.approx(expected, rel=1e-5)
    assert ours.topographic_error(items) == pytest.approx(theirs.topographic_error(items.numpy()))


def test_u_matrix_and_hits_equal_those_of_minisom(oracle: tuple[MiniSom, Som, Tensor]) -> None:
    theirs, ours, items = oracle
    u_matrix = ours.u_matrix()
    np.testing.assert_allclose(
        u_matrix / u_matrix.max(), theirs.distance_map(scaling="mean"), atol=1e-5
    )
    np.testing.assert_array_equal(ours.hits(items), theirs.activation_response(items.numpy()))


def test_online_step_equals_that_of_minisom() -> None:
    items = correlated(20)
    theirs = MiniSom(*GRID, 4, sigma=2.0, learning_rate=0.4, random_seed=1)
    nodes = torch.from_numpy(theirs.get_weights().reshape(-1, 4).copy()).float()
    for item in items:
        theirs.update(item.numpy(), theirs.winner(item.numpy()), 0, 100)
        online_step(
            nodes, item, grid_distances(GRID), rate=0.4, width=2.0, settings=CompetitionSettings()
        )
    np.testing.assert_allclose(nodes, theirs.get_weights().reshape(-1, 4), atol=1e-5)


@pytest.mark.parametrize("method", ["batch", "online"])
@pytest.mark.parametrize("start", ["plane", "small"])
def test_map_is_as_good_as_that_of_minisom(method: str, start: str) -> None:
    items = correlated()
    theirs = MiniSom(
        *GRID,
        4,
        sigma=2.5,
        learning_rate=0.5,
        random_seed=0,
        decay_function="linear_decay_to_zero",
        sigma_decay_function="linear_decay_to_one",
    )
    theirs.random_weights_init(items.numpy())
    theirs.train_random(items.numpy(), 4000)
    ours = Som((4,), options(method=method, start=start, width_end=1.0, max_steps=3000))
    ours.fit(items, generator=torch_generator(1))
    assert ours.quantisation_error(items) < 1.05 * theirs.quantization_error(items.numpy())
    assert ours.topographic_error(items) < theirs.topographic_error(items.numpy()) + 0.03


def test_map_keeps_the_order_of_a_square() -> None:
    items = torch.rand(500, 2, generator=torch_generator(0))
    som = Som((2,), options())
    som.fit(items, generator=torch_generator(1))
    assert som.topographic_error(items) < 0.02
    places = som.encode(items)
    # Far on the grid is far in the square.
    apart = cdist(places, places)[np.triu_indices(500)]
    correlation = np.corrcoef(apart, cdist(items, items)[np.triu_indices(500)])[0, 1]
    assert correlation > 0.9


def test_batch_winner_takes_all_is_k_means() -> None:
    items, grid = blobs(), (2, 2)
    settings = CompetitionSettings(competition="wta", start="items", epochs=100, tolerance=0)
    first = start_nodes(items, grid, "items", generator=torch_generator(3))
    expected = KMeans(4, init=first.numpy(), n_init=1, tol=0, max_iter=100).fit(items.numpy())
    fitted = train_codebook(items, grid, settings, generator=torch_generator(3))
    np.testing.assert_allclose(fitted.nodes, expected.cluster_centers_, atol=1e-4)
    assert fitted.error * len(items) == pytest.approx(expected.inertia_, rel=1e-4)


def test_online_winner_takes_all_comes_to_the_clusters() -> None:
    items = blobs()
    settings = CompetitionSettings(competition="wta", method="online", start="items", epochs=20)
    best = KMeans(4, n_init=10, random_state=0).fit(items.numpy()).inertia_ / len(items)
    fitted = [
        train_codebook(items, (2, 2), settings, generator=torch_generator(seed)).error
        for seed in range(4)
    ]
    assert min(fitted) < 1.2 * best


def test_winner_takes_most_gives_every_node_its_items() -> None:
    """All nodes start near 0, far from the items: one winner would take all of them for ever."""
    items = blobs()
    errors = {}
    for competition in ("wta", "wtm"):
        som = Som((2,), options(competition=competition, start="small", epochs=200))
        record = som.fit(items, generator=torch_generator(0))
        dead = int((som.hits(items) == 0).sum())
        assert bool(dead) == bool(record.warnings)
        errors[competition] = (som.quantisation_error(items), dead)
    assert errors["wta"][1] > 10
    assert errors["wtm"][1] < 5
    assert errors["wtm"][0] < 0.5 * errors["wta"][0]


def test_narrow_winner_takes_most_is_winner_takes_all() -> None:
    items, between = correlated(50), grid_distances(GRID)
    most, everything = (
        start_nodes(items, GRID, "items", generator=torch_generator(0)) for _ in range(2)
    )
    for item in items:
        soft, hard = (CompetitionSettings(competition=kind) for kind in ("wtm", "wta"))
        online_step(most, item, between, rate=0.3, width=0.01, settings=soft)
        online_step(everything, item, between, rate=0.3, width=0.01, settings=hard)
    torch.testing.assert_close(most, everything)


def test_starts() -> None:
    items = correlated()
    small = start_nodes(items, GRID, "small", generator=torch_generator(0))
    assert small.abs().max() <= 1 / (2 * 20)
    assert small.abs().max() > 0.9 / (2 * 20)
    plane = start_nodes(items, GRID, "plane", generator=torch_generator(0))
    assert torch.linalg.matrix_rank(plane - plane.mean(0), atol=1e-3) == 2
    torch.testing.assert_close(plane.mean(0), items.mean(0))
    line = start_nodes(items[:, :1], (5, 1), "plane", generator=torch_generator(0))
    assert torch.equal(line.flatten().argsort(), torch.arange(5))
    few = start_nodes(items[:3], GRID, "items", generator=torch_generator(0))
    assert few.shape == (20, 4)


def test_bubble_moves_whole_neighbourhoods() -> None:
    nodes = torch.zeros(9, 1)
    nodes[0] = 0.1
    settings = CompetitionSettings(neighbourhood="bubble")
    online_step(
        nodes, torch.ones(1), grid_distances((3, 3)), rate=1.0, width=1.0, settings=settings
    )
    assert nodes.reshape(3, 3).tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("method", ["batch", "online"])
def test_training_stops_once_the_error_settles(method: str) -> None:
    som = Som((2,), options(method=method, epochs=1000, tolerance=0.02, max_steps=4000))
    record = som.fit(blobs(20), generator=torch_generator(0))
    most = {"batch": 1000, "online": 4000}[method]
    assert most / 2 <= record.steps < most


def test_maps_have_the_items_own_numbers() -> None:
    items = correlated().reshape(-1, 2, 2)
    som = Som((2, 2), SomSettings(size_x=5, size_y=4, standardise="whiten"))
    som.fit(items, generator=torch_generator(0))
    planes = som.component_planes()
    assert planes.shape == (4, *GRID)
    torch.testing.assert_close(planes[2, 3, 1], som.node_items()[3, 1, 1, 0])
    node = som.node_items()[3, 1][None]
    assert som.encode(node).tolist() == [[3, 1]]
    torch.testing.assert_close(som.decode(torch.tensor([[3.0, 1.0]])), node)
    density = som.density_map(items, neighbours=3)
    u = som.standardiser(items.flatten(1))
    expected = np.sort(cdist(som.codebook, u), axis=1)[:, :3].mean(1).reshape(GRID)
    np.testing.assert_allclose(density, expected, atol=1e-3)
    assert int(som.hits(items).sum()) == len(items)


def test_mixture_equals_that_of_scikit_learn_and_integrates_to_one() -> None:
    items = ring(400, torch_generator(0))
    som = Som((2,), SomSettings(size_x=3, size_y=3))
    som.fit(items, generator=torch_generator(0))
    scale = float(som.standardiser.inverse_map[0, 0])
    mixture = GaussianMixture(9, covariance_type="full")
    mixture.weights_ = som.log_weights.exp().double().numpy()
    mixture.means_ = som.node_items().reshape(9, 2).double().numpy()
    factor = scale * som.log_std.exp()[:, None, None] * som.shape_factor
    mixture.covariances_ = (factor @ factor.mT).double().numpy()
    mixture.precisions_cholesky_ = np.linalg.inv(factor.double().numpy()).transpose(0, 2, 1)
    expected = mixture.score_samples(items.double().numpy())
    np.testing.assert_allclose(som.bound(items), expected, atol=1e-3)
    axis = torch.linspace(-8, 8, 321)
    grid = torch.cartesian_prod(axis, axis)
    mass = float(som.bound(grid).double().exp().sum() * (axis[1] - axis[0]) ** 2)
    assert mass == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shape", ["round", "full"])
def test_mixture_beats_a_gaussian_on_a_ring(shape: str) -> None:
    generator = torch_generator(0)
    train, held = ring(600, generator), ring(300, generator)
    som = Som((2,), SomSettings(shape=shape))  # type: ignore[arg-type]
    som.fit(train, generator=generator)
    gaussian = FullGaussian.fit(train[:, None]).log_bound(held[:, None])
    assert som.bound(held).mean() > gaussian.mean() + 0.5
    sampled = som.sample(1000, generator=generator).norm(dim=1)
    assert float(sampled.mean()) == pytest.approx(3, abs=0.15)


def test_few_items_of_many_numbers_keep_a_finite_density() -> None:
    items = torch.randn(8, 3, 3, 3, generator=torch_generator(0))
    som = Som((3, 3, 3), SomSettings())
    som.fit(items, generator=torch_generator(0))
    held = torch.randn(20, 3, 3, 3, generator=torch_generator(1))
    assert som.bound(held).mean() > -27 * 3


def test_what_cannot_be_asked_is_refused() -> None:
    items = correlated(30)
    som = Som((4,), SomSettings(size_x=1, size_y=1))
    som.fit(items, generator=torch_generator(0))
    with pytest.raises(ModelError, match=r"2 nodes, but the grid is \(1, 1\)"):
        som.topographic_error(items)
    with pytest.raises(ModelError, match="1 to 30 items, but neighbours is 31"):
        som.density_map(items, neighbours=31)
    with pytest.raises(ShapeError, match=r"\(m, 2\), but they are \(3, 5\)"):
        som.decode(torch.zeros(3, 5))
