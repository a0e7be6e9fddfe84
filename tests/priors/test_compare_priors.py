import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from medseg.errors import PriorError
from medseg.priors.compare import REAL, compare_priors
from medseg.priors.fit import FitPriorSettings
from medseg.priors.gaussian import FullGaussian
from medseg.priors.harvest import harvest
from medseg.priors.kernel_set import KernelSet
from medseg.priors.two_sample import two_sample_accuracy
from medseg.seeding import torch_generator

Make = Callable[..., nn.Module]
CHAINS = {"hidden": 4, "sample_sweeps": 4, "contrastive": {"fit": {"max_steps": 20}}}
SMALL = {
    "diagonal": FitPriorSettings(kind="diagonal"),
    "grouped": FitPriorSettings(kind="gaussian", grouping="group"),
    "full": FitPriorSettings(kind="gaussian"),
    "vae": FitPriorSettings(
        kind="vae", model={"latent": 2, "hidden": (8,), "fit": {"max_steps": 20}}
    ),
    "rbm": FitPriorSettings(kind="rbm", grouping="group", model=CHAINS),
}


@pytest.fixture(scope="module")
def kernels(make_network: Make) -> KernelSet:
    return harvest([make_network(seed=s) for s in range(4)])


def test_table_is_side_by_side_and_adds_up(kernels: KernelSet) -> None:
    rows = compare_priors(kernels, settings=SMALL, seed=0, n_codes=8)
    table = rows[: len(SMALL)]
    assert [(row["prior"], row["kind"], row["grouping"]) for row in table] == [
        (name, option.kind, option.grouping) for name, option in SMALL.items()
    ]
    assert {row["layer"] for row in table} == {"all"}
    assert {row["n_kernels"] for row in table} == {176}
    assert {row["held_out"] for row in table} == {"network 3"}
    bounds = [row["bound"] for row in table]
    assert bounds == [*["exact"] * 3, "importance-weighted, 8 codes", "unnormalised"]
    by_layer = [row for row in rows[len(SMALL) :] if row["prior"] == "full"]
    weighted = sum(row["nats_per_kernel"] * row["n_kernels"] for row in by_layer)  # type: ignore[operator]
    assert weighted / 176 == pytest.approx(table[2]["nats_per_kernel"], rel=1e-4)


def test_what_is_not_normalised_gets_no_nats(kernels: KernelSet) -> None:
    rows = compare_priors(kernels, settings={"rbm": SMALL["rbm"]}, seed=0)
    assert all(math.isnan(float(str(row["nats_per_kernel"]))) for row in rows)


def test_gaussian_is_scored_exactly_on_the_network_left_out(kernels: KernelSet) -> None:
    (row, *_) = compare_priors(kernels, settings={"full": SMALL["full"]}, seed=0)
    train, held = kernels.of_networks([0, 1, 2]), kernels.of_networks([3])
    scores = [
        FullGaussian.fit(train.of_layer(name)).log_bound(held.of_layer(name))
        for name in kernels.layer_names
    ]
    assert row["nats_per_kernel"] == pytest.approx(float(torch.cat(scores).mean()), abs=0.02)


def test_nats_rank_structure_above_independence(kernels: KernelSet) -> None:
    vae = FitPriorSettings(model={"fit": {"max_steps": 300}})
    options = {"diagonal": SMALL["diagonal"], "full": SMALL["full"], "vae": vae}
    rows = compare_priors(kernels, settings=options, seed=0)
    first, second, third = (float(str(row["nats_per_kernel"])) for row in rows[:3])
    assert second > first + 2
    assert third > second


def test_one_network_holds_out_a_fifth_of_each_layer(kernels: KernelSet) -> None:
    options = {"few": FitPriorSettings(kind="diagonal", min_kernels=2)}
    rows = compare_priors(kernels.of_networks([2]), settings=options, seed=0)
    assert rows[0]["held_out"] == "a fifth of the kernels"
    assert [row["n_kernels"] for row in rows[1:]] == [3, 12, 12, 6]


def test_no_more_kernels_are_scored_than_asked(kernels: KernelSet) -> None:
    options = {"diagonal": SMALL["diagonal"]}
    rows = compare_priors(kernels, settings=options, seed=0, max_kernels=20)
    assert rows[0]["n_kernels"] == 20


def test_classifiers_tell_poor_samples_and_not_real_kernels(kernels: KernelSet) -> None:
    options = {"diagonal": SMALL["diagonal"], "full": SMALL["full"]}
    rows = compare_priors(kernels, settings=options, seed=0, two_sample=150)
    table = {row["prior"]: row for row in rows if row["layer"] == "all"}
    assert list(table) == ["diagonal", "full", REAL]
    found = {name: float(str(row["two_sample_logistic"])) for name, row in table.items()}
    assert found["diagonal"] > found["full"] > 0.5
    assert abs(found[REAL] - 0.5) < 0.1
    assert {row["two_sample_n"] for row in table.values()} == {150}


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_accuracy_is_half_for_one_distribution_and_one_for_two(shift: float) -> None:
    generator = torch_generator(0)
    real, sampled = torch.randn(2, 200, 3, 3, generator=generator)
    found = two_sample_accuracy(real, sampled + shift, seed=0)
    assert found.n == 200
    for accuracy, deviation in (
        (found.logistic, found.logistic_sd),
        (found.forest, found.forest_sd),
    ):
        assert 0 <= deviation < 0.1
        assert accuracy > 0.98 if shift else abs(accuracy - 0.5) < 0.1
    assert found == two_sample_accuracy(real, sampled + shift, seed=0)


def test_a_product_is_seen_where_no_single_number_differs() -> None:
    generator = torch_generator(0)
    noise = torch.randn(400, 2, generator=generator)
    same = noise[:200, :1].expand(-1, 2)
    found = two_sample_accuracy(noise[200:], same + 1e-3 * noise[:200], seed=0)
    assert found.logistic > 0.7


@pytest.mark.parametrize(
    ("real", "sampled", "words"),
    [
        (torch.zeros(20, 3, 3), torch.zeros(19, 3, 3), "as many real as sampled"),
        (torch.zeros(9, 3, 3), torch.zeros(9, 3, 3), "at least 10"),
        (torch.zeros(20, 3, 3), torch.full((20, 3, 3), torch.nan), "some not finite"),
    ],
)
def test_kernels_that_cannot_be_compared_are_refused(
    real: torch.Tensor, sampled: torch.Tensor, words: str
) -> None:
    with pytest.raises(PriorError, match=words):
        two_sample_accuracy(real, sampled, seed=0)
