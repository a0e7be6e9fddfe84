"""Methods of transfer: what is kept of the source, and what holds on to it.

==============  ====================================================================================
method          what it does
==============  ====================================================================================
``ri``          random initialisation: no transfer
``pr``          source weights, all are trained (plain fine-tuning)
``prf``         source weights, only the input and output blocks are trained
``l2sp``        ``pr`` with a squared penalty to the source weights (Li et al. 2018)
``wise``        ``pr``, then weights part of the way back to the source (Wortsman et al. 2022)
``resampled``   source weights, but each kernel is one drawn from its layer in the source networks
``mc_dropout``  ``pr`` with dropout of channels, also at prediction (Gal and Ghahramani 2016)
``swag``        ``pr``, then a Gaussian over its last half of steps (Maddox et al. 2019)
``gaussian``    variational, prior is a Gaussian around the source weights (Krishnan et al. 2020)
``dwp``         variational, filter prior learned from the source networks (Atanov et al. 2019)
``anchored``    variational, a filter stays by its source or follows the learned prior of ``dwp``
``auto``        ``gaussian``, then back to the source as far as cases left out ask for
==============  ====================================================================================
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import nn

from medseg.data.regions import RegionSettings
from medseg.data.training_set import AugmentSettings, PatchSettings
from medseg.losses.segmentation import LossSettings
from medseg.networks.unet import UNetSettings
from medseg.priors.kernel_set import KernelSet
from medseg.priors.layer_priors import LayerPriors
from medseg.seeding import derive_seed
from medseg.settings import settings
from medseg.training.loop import TrainingSettings
from medseg.variational.elbo import ElboSettings
from medseg.variational.settings import VariationalSettings

MethodName = Literal[
    "ri",
    "pr",
    "prf",
    "l2sp",
    "wise",
    "resampled",
    "mc_dropout",
    "swag",
    "gaussian",
    "dwp",
    "anchored",
    "auto",
]
VARIATIONAL: tuple[MethodName, ...] = ("gaussian", "dwp", "anchored", "auto")
#: Methods that need a filter prior.
WITH_PRIOR: tuple[MethodName, ...] = ("dwp", "anchored")
_FOLDS = 3
_Share = Annotated[float, Field(ge=0, le=1)]


@settings
class MethodSettings:
    """One method of transfer and its numbers."""

    method: MethodName
    #: Networks trained with seeds of their own, whose probabilities are averaged (Lakshminarayanan
    #: et al. 2017); each starts from another source network where there are several.
    members: int = Field(default=1, ge=1)
    #: Where the posterior means of ``dwp`` start: the source weights, samples of the prior, or
    #: source kernels drawn at random.
    init: Literal["source", "prior", "resampled"] = "source"
    #: Deviation of the noise on kernels drawn at random, as a share of the rms of their layer.
    noise: float = Field(default=0.0, ge=0)
    #: Share of the channels that is left out at random after each block, while training and at
    #: prediction: a tenth in ``mc_dropout`` where nothing is said, in others none.
    dropout: float | None = Field(default=None, ge=0, lt=1)
    #: Deviations of ``swag`` from the running mean that are kept, taken over the last half of the
    #: steps.
    swag_rank: int = Field(default=20, ge=2)
    #: Name of the filter prior of ``dwp`` and ``anchored`` in an experiment: one of
    #: ``protocol.priors``, or a kind; by default ``protocol.prior``.
    prior: str | None = None
    #: Strength of the penalty of ``l2sp``, per squared unit of weight.
    l2sp_strength: float = Field(default=0.05, ge=0)
    #: Share of the way from the fine-tuned weights back to the source: of ``wise`` a half where
    #: nothing is said, of all others nothing. ``auto`` chooses its own. Several: the probabilities
    #: of the networks at each of them are averaged, a posterior over the way (Izmailov et al. 2019,
    #: "Subspace inference for Bayesian deep learning", of a line).
    wise_share: _Share | Annotated[tuple[_Share, ...], Field(min_length=1)] | None = None
    #: Parts of the training subjects that ``auto`` leaves out in turn to choose.
    folds: int = Field(default=_FOLDS, ge=2)
    #: Deviation around the source of ``gaussian`` and ``anchored``, as a share of what
    #: ``prior_spread`` says.
    prior_relative_std: float = Field(default=0.2, gt=0)
    #: The rms of the layer's kernels, or the size of each weight (as published).
    prior_spread: Literal["layer", "weight"] = "layer"
    #: Chance of a kernel to stay by its source that ``anchored`` starts from.
    anchor_share: float = Field(default=0.9, gt=0, lt=1)
    #: Posterior of the variational methods; whole weights are drawn where nothing else is said.
    variational: VariationalSettings = VariationalSettings(estimator="weight")
    #: Weight of their prior; a tenth of the kernels a step keeps the KL below a tenth of its time.
    elbo: ElboSettings = ElboSettings(kl_fraction=0.1)

    @field_validator("variational", "elbo", mode="before")
    @classmethod
    def _one_key_leaves_the_others(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, Mapping):
            return value
        usual = (
            {"estimator": "weight"} if info.field_name == "variational" else {"kl_fraction": 0.1}
        )
        return {**usual, **value}

    @model_validator(mode="after")
    def _only_some_have_a_choice_of_prior(self) -> "MethodSettings":
        if self.prior is not None and self.method not in WITH_PRIOR:
            raise ValueError(
                f"prior belongs to the methods {', '.join(WITH_PRIOR)}, but the method is "
                f"{self.method}"
            )
        return self

    @model_validator(mode="after")
    def _settings_belong_to_the_method(self) -> "MethodSettings":
        if self.init != "source" and self.method != "dwp":
            raise ValueError(f"init belongs to method dwp, but the method is {self.method}")
        if self.prior_spread != "layer" and self.method not in ("gaussian", "anchored"):
            raise ValueError(
                f"prior_spread belongs to the methods gaussian and anchored, but the method is "
                f"{self.method}"
            )
        if self.wise_share is not None and self.method in ("ri", "resampled", "swag", "auto"):
            raise ValueError(
                f"wise_share needs weights that came from the source and nothing that "
                f"chose it, but the method is {self.method}"
            )
        if self.method == "mc_dropout" and self.dropout == 0:
            raise ValueError("mc_dropout leaves channels out, but dropout is 0")
        drawn = self.method == "resampled" or self.init == "resampled"
        if self.noise > 0 and not drawn:
            raise ValueError(
                f"noise is for kernels drawn at random, but the method is {self.method} and init "
                f"is {self.init}"
            )
        return self

    def architecture(self, plain: UNetSettings) -> UNetSettings:
        """Return the architecture that the method trains: with dropout, or the one given."""
        share = self.dropout_share
        return replace(plain, dropout=share) if share > 0 else plain

    @property
    def dropout_share(self) -> float:
        """Share of the channels that is left out at random."""
        if self.dropout is None:
            return 0.1 if self.method == "mc_dropout" else 0.0
        return self.dropout

    @property
    def label(self) -> str:
        """Name in tables."""
        start = None if self.init == "source" else self.init
        noisy = "noise" if self.noise > 0 else None
        spread = None if self.prior_spread == "layer" else self.prior_spread
        out = "dropout" if self.dropout and self.method != "mc_dropout" else None
        usual = 0.5 if self.method == "wise" else 0.0
        far = "+".join(f"{share:g}" for share in self.shares_back)
        back = "wise" if self.shares_back == (0.5,) else f"back{far}"
        back = None if self.shares_back == (usual,) else back
        several = f"x{self.members}" if self.members > 1 else None
        parts = (self.method, self.prior, start, noisy, spread, out, back, several)
        return "_".join(part for part in parts if part)

    @property
    def shares_back(self) -> tuple[float, ...]:
        """Shares of the way from the fine-tuned weights back to the source."""
        if self.wise_share is None:
            return (0.5,) if self.method == "wise" else (0.0,)
        return self.wise_share if isinstance(self.wise_share, tuple) else (self.wise_share,)

    @property
    def networks(self) -> int:
        """Networks that the method ends with: of each member one for each share."""
        return self.members * len(self.shares_back)

    def resolved(self, share: float) -> "MethodSettings":
        """Return what ``auto`` stands for when it goes a share of the way back to the source."""
        return replace(self, method="gaussian", wise_share=share)

    @property
    def trained_as(self) -> "MethodSettings":
        """The method whose training each member takes, before what its last act is."""
        if self.method == "wise":
            return MethodSettings(method="pr", dropout=self.dropout)
        plain = self.resolved(0.0) if self.method == "auto" else self
        return replace(plain, members=1, wise_share=None, folds=_FOLDS)


@dataclass(frozen=True, eq=False)
class Source:
    """What was learned before.

    Parameters
    ----------
    network : Module
        Deterministic source network, which a training starts from.
    regions : RegionSettings
        What its head predicts.
    kernels : KernelSet, optional
        Of all source networks; for ``dwp`` with resampled kernels.
    priors : LayerPriors, optional
        Fitted to them; for ``dwp``.
    named_priors : mapping of name to LayerPriors
        Others, for a ``dwp`` that names its prior.
    networks : sequence of Module
        All source networks, ``network`` among them; empty where only that one is known.
    subjects : frozenset of str
        Whose scans these networks have seen, as far as that is known; names or salted hashes.
    """

    network: nn.Module
    regions: RegionSettings
    kernels: KernelSet | None = None
    priors: LayerPriors | None = None
    named_priors: Mapping[str, LayerPriors] = field(default_factory=dict)
    networks: Sequence[nn.Module] = ()
    subjects: frozenset[str] = frozenset()

    def member(self, number: int) -> "Source":
        """Return the source as member ``number`` starts from it: of several networks the next."""
        if number == 0 or len(self.networks) < 2:
            return self
        first = next((i for i, one in enumerate(self.networks) if one is self.network), 0)
        return replace(self, network=self.networks[(first + number) % len(self.networks)])

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

    def member(self, number: int) -> "TrainingPlan":
        """Return the plan of one member: the first has the seed of a single network."""
        if number == 0:
            return self
        return replace(self, seed=derive_seed(self.seed, "member", number))
