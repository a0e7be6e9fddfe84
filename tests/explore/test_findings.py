"""Laws of the map, the codes, the clusters and the odd ones, on data whose answer is known."""

import numpy as np
import pytest

from medseg.explore.clusters import agreements, find_clusters
from medseg.explore.embedding import principal_components, vae_codes
from medseg.explore.maps import cohort_map
from medseg.explore.names import compared
from medseg.explore.retrieval import METHODS, binary_codes, distances, hamming, nearest, recall_at
from medseg.explore.table import FeatureTable, make_table
from medseg.explore.unusual import find_unusual
from medseg.explore.view import spread
from medseg.seeding import numpy_generator


def blobs(n: int = 60, *, apart: float = 8.0, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return items in three clouds, and the cloud of each."""
    rng = numpy_generator(0, "blobs")
    label = np.arange(n) % 3
    return rng.normal(size=(n, d)) + apart * np.eye(d)[label], label


def table_of(values: np.ndarray, **groups: list[str]) -> FeatureTable:
    names = [f"c{i}" for i in range(len(values))]
    rows = [{f"f{j}": float(v) for j, v in enumerate(row)} for row in values]
    return make_table(names, rows, groups=groups)


# --- table ----------------------------------------------------------------------------------------


def test_constant_and_sparse_features_are_dropped_and_named() -> None:
    rows = [{"a": float(i), "same": 7.0} for i in range(10)]
    rows[0]["rare"] = 1.0
    rows[1]["rare"] = 2.0
    rows[2] |= {"t2.here": 1.0}
    table = make_table([str(i) for i in range(10)], rows, groups={})
    assert table.constant == ("same",)
    assert table.sparse == ("rare",)
    assert table.features == ("a", "t2.here")


def test_scores_do_not_depend_on_units_and_are_bounded() -> None:
    values, _ = blobs()
    values[0, 0] = 1e6
    a, b = table_of(values), table_of(3.5 * values - 2)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-9)
    assert np.abs(a.scores).max() <= 5
    np.testing.assert_allclose(a.in_units("f1", a.scores[:, 1]), a.column("f1"), rtol=1e-9)


def test_ratios_count_for_volumes_and_return_to_units() -> None:
    volumes = np.array([0.0, 1.0, 10.0, 100.0])
    steps = np.diff(compared("lesion.volume_ml", volumes))
    assert steps[1] == pytest.approx(steps[2], rel=0.6)
    rows = [{"lesion.volume_ml": float(v)} for v in volumes]
    table = make_table(list("abcd"), rows, groups={})
    np.testing.assert_allclose(
        table.in_units("lesion.volume_ml", table.scores[:, 0]), volumes, atol=1e-9
    )


# --- map ------------------------------------------------------------------------------------------


def test_laws_of_the_map() -> None:
    table = table_of(blobs()[0])
    som = cohort_map(table, seed=0)
    assert som.hits.sum() == len(table)
    assert sum(len(som.members(node)) for node in range(som.hits.size)) == len(table)
    assert som.planes.shape == (len(table.features), *som.grid)
    assert sorted(som.order) == list(range(len(table.features)))
    assert (som.u_matrix >= 0).all()
    assert (som.density >= 0).all()
    assert som.quantisation_error < 0.7 * som.one_node_error
    assert 0 <= som.topographic_error < 0.3


def test_nodes_with_scans_are_denser_than_nodes_without() -> None:
    som = cohort_map(table_of(blobs()[0]), seed=0)
    assert som.density[som.hits > 0].mean() < som.density[som.hits == 0].mean()


def test_ridges_of_the_u_matrix_part_the_clouds() -> None:
    table = table_of(blobs(120, apart=12.0, d=3)[0])
    som = cohort_map(table, seed=0)
    cloud = som.planes[:3].argmax(0)
    rows, columns = som.grid
    at_border = np.array(
        [
            [len(set(cloud[max(a - 1, 0) : a + 2, max(b - 1, 0) : b + 2].ravel())) > 1
             for b in range(columns)]
            for a in range(rows)
        ]
    )  # fmt: skip
    assert som.u_matrix[at_border].mean() > 1.3 * som.u_matrix[~at_border].mean()


# --- embedding ------------------------------------------------------------------------------------


def test_components_keep_distances_and_order_variance() -> None:
    scores = table_of(blobs()[0]).scores
    found = principal_components(scores)
    np.testing.assert_allclose(distances(found.codes), distances(scores), atol=1e-5)
    assert found.shares.sum() == pytest.approx(1)
    assert (np.diff(found.shares) <= 1e-12).all()
    assert found.kept(1.0) == len(found.shares)


def test_codes_of_an_autoencoder_tell_clouds_apart() -> None:
    values, label = blobs()
    found = vae_codes(table_of(values), seed=0)
    assert found is not None
    assert found.codes.shape == (60, 2)
    assert found.held_out_nats > found.gaussian_nats
    neighbours = nearest(distances(found.codes), 3)
    assert (label[neighbours] == label[:, None]).mean() > 0.8
    assert vae_codes(table_of(values[:20]), seed=0) is None


# --- codes ----------------------------------------------------------------------------------------


def test_exact_search_finds_all_and_blind_search_what_chance_does() -> None:
    scores, _ = blobs(80)
    exact = distances(scores)
    for k in (1, 5, 10):
        assert recall_at(exact, exact, k=k) == (1.0, 1.0)
    blind = numpy_generator(0).random(exact.shape)
    assert recall_at(blind, exact, k=10)[0] == pytest.approx(10 / 79, abs=0.06)


def test_ties_are_not_broken_in_the_order_of_the_files() -> None:
    same = np.zeros((200, 200))
    found = nearest(same, 5)
    assert (np.abs(found - np.arange(200)[:, None]) < 10).mean() < 0.3
    assert not (found == np.arange(200)[:, None]).any()


@pytest.mark.parametrize("method", METHODS)
def test_codes_find_more_than_chance_and_more_bits_more(method: str) -> None:
    scores = numpy_generator(1).normal(size=(150, 40)) * np.linspace(3, 0.3, 40)
    exact = distances(scores)
    recalls = [
        recall_at(hamming(binary_codes(scores, bits=b, method=method, seed=0)), exact, k=10)  # type: ignore[arg-type]
        for b in (2, 16)
    ]
    assert recalls[1][0] > recalls[0][0]
    assert recalls[1][0] > 3 * 10 / 149
    assert all(reranked >= plain for plain, reranked in recalls)


def test_hamming_counts_bits() -> None:
    codes = numpy_generator(2).random((9, 13)) > 0.5
    expected = (codes[:, None] != codes[None]).sum(2)
    np.testing.assert_array_equal(hamming(codes), expected)


# --- clusters -------------------------------------------------------------------------------------


def test_clouds_are_found_and_agree_with_what_they_are() -> None:
    values, label = blobs()
    found = find_clusters(values, seed=0)
    assert found.count == 3
    assert found.silhouette > 0.5
    shuffled = numpy_generator(0).permutation(label)
    groups = {"site": [f"s{i}" for i in label], "coin": [f"s{i}" for i in shuffled]}
    site, coin = agreements(found, values, groups, seed=0)
    assert site.rand == pytest.approx(1)
    assert site.silhouette == pytest.approx(found.silhouette)
    assert abs(coin.rand) < site.chance + 0.1 < 0.3


def test_groups_that_are_not_known_do_not_count() -> None:
    values, label = blobs(30)
    column = [f"s{i}" if i < 2 else "" for i in label]
    (one,) = agreements(find_clusters(values, seed=0), values, {"site": column}, seed=0)
    assert one.n == 20
    assert agreements(find_clusters(values, seed=0), values, {"a": ["x"] * 30}, seed=0) == []


# --- unusual --------------------------------------------------------------------------------------


def test_what_is_put_in_is_flagged_and_nothing_else() -> None:
    values = numpy_generator(3).normal(size=(40, 8))
    assert find_unusual(table_of(values), seed=0).flagged == ()
    values[7, 2] += 15
    found = find_unusual(table_of(values), seed=0)
    assert found.flagged[0] == 7
    assert found.reasons[7][0].feature == "f2"
    assert found.reasons[7][0].deviations > 5


def test_a_broken_correlation_is_seen_though_no_feature_is_remarkable() -> None:
    rng = numpy_generator(4)
    values = rng.normal(size=(60, 1)) + 0.05 * rng.normal(size=(60, 4))
    values[5] = [1.0, 1.0, 1.0, -1.0]
    found = find_unusual(table_of(values), seed=0)
    assert found.flagged[0] == 5
    assert found.reasons[5] == ()


def test_large_cohorts_are_judged_in_parts() -> None:
    values = numpy_generator(5).normal(size=(130, 5))
    values[100] += 9
    found = find_unusual(table_of(values), seed=0)
    assert found.flagged[0] == 100
    assert found.leave_out == "in 100 parts, each left out"


def test_spread_points_are_different_and_far_apart() -> None:
    points, label = blobs(60)
    assert {int(label[i]) for i in spread(points, 3)} == {0, 1, 2}
    assert len(set(spread(points, 10))) == 10
    assert len(spread(np.zeros((5, 2)), 4)) == 1
