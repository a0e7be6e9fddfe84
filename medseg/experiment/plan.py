"""What an experiment is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, model_validator

from medseg.data.regions import Definition, RegionSettings
from medseg.data.source import CaseSource
from medseg.data.training_set import AugmentSettings, PatchSettings
from medseg.errors import ConfigError
from medseg.inference.intensity_prior import RefinementSettings
from medseg.losses.segmentation import LossSettings
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.priors.fit import PRIOR_KINDS, FitPriorSettings
from medseg.priors.harvest import HarvestSettings
from medseg.settings import settings
from medseg.training.co_learning import CoLearningSettings
from medseg.training.distillation import DistillationSettings
from medseg.training.loop import TrainingSettings
from medseg.training.method import VARIATIONAL, WITH_PRIOR, MethodSettings
from medseg.training.objectives import ObjectiveSettings
from medseg.training.pretext import PretextSettings
from medseg.training.privileged import PrivilegedSettings
from medseg.training.rehearsal import RehearsalSettings


@settings
class FewShotSettings:
    """Which subsets of the target are trained on and what they are tested on."""

    #: Numbers of training subjects.
    sizes: tuple[int, ...] = Field(default=(5,), min_length=1)
    #: Nested draws; None takes every subset of each size.
    repeats: int | None = Field(default=None, ge=1)
    #: Subjects kept for testing only; 0 tests each subset on all subjects that are not in it.
    test_subjects: int = Field(default=0, ge=0)
    #: Every arm is trained on every subset once per seed, seed s from source member s (counted
    #: round and round).
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)


@settings
class ProtocolSettings:
    """Everything that is the same for all arms of an experiment."""

    channels: tuple[str, ...] = Field(default=("flair", "t1c"), min_length=1)
    regions: RegionSettings = RegionSettings(names=("core", "whole"))
    preprocess: PreprocessSettings = PreprocessSettings(spacing_mm=(3.0, 3.0, 3.0))
    patch: PatchSettings = PatchSettings()
    augment: AugmentSettings = AugmentSettings()
    #: Chance that a channel is hidden while a source network is trained.
    source_modality_dropout: float = Field(default=0.15, ge=0, lt=1)
    loss: LossSettings = LossSettings()
    #: Source networks per source, each on its own bootstrap of the subjects.
    members: int = Field(default=2, ge=1)
    source_training: TrainingSettings = TrainingSettings()
    target_training: TrainingSettings = TrainingSettings(steps=300)
    #: Which kernels of the source networks the filter priors are fitted to.
    harvest: HarvestSettings = HarvestSettings()
    #: Filter prior of every ``dwp`` that names none.
    prior: FitPriorSettings = FitPriorSettings()
    #: Others by name. The name of a kind stands for that kind, also when it is not listed.
    priors: dict[str, FitPriorSettings] = Field(default_factory=dict)
    few_shot: FewShotSettings = FewShotSettings()
    #: Subjects of each data set of a source that no member of it is trained on: what fine-tuning
    #: forgets is measured on them, in the regions they share with the target.
    forgetting: int = Field(default=0, ge=0)
    #: Posterior samples at test.
    samples: int = Field(default=10, ge=1)
    #: Held-out kernels, at most, that classifiers tell from samples of the named priors.
    two_sample: int = Field(default=2000, ge=10)
    seed: int = 0

    def prior_named(self, name: str | None) -> FitPriorSettings:
        """Return the settings of the filter prior that a method names.

        Raises
        ------
        ConfigError
            The name is neither that of a prior nor that of a kind.
        """
        if name is None:
            return self.prior
        if name in self.priors:
            return self.priors[name]
        if name not in PRIOR_KINDS:
            raise ConfigError(
                f"A prior is one of protocol.priors ({', '.join(self.priors) or 'none is given'}) "
                f"or of the kinds {', '.join(PRIOR_KINDS)}, but it is {name!r}."
            )
        return FitPriorSettings(kind=name)


@dataclass(frozen=True, eq=False)
class Cohort:
    """A data set and what its labels mean.

    Parameters
    ----------
    source : CaseSource
    definition : mapping of region to labels
    synthetic : bool
    note : str
        For the report.
    """

    source: CaseSource
    definition: Definition
    synthetic: bool
    note: str = ""


@settings
class Arm:
    """One method on some of the sources, and what is learned beside its own objective."""

    method: MethodSettings
    #: Names of sources; nothing for ``ri``.
    sources: tuple[str, ...] = ()
    #: What is learned beside the method's own objective; its ``kind`` says what.
    objective: ObjectiveSettings | None = None
    #: Name of the scans that co-learning, sharing and rehearsal learn from beside the target's.
    scans: str = ""
    #: Predictions are held against each scan's own intensities, as the training scans look.
    refine: RefinementSettings | None = None
    #: In tables; by default those of the method, the objective and the refinement.
    name: str = ""

    @model_validator(mode="after")
    def _one_student(self) -> "Arm":
        if self.method.method == "swag" and self.objective is not None:
            raise ValueError("swag follows its own training: no objective goes beside it")
        if self.method.method == "auto" and self.distils:
            raise ValueError("auto tries its method on cases left out: distil gaussian instead")
        if self.distils and self.method.networks > 1:
            raise ValueError(f"distillation gives one network, not {self.method.networks} networks")
        if self.distils and self.method.shares_back != (0.0,):
            raise ValueError(
                "a student has twice the outputs of the source and cannot go back to it, but "
                f"wise_share is {self.method.wise_share}"
            )
        return self

    @property
    def label(self) -> str:
        """Name in tables."""
        if self.name:
            return self.name
        parts = [self.method.label]
        if isinstance(self.objective, RehearsalSettings):
            parts.append(self.objective.label)
        elif self.objective is not None:
            parts.append(self.objective.kind)
        return "_".join([*parts, "refined"] if self.refine else parts)

    @property
    def trained_as(self) -> object:
        """What decides how a network is trained: arms that agree in it share one."""
        return self.method.trained_as, self.objective, self.scans

    @property
    def more(self) -> tuple[str, bool]:
        """Name of the scans learned from beside the target's, and whether their masks are read."""
        return self.scans, not isinstance(self.objective, CoLearningSettings)

    @property
    def is_a_pair(self) -> bool:
        """Whether method and objective go together."""
        if self.objective is None or isinstance(self.objective, RehearsalSettings):
            return True
        return self.distils == (self.method.method in VARIATIONAL)

    @property
    def distils(self) -> bool:
        """Whether its network is a student, which tells its own uncertainty."""
        return isinstance(self.objective, DistillationSettings)

    @property
    def hidden_channels(self) -> tuple[str, ...]:
        """Channels that its network is tested without."""
        return self.objective.channels if isinstance(self.objective, PrivilegedSettings) else ()


@dataclass(frozen=True, eq=False)
class ExperimentPlan:
    """A whole few-shot experiment.

    Parameters
    ----------
    title, description : str
    sources : mapping of name to cohorts
        A source may be a mix.
    target : Cohort
    arms : sequence of Arm
    protocol : ProtocolSettings
    architecture : callable
        ``(in_channels, out_channels) -> UNetSettings``.
    config : dict
        As written by the user, for the record.
    statements : sequence of str
        What a reader must know.
    command : str
        That runs it again.
    pretraining : mapping of name to PretrainingSettings
        Sources that learn without masks, and what.
    scans : mapping of name to cohorts
        More scans, for objectives that learn from them along with the target's.
    """

    title: str
    description: str
    sources: Mapping[str, Sequence[Cohort]]
    target: Cohort
    arms: Sequence[Arm]
    protocol: ProtocolSettings
    architecture: Callable[[int, int], UNetSettings]
    config: dict[str, Any]
    statements: Sequence[str] = field(default=())
    command: str = ""
    pretraining: Mapping[str, PretextSettings] = field(default_factory=dict)
    scans: Mapping[str, Sequence[Cohort]] = field(default_factory=dict)

    def priors_of(self, source: str) -> tuple[str | None, ...]:
        """Return the names of the filter priors wanted of a source; None is ``protocol.prior``."""
        arms = [a for a in self.arms if a.method.method in WITH_PRIOR and source in a.sources]
        return tuple(dict.fromkeys(arm.method.prior for arm in arms)) or (None,)


def source_regions(cohorts: Sequence[Cohort], target: RegionSettings) -> RegionSettings:
    """Return what a source network predicts: the target's regions it knows, and its own.

    A cohort that marks none of the target's regions contributes the ones it does mark, so that a
    mix of diseases trains one body with a head for each.
    """
    names: list[str] = []
    for name in target.names:
        if any(name in cohort.definition for cohort in cohorts):
            names.append(name)
    for cohort in cohorts:
        if not any(name in cohort.definition for name in target.names):
            names.extend(name for name in cohort.definition if name not in names)
    return RegionSettings(mode=target.mode, names=tuple(names))
