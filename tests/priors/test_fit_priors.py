import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medseg.errors import PriorError
from medseg.priors.fit import (
    FitPriorSettings,
    fit_priors,
    held_out_nats,
    source_centred_priors,
)
from medseg.priors.gaussian import DiagonalGaussian, FullGaussian, SourceCentredGaussian
from medseg.priors.harvest import harvest
from medseg.priors.kernel_set import KernelSet
from medseg.priors.learned import VaePrior
from medseg.seeding import torch_generator

Make = Callable[..., nn.Module]
QUICK = {"max_steps": 60, "hidden": (16,), "latent": 2}
ALL = [
    FitPriorSettings(kind="diagonal"),
    FitPriorSettings(kind="diagonal", grouping="group"),
    FitPriorSettings(kind="gaussian"),
    FitPriorSettings(kind="gaussian", grouping="group"),
    FitPriorSettings(kind="vae", **QUICK),
    FitPriorSettings(kind="vae", grouping="group", **QUICK),
    FitPriorSettings(kind="vae", grouping="conditioned", **QUICK),
    FitPriorSettings(kind="vae", grouping="conditioned", condition="layer", **QUICK),
]


def named(option: FitPriorSettings) -> str:
    return f"{option.kind}-{option.grouping}-{option.condition}"


@pytest.fixture(scope="module")
def kernels(make_network: Make) -> KernelSet:
    return harvest([make_network(seed=s) for s in range(4)])


@pytest.mark.parametrize("option", ALL, ids=named)
def test_every_layer_gets_a_prior_in_the_units_of_its_weights(
    kernels: KernelSet, option: FitPriorSettings
) -> None:
    priors = fit_priors(kernels, option, seed=0)
    assert priors.layers == kernels.layer_names
    for name in priors.layers:
        own = kernels.of_layer(name)
        samples = priors.sample(name, 500, generator=torch_generator(1))
        ratio = float(samples.square().mean().sqrt()) / kernels.layer_scale(name)
        assert 0.6 < ratio < 1.7
        with torch.no_grad():
            good = priors.log_bound(name, own, generator=torch_generator(2)).mean()
            large = priors.log_bound(name, 5 * own, generator=torch_generator(2)).mean()
        assert good > large + 10


@pytest.mark.parametrize("option", ALL, ids=named)
@pytest.mark.parametrize("factor", [0.1, 20.0])
def test_units_of_the_kernels_enter_with_their_jacobian(
    kernels: KernelSet, option: FitPriorSettings, factor: float
) -> None:
    scaled = replace(kernels, kernels=factor * kernels.kernels)
    nats = []
    for each in (kernels, scaled):
        priors = fit_priors(each, option, seed=0)
        with torch.no_grad():
            parts = [
                priors.log_bound(name, each.of_layer(name), generator=torch_generator(0))
                for name in priors.layers
            ]
        nats.append(torch.cat(parts).mean())
    expected = nats[0] - 27 * math.log(factor)
    torch.testing.assert_close(nats[1], expected, rtol=0, atol=0.3)


def test_groups_share_an_autoencoder_and_its_inference_network(kernels: KernelSet) -> None:
    priors = fit_priors(kernels, ALL[5], seed=0)
    first, second, third, _ = (priors.prior_for(name) for name in priors.layers)
    assert isinstance(first, VaePrior)
    assert isinstance(second, VaePrior)
    assert isinstance(third, VaePrior)
    assert first.vae is second.vae
    assert first.inference is second.inference
    assert first.scale != second.scale
    assert first.vae is not third.vae


def test_condition_tells_layers_apart(kernels: KernelSet) -> None:
    priors = fit_priors(kernels, ALL[6], seed=0)
    told = [priors.prior_for(name).condition for name in priors.layers]  # type: ignore[union-attr]
    assert len({tuple(condition.tolist()) for condition in told}) == 4
    assert len(priors.trainable_parameters()) == 4


def test_scale_per_group_is_common_to_its_layers(kernels: KernelSet) -> None:
    option = FitPriorSettings(kind="diagonal", grouping="group", scale="group")
    priors = fit_priors(kernels, option, seed=0)
    first, second, other, _ = (priors.prior_for(name) for name in priors.layers)
    assert torch.equal(first.std, second.std)  # type: ignore[union-attr]
    assert not torch.equal(first.std, other.std)  # type: ignore[union-attr]


def test_fit_is_a_function_of_the_seed(kernels: KernelSet) -> None:
    hashes = [fit_priors(kernels, ALL[4], seed=seed).hash for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_provenance_says_where_the_priors_come_from(kernels: KernelSet) -> None:
    provenance = fit_priors(kernels, ALL[4], seed=3).provenance
    assert provenance["seed"] == 3
    assert provenance["kernels"] == kernels.hash
    assert provenance["settings"]["latent"] == 2
    assert provenance["fits"]["up.first"]["steps"] > 0


def test_held_out_table_is_side_by_side_and_adds_up(kernels: KernelSet) -> None:
    rows = held_out_nats(kernels, settings=ALL, seed=0, n_codes=8)
    table = rows[: len(ALL)]
    assert [(row["kind"], row["grouping"]) for row in table] == [
        (option.kind, option.grouping) for option in ALL
    ]
    assert {row["layer"] for row in table} == {"all"}
    assert {row["n_kernels"] for row in table} == {176}
    assert {row["held_out"] for row in table} == {"network 3"}
    assert {row["bound"] for row in table} == {"exact", "importance-weighted, 8 codes"}
    by_layer = [
        row for row in rows[len(ALL) :] if (row["kind"], row["grouping"]) == ("gaussian", "layer")
    ]
    weighted = sum(row["nats_per_kernel"] * row["n_kernels"] for row in by_layer)  # type: ignore[operator]
    assert weighted / 176 == pytest.approx(table[2]["nats_per_kernel"], rel=1e-4)


def test_held_out_gaussian_is_scored_exactly_on_the_network_left_out(kernels: KernelSet) -> None:
    (row, *_) = held_out_nats(kernels, settings=[ALL[2]], seed=0)
    train, held = kernels.of_networks([0, 1, 2]), kernels.of_networks([3])
    scores = [
        FullGaussian.fit(train.of_layer(name)).log_bound(held.of_layer(name))
        for name in kernels.layer_names
    ]
    assert row["nats_per_kernel"] == pytest.approx(float(torch.cat(scores).mean()), abs=0.02)


def test_held_out_nats_rank_structure_above_independence(kernels: KernelSet) -> None:
    options = [ALL[0], ALL[2], FitPriorSettings(max_steps=300)]
    diagonal, gaussian, vae = (
        row["nats_per_kernel"] for row in held_out_nats(kernels, settings=options, seed=0)[:3]
    )
    assert gaussian > diagonal + 2  # type: ignore[operator]
    assert vae > gaussian  # type: ignore[operator]


def test_one_network_holds_out_a_fifth_of_each_layer(kernels: KernelSet) -> None:
    options = [FitPriorSettings(kind="diagonal", min_kernels=2)]
    rows = held_out_nats(kernels.of_networks([2]), settings=options, seed=0)
    assert rows[0]["held_out"] == "a fifth of the kernels"
    assert [row["n_kernels"] for row in rows[1:]] == [3, 12, 12, 6]


def test_no_more_kernels_are_scored_than_asked(kernels: KernelSet) -> None:
    rows = held_out_nats(kernels, settings=[ALL[0]], seed=0, max_kernels=20)
    assert rows[0]["n_kernels"] == 20


def test_source_centred_priors_are_around_the_weights(make_network: Make) -> None:
    network = make_network()
    priors = source_centred_priors(network, relative_std=0.5)
    for name in priors.layers:
        prior, weight = priors.prior_for(name), network.get_submodule(name).weight.detach()  # type: ignore[union-attr, operator]
        assert isinstance(prior, SourceCentredGaussian)
        assert torch.equal(prior.mean.reshape(weight.shape), weight)
        rms = float(weight.square().mean().sqrt())
        assert float(prior.std.max()) == pytest.approx(0.5 * rms, rel=1e-5)


def test_two_dimensional_kernels_are_fitted_too(make_network: Make) -> None:
    flat = harvest([make_network(dims=2, seed=s) for s in range(2)])
    priors = fit_priors(flat, ALL[4], seed=0)
    assert priors.kernel_shape == (3, 3)


def test_gaussians_come_in_closed_form_types(kernels: KernelSet) -> None:
    assert isinstance(fit_priors(kernels, ALL[0], seed=0).prior_for("down.0"), DiagonalGaussian)
    assert isinstance(fit_priors(kernels, ALL[3], seed=0).prior_for("down.0"), FullGaussian)


@pytest.mark.parametrize("kind", ["diagonal", "gaussian", "vae"])
def test_too_few_kernels_are_refused(kernels: KernelSet, kind: str) -> None:
    settings = FitPriorSettings(kind=kind, min_kernels=65)  # type: ignore[arg-type]
    with pytest.raises(PriorError, match=r"at least 65 kernels .*'down.0' has 64.*Hint: Harvest"):
        fit_priors(kernels, settings, seed=0)


@pytest.mark.parametrize("kind", ["diagonal", "gaussian", "vae"])
def test_kernels_that_do_not_vary_are_refused(kernels: KernelSet, kind: str) -> None:
    values = kernels.kernels.clone()
    values[kernels.layer == 2] = 0.1
    with pytest.raises(PriorError, match=r"'up.first' are the same"):
        fit_priors(replace(kernels, kernels=values), FitPriorSettings(kind=kind), seed=0)  # type: ignore[arg-type]


def test_dead_layer_is_refused(kernels: KernelSet) -> None:
    values = kernels.kernels.clone()
    values[kernels.layer == 2] = 0
    with pytest.raises(PriorError, match=r"layer 'up.first' have a root mean square of 0"):
        fit_priors(replace(kernels, kernels=values), ALL[0], seed=0)


def test_gaussian_cannot_be_conditioned() -> None:
    with pytest.raises(ValidationError, match="needs kind 'vae', but the kind is 'gaussian'"):
        FitPriorSettings(kind="gaussian", grouping="conditioned")
