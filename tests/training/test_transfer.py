"""Methods of transfer: what each keeps of the source, and what it may change."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medseg.data.regions import RegionSettings
from medseg.data.training_set import PatchSampler
from medseg.errors import TrainingError
from medseg.inference.ensemble import members_of
from medseg.priors.fit import FitPriorSettings, fit_priors
from medseg.priors.harvest import layer_kernels
from medseg.training.finish import interpolate
from medseg.training.loop import train
from medseg.training.objective import SegmentationObjective
from medseg.training.start import load_source
from medseg.training.transfer import (
    VARIATIONAL,
    MethodSettings,
    Source,
    finetune,
    new_network,
    patch_sampler,
)
from medseg.variational.convert import to_deterministic, variational_layers

METHODS = ("ri", "pr", "prf", "l2sp", "wise", "resampled", "mc_dropout", "swag", "gaussian", "dwp")
#: A step that goes nowhere: the network returned is the one the training began with.
STILL = {"steps": 1, "learning_rate": 1e-20}


@pytest.fixture(scope="module")
def source(toy):
    return toy.source()


def tuned(toy, source, method, *, names=("core", "whole"), settings=None, **changes):
    options = settings or {}
    network, _ = finetune(
        toy.cases(),
        toy.plan(names=names, **{"steps": 3, **changes}),
        MethodSettings(method=method, **options),
        source=source,
    )
    return network


def same(found, wanted):
    return {name for name, value in wanted.items() if torch.equal(found[name], value)}


# ------------------------------------------------------------------------------- loading a source


def test_a_new_network_is_decided_by_its_seed(toy):
    first, again, other = (new_network(toy.plan().architecture, seed=s) for s in (0, 0, 1))
    wanted = first.state_dict()
    assert same(again.state_dict(), wanted) == set(wanted)
    assert "stem.convs.0.weight" not in same(other.state_dict(), wanted)


def load(toy, source, *names, mode="regions"):
    regions = RegionSettings(mode=mode, names=names)
    architecture = replace(toy.plan().architecture, out_channels=regions.channels)
    network = new_network(architecture, seed=9)
    start = toy.tensors_of(network)
    fresh = load_source(network, source, regions)
    return network, fresh, start


def body(state):
    return {name: value for name, value in state.items() if not name.startswith("head")}


@pytest.mark.parametrize(
    ("names", "rows"),
    [(("core", "whole"), [0, 1]), (("whole", "core"), [1, 0]), (("whole",), [1])],
)
def test_the_head_is_loaded_by_region(toy, source, names, rows):
    network, fresh, _ = load(toy, source, *names)
    given = source.network.state_dict()
    assert fresh == ()
    assert same(network.state_dict(), body(given)) == set(body(given))
    assert torch.equal(network.head.weight, given["head.weight"][rows])
    assert torch.equal(network.head.bias, given["head.bias"][rows])


@pytest.mark.parametrize(("names", "mode"), [(("core", "new"), "regions"), (("core",), "classes")])
def test_a_head_for_something_else_is_fresh(toy, source, names, mode):
    network, fresh, start = load(toy, source, *names, mode=mode)
    given = source.network.state_dict()
    assert fresh == ("head",)
    assert same(network.state_dict(), body(given)) == set(body(given))
    assert torch.equal(network.head.weight, start["head.weight"])


def test_the_background_of_a_softmax_stays_first(toy):
    regions = RegionSettings(mode="classes", names=("a", "b"))
    architecture = replace(toy.plan().architecture, out_channels=3)
    given = Source(network=new_network(architecture, seed=2), regions=regions)
    network, fresh, _ = load(toy, given, "b", "a", mode="classes")
    assert fresh == ()
    assert torch.equal(network.head.weight, given.network.head.weight[[0, 2, 1]])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"widths": (4, 6)}, "encoder.0.convs.0.weight"),
        ({"in_channels": 1}, "stem.convs.0.weight"),
        ({"encoder_convs": 2}, "stem.convs.1.weight"),  # left over
        ({"widths": (4, 8, 8)}, "decoder.0.block.convs.0.weight"),
        ({"bias": False}, "stem.norms.0.shift"),  # missing
    ],
)
def test_a_source_of_another_architecture_is_refused(toy, change, fault):
    architecture = replace(toy.plan().architecture, **change)
    other = Source(network=new_network(architecture, seed=0), regions=toy.regions())
    with pytest.raises(TrainingError, match="architecture of the target network") as caught:
        load(toy, other, "core", "whole")
    assert fault in str(caught.value)


def test_loading_leaves_the_source_as_it_is(toy, source):
    before = toy.tensors_of(source.network)
    network, _, _ = load(toy, source, "core", "whole")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert same(source.network.state_dict(), before) == set(before)


# -------------------------------------------------------------------------------- all the methods


def test_all_methods_see_the_same_batches(toy, source, monkeypatch):
    ask, seen = PatchSampler.batch, []

    def batch(self, step):
        made = ask(self, step)
        seen.append((step, made.image.double().sum().item(), made.target.sum().item()))
        return made

    monkeypatch.setattr(PatchSampler, "batch", batch)
    found = {}
    for method in METHODS:
        seen.clear()
        tuned(toy, source, method)
        # They are prepared in threads, so the calls may come out of order.
        found[method] = sorted(seen)
    assert [row[0] for row in found["ri"]] == [0, 1, 2]
    assert all(rows == found["ri"] for rows in found.values())


@pytest.mark.parametrize("method", METHODS)
def test_the_source_is_left_as_it_is(toy, source, method):
    before = toy.tensors_of(source.network), toy.tensors_of(source.priors)
    tuned(toy, source, method)
    after = source.network.state_dict(), source.priors.state_dict()
    for found, wanted in zip(after, before, strict=True):
        assert same(found, wanted) == set(wanted)


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_method_that_transfers_needs_a_source(toy, method):
    with pytest.raises(TrainingError, match=f"'{method}' transfers from a source") as caught:
        tuned(toy, None, method)
    assert "method 'ri'" in str(caught.value.hint)


#: ``swag`` wraps what ``pr`` starts with.
AT_SOURCE = [name for name in METHODS[1:] if name not in ("resampled", "swag")]


@pytest.mark.parametrize("method", AT_SOURCE)
def test_every_method_but_ri_starts_at_the_source(toy, source, method):
    network = to_deterministic(tuned(toy, source, method, **STILL))
    wanted = source.network.state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-6)


def test_ri_starts_at_random(toy, source):
    network = tuned(toy, source, "ri", **STILL)
    wanted = new_network(toy.plan().architecture, seed=toy.plan().seed).state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("names", [("core", "whole"), ("core", "new")])
def test_prf_trains_the_input_and_output_blocks_alone(toy, source, names):
    network = tuned(toy, source, "prf", names=names)
    outer = (*network.input_block_names(), *network.output_block_names())
    given = body(source.network.state_dict())
    kept = same(network.state_dict(), given)
    inner = {name for name in given if not name.startswith(outer)}
    assert inner
    assert kept == inner


def distance(network, source):
    given = source.network.state_dict()
    return sum(float((v - given[k]).square().sum()) for k, v in body(network.state_dict()).items())


def test_a_stronger_pull_stays_nearer(toy, source):
    free, weak, strong = (
        distance(tuned(toy, source, "l2sp", settings={"l2sp_strength": s}, steps=8), source)
        for s in (0.0, 0.5, 50.0)
    )
    assert strong < weak < free
    assert free == distance(tuned(toy, source, "pr", steps=8), source)


def test_the_pull_leaves_a_fresh_head_alone(toy, source):
    network, result = finetune(
        toy.cases(),
        toy.plan(names=("core", "new"), log_every=1, **STILL),
        MethodSettings(method="l2sp"),
        source=source,
    )
    assert result.history[0]["squared_distance"] == pytest.approx(0.0, abs=1e-9)
    assert not torch.equal(network.head.weight, source.network.head.weight)


@pytest.mark.parametrize("names", [("core", "whole"), ("core", "new")])
def test_wise_goes_from_the_fine_tuned_weights_to_the_source(toy, source, names):
    found = {
        share: tuned(toy, source, "wise", names=names, settings={"wise_share": share}).state_dict()
        for share in (0.0, 0.5, 1.0)
    }
    plain = tuned(toy, source, "pr", names=names).state_dict()
    given = source.network.state_dict()
    for name, value in plain.items():
        assert torch.equal(found[0.0][name], value)
        back = value if name.startswith("head") and "new" in names else given[name]
        assert torch.equal(found[1.0][name], back)
        torch.testing.assert_close(found[0.5][name], (value + back) / 2)


def test_several_shares_are_networks_of_their_own(toy, source):
    alone = [tuned(toy, source, "wise", settings={"wise_share": share}) for share in (0.0, 0.5, 1)]
    found = members_of(tuned(toy, source, "wise", settings={"wise_share": (0.0, 0.5, 1.0)}))
    for one, other in zip(found, alone, strict=True):
        assert same(one.state_dict(), other.state_dict()) == set(one.state_dict())


def test_interpolation_keeps_its_end(toy):
    first, second = (new_network(toy.plan().architecture, seed=seed) for seed in (0, 1))
    wanted = toy.tensors_of(second)
    moved = copy.deepcopy(first)
    interpolate(moved, second, share=1.0)
    assert same(moved.state_dict(), wanted) == set(wanted)
    assert same(second.state_dict(), wanted) == set(wanted)


def test_weights_of_another_shape_are_not_gone_back_to(toy):
    one = new_network(toy.plan(names=("whole",)).architecture, seed=0)
    two = new_network(toy.plan(names=("core", "whole")).architecture, seed=1)
    before = toy.tensors_of(two)
    # One output would be spread over two without a word.
    with pytest.raises(TrainingError, match=r"head.weight has shape \(2, .*where it goes \(1, "):
        interpolate(two, one, share=0.5)
    assert same(two.state_dict(), before) == set(before)
    interpolate(two, one, share=0.5, skip=("head",))
    with pytest.raises(TrainingError, match="there is none"):
        interpolate(two, nn.Linear(1, 1), share=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_trains_has_its_dropout(toy, method):
    plain = toy.plan().architecture
    asked = MethodSettings(method=method, dropout=0.1)
    assert asked.trained_as.architecture(plain) == asked.architecture(plain) != plain


# ---------------------------------------------------------------------------- variational methods


VARIANTS = [("gaussian", "source"), ("dwp", "source"), ("dwp", "prior"), ("dwp", "resampled")]


@pytest.mark.parametrize(("method", "init"), VARIANTS)
def test_variational_methods_log_both_terms(toy, source, method, init):
    network, result = finetune(
        toy.cases(),
        toy.plan(steps=3, log_every=1),
        MethodSettings(method=method, init=init),
        source=source,
    )
    assert method in VARIATIONAL
    assert set(variational_layers(network)) == set(source.priors.layers)
    assert not network.training
    for row in result.history:
        wanted = {"data_nats", "kl_nats", "beta", "negative_elbo_nats", "cross_entropy_nats"}
        assert wanted <= row.keys()
        assert row["data_nats"] > 0
        assert row["negative_elbo_nats"] == pytest.approx(
            row["data_nats"] + row["beta"] * row["kl_nats"], rel=1e-4
        )
        # One mean brain (1000 voxels), two regions, two scans.
        assert row["data_nats"] == pytest.approx(row["cross_entropy_nats"] * 4000, rel=1e-4)


def means(network):
    return {
        name: layer.posterior.mean.detach().flatten(0, 1)
        for name, layer in variational_layers(network).items()
    }


def test_resampled_means_are_source_kernels(toy, source):
    start = means(tuned(toy, source, "dwp", settings={"init": "resampled"}, **STILL))
    given = layer_kernels(source.network)
    for name, kernels in start.items():
        pool = source.kernels.of_layer(name).flatten(1)
        nearest = torch.cdist(kernels.flatten(1), pool).min(1).values
        # The distance is computed by a matrix product, which is not exact.
        assert float(nearest.max()) < 1e-3
        assert not torch.allclose(kernels, given[name], atol=1e-3)


def test_means_from_the_prior_are_new(toy, source):
    start = means(tuned(toy, source, "dwp", settings={"init": "prior"}, **STILL))
    for name, kernels in start.items():
        pool = source.kernels.of_layer(name).flatten(1)
        assert float(torch.cdist(kernels.flatten(1), pool).min(1).values.median()) > 1e-2
        # Of the size of the layer's own kernels, that is, not of standardised ones.
        assert 0.3 < float(kernels.square().mean() / pool.square().mean()) < 3


def test_what_is_not_a_kernel_comes_from_the_source_whatever_the_start(toy, source):
    network = tuned(toy, source, "dwp", settings={"init": "prior"}, **STILL)
    torch.testing.assert_close(network.head.weight, source.network.head.weight, rtol=0, atol=1e-6)


def test_a_learned_prior_must_be_given(toy, source):
    bare = replace(source, priors=None)
    with pytest.raises(TrainingError, match="'dwp' needs a filter prior") as caught:
        tuned(toy, bare, "dwp")
    assert "medseg fit-prior" in str(caught.value.hint)
    tuned(toy, bare, "gaussian")
    with pytest.raises(TrainingError, match="has none named 'gmm'"):
        tuned(toy, source, "dwp", settings={"prior": "gmm"})


def test_a_method_takes_the_prior_it_names(toy, source):
    """Started at its samples, and not moved, the network tells which prior it was."""
    other = fit_priors(source.kernels, FitPriorSettings(kind="diagonal", min_kernels=2), seed=3)
    named = replace(source, priors=None, named_priors={"mine": other})
    settings = {"prior": "mine", "init": "prior"}
    found = tuned(toy, named, "dwp", settings=settings, **STILL)
    wanted = tuned(toy, replace(source, priors=other), "dwp", settings={"init": "prior"}, **STILL)
    for one, two in zip(found.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(one, two)


def test_resampling_needs_kernels(toy, source):
    with pytest.raises(TrainingError, match="start from 'resampled'"):
        tuned(toy, replace(source, kernels=None), "dwp", settings={"init": "resampled"})


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_resampled_starts_at_kernels_of_the_source_and_has_no_prior(toy, source, noise):
    """The same draw as that of ``dwp``; noise adds its share of the layer's rms to each."""
    settings = {"init": "resampled"}
    wanted = to_deterministic(tuned(toy, source, "dwp", settings=settings, **STILL))
    found = tuned(toy, source, "resampled", settings={"noise": noise}, **STILL)
    assert not variational_layers(found)
    for name, kernels in layer_kernels(found).items():
        drawn = layer_kernels(wanted)[name]
        added = float((kernels - drawn).square().mean() / drawn.square().mean()) ** 0.5
        assert added == pytest.approx(noise, abs=1e-4 if noise == 0 else 0.15)
    assert torch.allclose(found.head.weight, source.network.head.weight, atol=1e-6)


def test_noise_without_drawn_kernels_is_refused():
    with pytest.raises(ValidationError, match="kernels drawn at random"):
        MethodSettings(method="pr", noise=0.1)


def test_dropout_trains_another_way_and_is_the_same_each_time(toy, source):
    one, again = (tuned(toy, source, "mc_dropout").state_dict() for _ in range(2))
    plain = tuned(toy, source, "pr").state_dict()
    assert same(again, one) == set(one)
    assert "stem.convs.0.weight" not in same(one, plain)


def test_swag_is_the_gaussian_of_the_path_of_pr(toy, source):
    """Its mean is that of the weights over the last half of the steps."""
    seen, settings = [], {"steps": 6, "ema_decay": 0.0}
    for at in (3, 4, 5):
        # The rate of each step depends on how many there are, so the path is stopped.
        network = stopped(toy, source, at, **settings)
        seen.append(torch.cat([value.flatten() for value in network.parameters()]))
    found = tuned(toy, source, "swag", settings={"swag_rank": 3}, **settings)
    moments = found.moments
    path = torch.stack(seen).detach()
    assert int(moments.count) == 3
    torch.testing.assert_close(moments.mean, path.mean(0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(moments.variance, path.var(0, correction=0), atol=1e-10, rtol=0.01)
    torch.testing.assert_close(moments.deviations[2], path[2] - path.mean(0), atol=1e-6, rtol=1e-3)
    for name, value in moments.means().items():
        assert torch.equal(found.network.get_parameter(name), value)


def stopped(toy, source, at, **settings):
    network = new_network(toy.plan().architecture, seed=toy.plan().seed)
    load_source(network, source, toy.regions())
    plan = toy.plan(**settings)
    objective = SegmentationObjective(mode="regions", settings=plan.loss, network=network)
    ask, kept = objective.loss, []

    def loss(forward, batch, step):
        if step == at:
            kept.append(copy.deepcopy(network))
        return ask(forward, batch, step)

    objective.loss = loss
    train(network, objective, patch_sampler(toy.cases(), plan), settings=plan.training)
    return kept[0]


def test_labels_tell_variants_apart():
    labels = [MethodSettings(method=m, init=i).label for m, i in VARIANTS]
    assert labels == ["gaussian", "dwp", "dwp_prior", "dwp_resampled"]
    named = [MethodSettings(method="dwp", prior="gmm", init=i).label for i in ("source", "prior")]
    assert named == ["dwp_gmm", "dwp_gmm_prior"]
    assert MethodSettings(method="resampled", noise=0.1, members=3).label == "resampled_noise_x3"
    assert MethodSettings(method="gaussian", prior_spread="weight").label == "gaussian_weight"
    shares = [("wise", s) for s in (None, 0.5, 0.25)] + [("gaussian", s) for s in (0, 0.5, 0.75)]
    assert [MethodSettings(method=m, wise_share=s).label for m, s in shares] == [
        "wise", "wise", "wise_back0.25", "gaussian", "gaussian_wise", "gaussian_back0.75"
    ]  # fmt: skip
    several = MethodSettings(method="gaussian", wise_share=(0, 0.5, 1), members=2)
    assert (several.label, several.networks) == ("gaussian_back0+0.5+1_x2", 6)
    with pytest.raises(ValidationError, match="prior belongs to the methods dwp"):
        MethodSettings(method="pr", prior="gmm")
