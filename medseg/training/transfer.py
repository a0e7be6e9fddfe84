"""Methods of transfer: what is kept of the source, and what holds on to it.

============  ======================================================================================
method        what it does
============  ======================================================================================
``ri``        random initialisation: no transfer
``pr``        source weights, all are trained (plain fine-tuning)
``prf``       source weights, only the input and output blocks are trained
``l2sp``      ``pr`` with a squared penalty to the source weights (Li et al. 2018)
``wise``      ``pr``, then weights part of the way back to the source (Wortsman et al. 2022)
``gaussian``  variational, prior is a Gaussian around the source weights (Krishnan et al. 2020)
``dwp``       variational, prior over filters learned from the source networks (Atanov et al. 2019)
============  ======================================================================================
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medseg.data.regions import RegionSettings
from medseg.data.training_set import AugmentSettings, PatchSampler, PatchSettings, TrainingCase
from medseg.errors import TrainingError
from medseg.losses.segmentation import LossSettings
from medseg.networks.unet import UNet, UNetSettings
from medseg.priors.fit import source_centred_priors
from medseg.priors.kernel_set import KernelSet
from medseg.priors.layer_priors import LayerPriors
from medseg.seeding import seeded_torch, torch_generator
from medseg.settings import settings
from medseg.synthesis.painter import make_painter
from medseg.training.checkpoint import Checkpoints
from medseg.training.loop import TrainingResult, TrainingSettings, Validate, train
from medseg.training.objective import Objective, SegmentationObjective, VariationalObjective
from medseg.variational.convert import to_variational, variational_layers
from medseg.variational.elbo import ElboSettings
from medseg.variational.settings import VariationalSettings

log = logging.getLogger(__name__)
MethodName = Literal["ri", "pr", "prf", "l2sp", "wise", "gaussian", "dwp"]
VARIATIONAL: tuple[MethodName, ...] = ("gaussian", "dwp")


@settings
class MethodSettings:
    """One method of transfer and its numbers."""

    method: MethodName
    #: Where the posterior means of ``dwp`` start: the source weights, samples of the prior, or
    #: source kernels drawn at random.
    init: Literal["source", "prior", "resampled"] = "source"
    #: Name of the filter prior of ``dwp`` in an experiment: one of ``protocol.priors``, or a kind;
    #: by default ``protocol.prior``.
    prior: str | None = None
    #: Strength of the penalty of ``l2sp``, per squared unit of weight.
    l2sp_strength: float = Field(default=0.05, ge=0)
    #: Share of the way from the fine-tuned weights back to the source of ``wise``.
    wise_share: float = Field(default=0.5, ge=0, le=1)
    #: Deviation of the prior of ``gaussian``, as a share of the rms of the layer's kernels.
    prior_relative_std: float = Field(default=0.2, gt=0)
    #: Posterior of the variational methods.
    variational: VariationalSettings = VariationalSettings(estimator="weight")
    #: Weight of their prior; a tenth of the kernels a step keeps the KL below a tenth of its time.
    elbo: ElboSettings = ElboSettings(kl_fraction=0.1)

    @model_validator(mode="after")
    def _only_dwp_has_a_choice_of_prior(self) -> "MethodSettings":
        if self.prior is not None and self.method != "dwp":
            raise ValueError(f"prior belongs to method dwp, but the method is {self.method}")
        return self

    @property
    def label(self) -> str:
        """Name in tables."""
        start = None if self.init == "source" else self.init
        return "_".join(part for part in (self.method, self.prior, start) if part)

    @property
    def trained_as(self) -> "MethodSettings":
        """The method whose training this one takes: ``wise`` is ``pr`` until its last act."""
        return MethodSettings(method="pr") if self.method == "wise" else self


@dataclass(frozen=True, eq=False)
class Source:
    """What was learned before.

    Parameters
    ----------
    network : Module
        Deterministic source network.
    regions : RegionSettings
        What its head predicts.
    kernels : KernelSet, optional
        Of all source networks; for ``dwp`` with resampled kernels.
    priors : LayerPriors, optional
        Fitted to them; for ``dwp``.
    named_priors : mapping of name to LayerPriors
        Others, for a ``dwp`` that names its prior.
    members : sequence of Module
        All source networks, ``network`` among them; empty where only that one is known.
    """

    network: nn.Module
    regions: RegionSettings
    kernels: KernelSet | None = None
    priors: LayerPriors | None = None
    named_priors: Mapping[str, LayerPriors] = field(default_factory=dict)
    members: Sequence[nn.Module] = ()

    def started_at(self, member: int) -> "Source":
        """Return the source that starts from another of its members, counted round and round."""
        if not self.members:
            return self
        return replace(self, network=self.members[member % len(self.members)])

    def priors_for(self, method: MethodSettings) -> LayerPriors | None:
        """Return the filter priors that a method asks for, if they are there."""
        return self.priors if method.prior is None else self.named_priors.get(method.prior)


@dataclass(frozen=True)
class TrainingPlan:
    """What is the same for all methods: architecture, regions, patches, loss, steps, seed.

    ``channels`` and ``spacing_mm`` are those of the cases; painted lesions must fit them.
    """

    architecture: UNetSettings
    regions: RegionSettings
    patch: PatchSettings
    augment: AugmentSettings
    loss: LossSettings
    training: TrainingSettings
    seed: int
    channels: tuple[str, ...] = ()
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


def new_network(architecture: UNetSettings, *, seed: int) -> UNet:
    """Return a network with random weights that depend on the seed alone."""
    with seeded_torch(seed, "initialisation"):
        return UNet(architecture)


def load_source(network: nn.Module, source: Source, regions: RegionSettings) -> tuple[str, ...]:
    """Copy the source's weights into ``network`` by name, and the head's by region.

    Returns
    -------
    tuple of str
        Prefixes of what was not loaded and is fresh: ``("head",)`` or nothing.

    Raises
    ------
    TrainingError
        A body tensor is missing, left over, or has another shape.
    """
    given, wanted = source.network.state_dict(), network.state_dict()
    faults = [
        name
        for name in dict.fromkeys([*wanted, *given])
        if not name.startswith("head.") and _shape(given, name) != _shape(wanted, name)
    ]
    if faults:
        raise TrainingError(
            f"A source must have the architecture of the target network, but {faults[:4]} differ.",
            hint="Take architecture and channels from the source model.",
        )
    rows = {name: number for number, name in enumerate(source.regions.names)}
    same = source.regions.mode == regions.mode and all(name in rows for name in regions.names)
    first = int(regions.mode == "classes")
    order = [*range(first), *(rows[name] + first for name in regions.names)] if same else []
    loaded = {
        name: (given[name][order] if name.startswith("head.") else given[name])
        for name in wanted
        if same or not name.startswith("head.")
    }
    network.load_state_dict({**wanted, **loaded})
    fresh = () if same else ("head",)
    log.info("loaded %d tensors from the source; fresh: %s", len(loaded), fresh or "nothing")
    return fresh


def train_from_scratch(
    cases: Sequence[TrainingCase],
    plan: TrainingPlan,
    *,
    checkpoints: Checkpoints | None = None,
    validate: Validate | None = None,
) -> tuple[nn.Module, TrainingResult]:
    """Return a new network trained on ``cases``: a source network, or method ``ri``."""
    network = new_network(plan.architecture, seed=plan.seed)
    objective = SegmentationObjective(mode=plan.regions.mode, settings=plan.loss, network=network)
    result = train(
        network,
        objective,
        patch_sampler(cases, plan),
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
) -> tuple[nn.Module, TrainingResult]:
    """Return a network for the target, trained on ``cases`` by one method.

    All methods see the same batches for the same number of steps.

    Raises
    ------
    TrainingError
        The method needs a source, or a filter prior, that is not given.
    """
    if method.method == "ri":
        return train_from_scratch(cases, plan, checkpoints=checkpoints)
    if source is None:
        raise TrainingError(
            f"Method {method.method!r} transfers from a source, but none is given.",
            hint="Give a source model, or use method 'ri'.",
        )
    network: nn.Module = new_network(plan.architecture, seed=plan.seed)
    fresh = load_source(network, source, plan.regions)
    if method.method in VARIATIONAL:
        network, objective = _variational(network, cases, plan, method, source)
    else:
        objective = deterministic_objective(network, plan, method, fresh)
    result = train(
        network,
        objective,
        patch_sampler(cases, plan),
        settings=plan.training,
        fresh=fresh,
        checkpoints=checkpoints,
    )
    return after_training(network, plan, method, source=source), result


def after_training(
    network: nn.Module, plan: TrainingPlan, method: MethodSettings, *, source: Source | None
) -> nn.Module:
    """Return what a method makes of a network that was trained as ``method.trained_as``.

    That is the network itself, or for ``wise`` a copy moved back towards the source.
    """
    if method.method != "wise" or source is None:
        return network
    start = new_network(plan.architecture, seed=plan.seed)
    fresh = load_source(start, source, plan.regions)
    moved = copy.deepcopy(network)
    interpolate(moved, start, share=method.wise_share, skip=fresh)
    return moved


@torch.no_grad()
def interpolate(
    network: nn.Module, start: nn.Module, *, share: float, skip: tuple[str, ...] = ()
) -> None:
    """Move the weights ``share`` of the way from where they are to those of ``start``.

    A fresh head has no source to go back to and is left out by ``skip``.

    References
    ----------
    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section 3.
    """
    before = dict(start.named_parameters())
    for name, value in network.named_parameters():
        if not (skip and name.startswith(skip)):
            value.lerp_(before[name].to(value.device), share)


def _shape(state: dict[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def patch_sampler(cases: Sequence[TrainingCase], plan: TrainingPlan) -> PatchSampler:
    """Return the batches of a plan."""
    painter = make_painter(
        plan.augment.paint if plan.augment.enabled else None,
        cases,
        regions=plan.regions,
        channels=plan.channels,
        spacing_mm=plan.spacing_mm,
        patch=plan.patch.size,
        seed=plan.seed,
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
    )


def _variational(
    network: nn.Module,
    cases: Sequence[TrainingCase],
    plan: TrainingPlan,
    method: MethodSettings,
    source: Source,
) -> tuple[nn.Module, Objective]:
    fitted = source.priors_for(method)
    if method.method == "gaussian":
        priors = source_centred_priors(network, relative_std=method.prior_relative_std)
    elif fitted is None:
        name = "" if method.prior is None else f" named {method.prior!r}"
        raise TrainingError(
            f"Method 'dwp' needs a filter prior, but the source has none{name}.",
            hint="Harvest the source networks and fit one with `medseg fit-prior`.",
        )
    else:
        # r is trained with the posterior, so each fine-tuning has a copy of its own.
        priors = copy.deepcopy(fitted)
    if method.method == "dwp" and method.init != "source":
        _start_from_kernels(network, method, source, seed=plan.seed)
    twin = to_variational(network, settings=method.variational)
    voxels = max(1, round(sum(int(case.brain.sum()) for case in cases) / len(cases)))
    # A region that a case's source leaves unknown is no observation.
    known = sum(float(case.known.sum()) for case in cases) / len(cases)
    outputs = known if plan.regions.mode == "regions" else 1.0
    objective = VariationalObjective(
        network=twin,
        priors=priors,
        mode=plan.regions.mode,
        loss=plan.loss,
        elbo=method.elbo,
        observations=(voxels, len(cases), outputs),
        seed=plan.seed,
    )
    return twin, objective


@torch.no_grad()
def _start_from_kernels(
    network: nn.Module, method: MethodSettings, source: Source, *, seed: int
) -> None:
    """Overwrite every 3x3x3 (3x3) convolution with drawn kernels of its own layer."""
    layers = variational_layers(to_variational(network, settings=method.variational))
    modules, priors = dict(network.named_modules()), source.priors_for(method)
    for name in layers:
        weight = modules[name].weight
        if not isinstance(weight, Tensor):
            raise TrainingError(f"Layer {name!r} must have a weight tensor, but it has none.")
        shape, generator = weight.shape, torch_generator(seed, "kernel start", name)
        n = shape[0] * shape[1]
        if method.init == "prior" and priors is not None:
            drawn = priors.sample(name, n, generator=generator)
        elif source.kernels is not None:
            drawn = source.kernels.resample(name, n, generator=generator)
        else:
            raise TrainingError(
                f"A start from {method.init!r} needs the source's kernels or prior, but there are "
                "none.",
                hint="Harvest the source networks first.",
            )
        weight.copy_(drawn.view(shape))
