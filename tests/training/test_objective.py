"""What is minimised, against its formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from medseg.data.training_set import Batch
from medseg.losses.segmentation import LossSettings, segmentation_loss, soft_dice_loss
from medseg.priors.fit import FitPriorSettings, fit_priors, source_centred_priors
from medseg.training.objective import SegmentationObjective, VariationalObjective
from medseg.training.transfer import new_network
from medseg.variational.convert import to_variational, variational_layers
from medseg.variational.elbo import ElboSettings
from medseg.variational.settings import VariationalSettings

VOXELS, SCANS, OUTPUTS = 500, 3, 2


@pytest.fixture(scope="module")
def network(toy):
    return new_network(toy.plan().architecture, seed=0)


@pytest.fixture(scope="module")
def batch(toy):
    return toy.sampler(toy.plan()).batch(0)


def fixed(logits):
    return lambda image: logits


def variational(network, *, mode="regions", outputs=OUTPUTS, loss=None, estimator="weight", **elbo):
    twin = to_variational(network, settings=VariationalSettings(estimator=estimator)).train()
    objective = VariationalObjective(
        network=twin,
        priors=source_centred_priors(network, relative_std=0.2),
        mode=mode,
        loss=loss or LossSettings(),
        elbo=ElboSettings(**{"warm_up_steps": 0, **elbo}),
        observations=(VOXELS, SCANS, outputs),
        seed=4,
    )
    return twin, objective


def test_without_an_anchor_it_is_the_segmentation_loss(network, batch):
    settings = LossSettings(cross_entropy=0.7, dice=0.2)
    objective = SegmentationObjective(mode="regions", settings=settings, network=network)
    loss, terms = objective.loss(network, batch, 0)
    wanted, _ = segmentation_loss(
        network(batch.image), batch.target, batch.known, mode="regions", settings=settings
    )
    assert objective.extra is None
    assert torch.equal(loss, wanted)
    assert set(terms) == {"cross_entropy_nats", "dice"}


def test_the_pull_is_the_squared_distance(network, batch):
    generator = torch.Generator().manual_seed(0)
    anchor = {
        name: value.detach() + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in network.named_parameters()
        if not name.startswith("head")
    }
    given = {"mode": "regions", "settings": LossSettings(), "network": network}
    plain = SegmentationObjective(**given)
    pulled = SegmentationObjective(**given, anchor=anchor, strength=0.3)
    free, _ = plain.loss(network, batch, 0)
    held, terms = pulled.loss(network, batch, 0)
    parameters = dict(network.named_parameters())
    distance = sum(
        float((parameters[name].detach() - value).square().sum()) for name, value in anchor.items()
    )
    assert terms["squared_distance"] == pytest.approx(distance, rel=1e-5)
    assert float((held - free).detach()) == pytest.approx(0.3 * distance, rel=1e-4)

    for name in ("stem.convs.0.weight", "head.weight"):
        parameter = parameters[name]
        gradient = torch.autograd.grad(held - free, parameter, retain_graph=True)[0]
        far = parameter - anchor[name] if name in anchor else torch.zeros_like(parameter)
        torch.testing.assert_close(gradient, 0.6 * far.detach(), atol=1e-6, rtol=1e-4)


def test_the_data_term_of_a_coin_is_log_two_per_output(network, batch):
    _, objective = variational(network)
    _, terms = objective.loss(fixed(torch.zeros_like(batch.target)), batch, 0)
    assert terms["data_nats"] == pytest.approx(VOXELS * SCANS * OUTPUTS * math.log(2))


def test_the_data_term_is_the_likelihood_of_the_whole_set(network, batch):
    _, objective = variational(network)
    logits = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(1))
    _, terms = objective.loss(fixed(logits), batch, 0)
    chosen = torch.where(batch.target > 0.5, logits, -logits).double()
    mean = -chosen.sigmoid().log().mean()
    assert terms["data_nats"] == pytest.approx(float(mean) * VOXELS * SCANS * OUTPUTS, rel=1e-5)
    assert terms["cross_entropy_nats"] == pytest.approx(float(mean), rel=1e-5)


def test_a_softmax_answers_once_per_voxel(network, batch):
    _, objective = variational(network, mode="classes", outputs=1)
    inside = batch.target[:, 1:]
    one_hot = Batch(batch.image, torch.cat([1 - inside, inside], dim=1), batch.known)
    logits = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(1))
    _, terms = objective.loss(fixed(logits), one_hot, 0)
    mean = -(logits.double().log_softmax(1) * one_hot.target).sum(1).mean()
    assert terms["data_nats"] == pytest.approx(float(mean) * VOXELS * SCANS, rel=1e-5)


def test_unknown_regions_say_nothing(network, batch):
    _, objective = variational(network)
    known = batch.known.clone()
    known[:, 0] = False
    logits = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for target in (batch.target, 1 - batch.target):
        half = Batch(batch.image, torch.cat([target[:, :1], batch.target[:, 1:]], 1), known)
        found.append(objective.loss(fixed(logits), half, 0)[0].item())
    assert found[0] == found[1]


def closed_kl(twin, network, *, relative_std=0.2):
    total = 0.0
    modules = dict(network.named_modules())
    for name, layer in variational_layers(twin).items():
        source = modules[name].weight.detach().double()
        prior = relative_std * source.square().mean().sqrt()
        std = layer.posterior.log_std.detach().double().exp()
        mean = layer.posterior.mean.detach().double()
        ratio = (std.square() + (mean - source).square()) / prior.square()
        total += float((prior.log() - std.log() + 0.5 * (ratio - 1)).sum())
    return total


def test_the_prior_term_is_the_closed_form(network, batch):
    twin, objective = variational(network)
    with torch.no_grad():
        for layer in variational_layers(twin).values():
            layer.posterior.mean.add_(0.05)
    _, terms = objective.loss(twin, batch, 0)
    assert terms["kl_nats"] == pytest.approx(closed_kl(twin, network), rel=1e-4)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 0.0), (1.0, 2.0)])
def test_the_loss_is_the_bound_per_output_and_dice(network, batch, weights):
    settings = LossSettings(cross_entropy=weights[0], dice=weights[1], dice_smoothing_voxels=3.0)
    _, objective = variational(network, loss=settings, beta=0.7)
    logits = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(1))
    loss, terms = objective.loss(fixed(logits), batch, 0)
    dice = soft_dice_loss(logits, batch.target, batch.known, "regions", smoothing_voxels=3.0)
    bound = (terms["data_nats"] + 0.7 * terms["kl_nats"]) / (VOXELS * SCANS * OUTPUTS)
    assert loss.item() == pytest.approx(weights[0] * bound + weights[1] * float(dice.mean()))
    assert terms["dice"] == pytest.approx(float(dice.mean()))
    assert terms["negative_elbo_nats"] == pytest.approx(bound * VOXELS * SCANS * OUTPUTS)


def test_the_prior_is_warmed_up(network, batch):
    _, objective = variational(network, warm_up_steps=4, beta=2.0)
    logits = fixed(torch.zeros_like(batch.target))
    betas = [objective.loss(logits, batch, step)[1]["beta"] for step in (0, 1, 3, 9)]
    assert betas == [0.5, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("estimator", ["weight", "local"])
def test_noise_is_a_function_of_the_step(network, batch, estimator):
    twin, objective = variational(network, estimator=estimator, kl_fraction=0.5)
    losses = []
    for step, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        losses.append(objective.loss(twin, batch, step)[0].item())
    assert losses[0] == losses[1] != losses[2]
    assert all(layer.generator is None for layer in variational_layers(twin).values())


def test_each_step_scores_other_kernels(network, batch):
    twin, objective = variational(network, kl_fraction=0.3)
    with torch.no_grad():
        for layer in variational_layers(twin).values():
            layer.posterior.mean.mul_(2)
    logits = fixed(torch.zeros_like(batch.target))
    found = [objective.loss(logits, batch, step)[1]["kl_nats"] for step in (0, 0, *range(1, 200))]
    assert found[0] == found[1] != found[2]
    assert sum(found) / len(found) == pytest.approx(closed_kl(twin, network), rel=0.1)


def test_gradients_reach_means_deviations_and_the_inference_networks(toy, network, batch):
    twin, _ = variational(network)
    priors = toy.source().priors
    objective = VariationalObjective(
        network=twin,
        priors=priors,
        mode="regions",
        loss=LossSettings(),
        elbo=ElboSettings(),
        observations=(VOXELS, SCANS, OUTPUTS),
        seed=4,
    )
    assert objective.extra is priors
    objective.loss(twin, batch, 0)[0].backward()
    assert all(p.grad is not None for p in twin.parameters())
    trained = {id(p) for p in priors.trainable_parameters()}
    assert trained
    for parameter in priors.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained)


def test_without_log_z_the_terms_say_that_it_lacks(toy, network, batch):
    source = toy.source()
    model = {"hidden": 2, "sample_sweeps": 2, "contrastive": {"fit": {"max_steps": 2}}}
    options = FitPriorSettings(kind="rbm", grouping="group", min_kernels=2, model=model)
    twin, _ = variational(network)
    objective = VariationalObjective(
        network=twin,
        priors=fit_priors(source.kernels, options, seed=0),
        mode="regions",
        loss=LossSettings(),
        elbo=ElboSettings(),
        observations=(VOXELS, SCANS, OUTPUTS),
        seed=4,
    )
    terms = objective.loss(twin, batch, 0)[1]
    assert not {"kl_nats", "negative_elbo_nats"} & set(terms)
    assert terms["negative_elbo_minus_log_z_nats"] == pytest.approx(
        terms["data_nats"] + terms["beta"] * terms["kl_minus_log_z_nats"], rel=1e-4
    )


def test_the_patch_says_as_much_as_the_scan_it_stands_for(network, batch):
    # Half the batch, twice the patches: a mean does not know how many patches it saw.
    _, objective = variational(network)
    first = replace(batch, image=batch.image[:1], target=batch.target[:1], known=batch.known[:1])
    twice = Batch(*(torch.cat([t, t]) for t in (first.image, first.target, first.known)))
    logits = torch.randn(first.target.shape, generator=torch.Generator().manual_seed(1))
    one = objective.loss(fixed(logits), first, 0)[1]["data_nats"]
    two = objective.loss(fixed(torch.cat([logits, logits])), twice, 0)[1]["data_nats"]
    assert two == pytest.approx(one)
