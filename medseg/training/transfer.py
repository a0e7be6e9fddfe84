"""Fine-tuning by the methods of transfer that :mod:`medseg.training.method` lists."""

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from medseg.data.training_set import Batches, Painter, PatchSampler, TrainingCase
from medseg.errors import TrainingError
from medseg.networks.unet import UNet
from medseg.priors.fit import anchored_priors, source_centred_priors
from medseg.priors.layer_priors import LayerPriors
from medseg.synthesis.looks import TargetLooks
from medseg.synthesis.painter import make_painter
from medseg.training.checkpoint import Checkpoints
from medseg.training.finish import after_training
from medseg.training.loop import TrainingResult, Validate, train
from medseg.training.method import VARIATIONAL, MethodSettings, Source, TrainingPlan
from medseg.training.objective import (
    Held,
    Objective,
    SegmentationObjective,
    SwagObjective,
    VariationalObjective,
)
from medseg.training.rehearsal import Rehearsed
from medseg.training.start import new_network, start_from_kernels, started
from medseg.variational.convert import to_variational, variational_layers
from medseg.variational.swag import SwagNetwork


def train_from_scratch(
    cases: Sequence[TrainingCase],
    plan: TrainingPlan,
    *,
    checkpoints: Checkpoints | None = None,
    validate: Validate | None = None,
    batches: Batches | None = None,
) -> tuple[nn.Module, TrainingResult]:
    """Return a new network trained on ``cases``: a source network, or method ``ri``."""
    network = new_network(plan.architecture, seed=plan.seed)
    objective = SegmentationObjective(mode=plan.regions.mode, settings=plan.loss, network=network)
    result = train(
        network,
        objective,
        batches or patch_sampler(cases, plan),
        settings=plan.training,
        checkpoints=checkpoints,
        validate=validate,
    )
    return network, result


def finetune(
    cases: Sequence[TrainingCase],
    plan: TrainingPlan,
    method: MethodSettings,
    *,
    source: Source | None = None,
    checkpoints: Checkpoints | None = None,
    batches: Batches | None = None,
) -> tuple[nn.Module, TrainingResult]:
    """Return a network for the target, trained on ``cases`` by one method; of several members one.

    All methods see the same batches for the same number of steps, those of ``cases`` where no
    others are given.

    Raises
    ------
    TrainingError
        The method needs a source, or a filter prior, that is not given.
    """
    if method.method == "ri":
        return train_from_scratch(cases, plan, checkpoints=checkpoints, batches=batches)
    network, fresh = started(plan, method, source)
    if source is not None and method.method in VARIATIONAL:
        share = 1.0 - batches.share if isinstance(batches, Rehearsed) else 1.0
        network, objective = _variational(
            network, cases, plan, method, source, fresh, target_share=share
        )
    else:
        objective = deterministic_objective(network, plan, method, fresh)
    if method.method == "swag":
        objective = SwagObjective(
            objective, network, steps=plan.training.steps, rank=method.swag_rank
        )
    result = train(
        network,
        objective,
        batches or patch_sampler(cases, plan),
        settings=plan.training,
        fresh=fresh,
        checkpoints=checkpoints,
    )
    if isinstance(objective, SwagObjective):
        network = SwagNetwork(network, objective.moments).eval()
    return after_training(network, plan, method, source=source), result


def patch_sampler(
    cases: Sequence[TrainingCase], plan: TrainingPlan, *, in_looks_of: Sequence[TrainingCase] = ()
) -> PatchSampler:
    """Return the batches of a plan; in the looks of other cases none has lesions painted in."""
    painter: Painter | None = (
        TargetLooks(cases, in_looks_of)
        if in_looks_of
        else make_painter(
            plan.augment.paint if plan.augment.enabled else None,
            cases,
            regions=plan.regions,
            channels=plan.channels,
            spacing_mm=plan.spacing_mm,
            patch=plan.patch.size,
            seed=plan.seed,
        )
    )
    return PatchSampler(
        cases, patch=plan.patch, augment=plan.augment, seed=plan.seed, painter=painter
    )


def deterministic_objective(
    network: nn.Module, plan: TrainingPlan, method: MethodSettings, fresh: tuple[str, ...]
) -> Objective:
    """Return what a method that is not variational minimises; ``prf`` freezes the body for it."""
    if method.method == "prf":
        if not isinstance(network, UNet):
            raise TrainingError("Method 'prf' needs a network with named input and output blocks.")
        trained = (*network.input_block_names(), *network.output_block_names())
        prefixes = tuple(f"{name}." for name in trained)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith(prefixes))
    anchor: dict[str, Tensor] = {}
    if method.method == "l2sp":
        anchor = {
            name: value.detach().clone()
            for name, value in network.named_parameters()
            if not (fresh and name.startswith(fresh))
        }
    return SegmentationObjective(
        mode=plan.regions.mode,
        settings=plan.loss,
        network=network,
        anchor=anchor,
        strength=method.l2sp_strength,
        seed=plan.seed,
    )


def _variational(
    network: nn.Module,
    cases: Sequence[TrainingCase],
    plan: TrainingPlan,
    method: MethodSettings,
    source: Source,
    fresh: tuple[str, ...],
    *,
    target_share: float,
) -> tuple[nn.Module, Objective]:
    """Return the twin and its objective; of all batches ``target_share`` are the target's."""
    priors = _priors(network, method, source)
    if method.method == "dwp" and method.init != "source":
        start_from_kernels(network, method, source, seed=plan.seed)
    twin = to_variational(network, settings=method.variational)
    voxels = max(1, round(sum(int(case.brain.sum()) for case in cases) / len(cases)))
    # A region that a case's source leaves unknown is no observation.
    known = sum(float(case.known.sum()) for case in cases) / len(cases)
    outputs = known if plan.regions.mode == "regions" else 1.0
    objective = VariationalObjective(
        network=twin,
        priors=priors,
        held=_held(twin, fresh, method) if method.method == "anchored" else (),
        mode=plan.regions.mode,
        loss=plan.loss,
        elbo=method.elbo,
        # As many scans as make the target's batches count as often as its scans do.
        observations=(voxels, len(cases) / target_share, outputs),
        seed=plan.seed,
    )
    return twin, objective


def _priors(network: nn.Module, method: MethodSettings, source: Source) -> LayerPriors:
    """Return the priors of a variational method; ``network`` has the source's weights."""
    anchors = source_centred_priors(
        network, relative_std=method.prior_relative_std, spread=method.prior_spread
    )
    if method.method == "gaussian":
        return anchors
    fitted = source.priors_for(method)
    if fitted is None:
        name = "" if method.prior is None else f" named {method.prior!r}"
        raise TrainingError(
            f"Method {method.method!r} needs a filter prior, but the source has none{name}.",
            hint="Harvest the source networks and fit one with `medseg fit-prior`.",
        )
    # r is trained with the posterior, so each fine-tuning has a copy of its own.
    fitted = copy.deepcopy(fitted)
    if method.method == "dwp":
        return fitted
    return anchored_priors(anchors, fitted, share=method.anchor_share)


def _held(twin: nn.Module, fresh: tuple[str, ...], method: MethodSettings) -> tuple[Held, ...]:
    """Return where the source holds the weights that have no posterior, and how tightly.

    A scale of normalisation or a bias has the deviation that a kernel has, as a share of the rms of
    its own tensor, but not of less than a tenth: biases may start at 0.
    """
    of_posteriors = tuple(f"{name}.posterior." for name in variational_layers(twin))
    return tuple(
        Held(value, value.detach().clone(), method.prior_relative_std * _size(value))
        for name, value in twin.named_parameters()
        if not name.startswith(of_posteriors) and not (fresh and name.startswith(fresh))
    )


def _size(value: Tensor) -> float:
    return max(0.1, float(value.detach().square().mean().sqrt()))
