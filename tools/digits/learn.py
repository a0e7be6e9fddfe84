"""Source networks on letters, and a posterior over a network for digits, by medseg's own parts."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from medseg.losses.segmentation import LossSettings
from medseg.priors.compare import compare_priors
from medseg.priors.fit import FitPriorSettings, fit_priors
from medseg.priors.gaussian import DiagonalGaussian
from medseg.priors.harvest import harvest
from medseg.priors.layer_priors import LayerPriors
from medseg.priors.log_uniform import LogUniform
from medseg.seeding import derive_seed, torch_generator
from medseg.training.loop import TrainingSettings, train
from medseg.training.objective import Objective, SegmentationObjective, VariationalObjective
from medseg.variational.convert import to_variational
from medseg.variational.elbo import ElboSettings
from medseg.variational.sampling import sampled_weights
from medseg.variational.settings import VariationalSettings
from tools.digits.pictures import (
    CLASSES,
    PictureBatches,
    Pictures,
    letters,
    side_by_side,
    split_evenly,
)
from tools.digits.plan import Arm, Sizes

KERNEL = (3, 3)
# A likelihood alone: the objective of segmentation, on pictures of one voxel, without its Dice.
_LIKELIHOOD = LossSettings(dice=0.0)


def new_network(sizes: Sizes, *, seeds: Sequence[int]) -> nn.Sequential:
    """Return replicas side by side: two convolutions of 3 x 3, each pooled, and a dense head.

    Grouped convolutions keep them apart. Pictures (b, r, s, s) give logits (b * r, 10, 1, 1): what
    makes the class of a picture the class of a voxel.
    """
    r, (first, second) = len(seeds), sizes.widths
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(r, r * first, 3, groups=r),
            relu1=nn.LeakyReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(r * first, r * second, 3, groups=r),
            relu2=nn.LeakyReLU(),
            pool2=nn.MaxPool2d(2),
            head=nn.Conv2d(r * second, r * CLASSES, 1, groups=r),
            apart=nn.Unflatten(1, (r, CLASSES)),
            voxels=nn.Flatten(0, 1),
        )
    )
    with torch.no_grad():
        for name, conv in _convolutions(network).items():
            conv.bias.zero_()
            for part, seed in zip(conv.weight.chunk(r), seeds, strict=True):
                generator = torch_generator(seed, "network", name)
                nn.init.xavier_normal_(part, generator=generator)
    return network


def replica(network: nn.Module, number: int, sizes: Sizes, *, of: int) -> nn.Sequential:
    """Return one of ``of`` replicas as a network of its own."""
    single = new_network(sizes, seeds=[0])
    for name, conv in _convolutions(network).items():
        state = {key: value.chunk(of)[number] for key, value in conv.state_dict().items()}
        single.get_submodule(name).load_state_dict(state)
    return single


def _convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}


@dataclass(frozen=True, eq=False)
class Source:
    """What was learned from letters.

    Parameters
    ----------
    networks : list of Sequential
    priors : mapping of kind to LayerPriors
        Fitted to the kernels of all networks, and the two that know no source.
    accuracy : list of float
        Of each network on letters it has not seen.
    nats : list of dict
        Held-out nats per kernel of the fitted priors, per layer.
    """

    networks: list[nn.Sequential]
    priors: Mapping[str, LayerPriors]
    accuracy: list[float]
    nats: list[dict[str, Any]]


def learn_source(sizes: Sizes, *, seed: int) -> Source:
    """Return networks trained on letters, each on its own bootstrap, and the priors they teach."""
    pool = letters(sizes.letters, sizes.picture, seed=derive_seed(seed, "training"))
    test = letters(sizes.test_letters, sizes.picture, seed=derive_seed(seed, "test"))
    seeds = [derive_seed(seed, "source", number) for number in range(sizes.networks)]
    drawn = [
        pool.select(torch.randint(len(pool), (len(pool),), generator=torch_generator(own, "drawn")))
        for own in seeds
    ]
    together = new_network(sizes, seeds=seeds)
    train(
        together,
        _plain(together),
        PictureBatches(drawn, sizes.batch, seeds),
        settings=_training(sizes, sizes.source_steps, sizes.weight_decay),
    )
    count = sizes.networks
    accuracy = [row["accuracy"] for row in score(together, [test] * count, samples=1, seed=seed)]
    networks = [replica(together, number, sizes, of=count) for number in range(count)]
    kernels = harvest(networks)
    # Not whitened: that would start from the full Gaussian it is compared with.
    vae = {"latent": sizes.latent, "standardise": "scale", "decoder_std": "per_feature"}
    kinds = {
        "vae": FitPriorSettings(kind="vae", model={**vae, "fit": {"max_steps": sizes.prior_steps}}),
        "gaussian": FitPriorSettings(kind="gaussian"),
        "diagonal": FitPriorSettings(kind="diagonal"),
    }
    fitted = {kind: fit_priors(kernels, option, seed=seed) for kind, option in kinds.items()}
    nats = compare_priors(kernels, settings=kinds, seed=seed)
    normal = DiagonalGaussian(torch.zeros(KERNEL), torch.ones(KERNEL))
    flat = LogUniform(torch.full(KERNEL, 1e-4), torch.ones(KERNEL))
    layers = kernels.layer_names
    fitted["normal"] = LayerPriors({name: normal for name in layers})
    fitted["log_uniform"] = LayerPriors({name: flat for name in layers})
    return Source(networks, fitted, accuracy, nats)


def measure(
    arm: Arm, n: int, source: Source, pictures: Pictures, sizes: Sizes, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Return what an arm reaches with ``n`` digits, drawn and started anew by each seed.

    The replicas share nothing but the VAE's inference network and the norm at which gradients are
    clipped.
    """
    splits = [split_evenly(pictures, n, seed=seed) for seed in seeds]
    training, test = (list(part) for part in zip(*splits, strict=True))
    network: nn.Module = new_network(sizes, seeds=seeds)
    _start(network, arm, source, seeds=seeds)
    objective = _plain(network)
    if arm.prior != "none":
        network = to_variational(
            network,
            settings=VariationalSettings(relative_std=sizes.relative_std, max_relative_std=None),
        )
        objective = VariationalObjective(
            network=network,
            # The inference network is trained with the posterior: a copy for each.
            priors=copy.deepcopy(source.priors[arm.prior]),
            mode="classes",
            loss=_LIKELIHOOD,
            elbo=ElboSettings(beta=arm.beta, warm_up_steps=0),
            observations=(1, n * len(seeds), 1.0),
            seed=seeds[0],
        )
    batches = PictureBatches(training, sizes.batch, seeds)
    result = train(network, objective, batches, settings=_training(sizes, sizes.steps, 0.0))
    samples = 1 if arm.prior == "none" else sizes.samples
    last = result.history[-1]
    terms = {
        # Of one replica, summed over its digits or kernels.
        name: last[name] / len(seeds)
        for name in ("data_nats", "kl_nats", "kl_minus_log_z_nats")
        if name in last
    }
    seen = score(network, training, samples=samples, seed=seeds[0])
    unseen = score(network, test, samples=samples, seed=seeds[0])
    return [
        {"seed": seed, "test_pictures": len(test[0]), **found, **terms}
        | {"training_accuracy": known["accuracy"]}
        for seed, found, known in zip(seeds, unseen, seen, strict=True)
    ]


@torch.no_grad()
def score(
    network: nn.Module, sets: Sequence[Pictures], *, samples: int, seed: int
) -> list[dict[str, float]]:
    """Return accuracy and nats per picture of the mean probability over samples, by replica."""
    network.eval()
    generator, pictures = torch_generator(seed, "posterior samples"), side_by_side(sets)
    chance = torch.zeros(*pictures.labels.shape, CLASSES)
    for _ in range(samples):
        with sampled_weights(network, generator):
            chance += network(pictures.images).softmax(1).view_as(chance) / samples
    right = (chance.argmax(2) == pictures.labels).double().mean(0)
    own = chance.gather(2, pictures.labels[..., None])[..., 0]
    nats = -own.clamp_min(1e-12).log().mean(0)
    return [
        {"accuracy": float(a), "nats_per_picture": float(b)}
        for a, b in zip(right, nats, strict=True)
    ]


@torch.no_grad()
def _start(network: nn.Module, arm: Arm, source: Source, *, seeds: Sequence[int]) -> None:
    """Overwrite the convolutions, unless they are to stay as they were drawn."""
    if arm.init == "xavier":
        return
    for name in source.priors["vae"].layers:
        conv = network.get_submodule(name)
        weights, biases = conv.weight.chunk(len(seeds)), conv.bias.chunk(len(seeds))
        for weight, bias, seed in zip(weights, biases, seeds, strict=True):
            if arm.init == "source":
                learned = source.networks[seed % len(source.networks)].get_submodule(name)
                weight.copy_(learned.weight)
                bias.copy_(learned.bias)
                continue
            n, generator = weight.shape[0] * weight.shape[1], torch_generator(seed, "start", name)
            drawn = source.priors["vae"].sample(name, n, generator=generator)
            weight.copy_(drawn.view(weight.shape))


def _plain(network: nn.Module) -> Objective:
    return SegmentationObjective(mode="classes", settings=_LIKELIHOOD, network=network)


def _training(sizes: Sizes, steps: int, weight_decay: float) -> TrainingSettings:
    return TrainingSettings(
        steps=steps,
        learning_rate=sizes.learning_rate,
        weight_decay=weight_decay,
        batches_ahead=0,
        log_every=steps,
        device="cpu",
        precision="float32",
    )
