"""What may stand in an experiment's YAML."""

from typing import Any, Literal

from pydantic import Field

from medseg.experiment.plan import Arm, ProtocolSettings
from medseg.settings import settings
from medseg.training.objectives import PretrainingSettings

NetworkName = Literal["unet_short_3d", "unet_3d", "unet_2d"]


@settings
class DataConfig:
    """One data set: its kind, the settings of that kind, and what its labels mean."""

    kind: Literal["phantom", "ms", "brats", "folder", "learned"]
    #: Settings of the kind, see its class.
    settings: dict[str, Any] = Field(default_factory=dict)
    #: Region -> labels; by default what is usual for the kind.
    regions: dict[str, tuple[int, ...]] | None = None
    #: One sentence for the report.
    note: str = ""


@settings
class ExperimentConfig:
    """A few-shot experiment."""

    title: str
    description: str = ""
    network: NetworkName = "unet_short_3d"
    sources: dict[str, tuple[DataConfig, ...]]
    #: Sources that learn without masks: what from.
    pretraining: dict[str, PretrainingSettings] = Field(default_factory=dict)
    #: More scans for objectives that learn from them along with the target's.
    scans: dict[str, tuple[DataConfig, ...]] = Field(default_factory=dict)
    target: DataConfig
    arms: tuple[Arm, ...] = Field(min_length=1)
    protocol: ProtocolSettings = ProtocolSettings()
    #: Remarks that every reader of the report must see.
    statements: tuple[str, ...] = ()


@settings
class FolderConfig:
    """Fine-tuning on all cases of a data folder: what overrides may change."""

    target: DataConfig
    #: Not with a source model, whose architecture it is then.
    network: NetworkName = "unet_short_3d"
    protocol: ProtocolSettings = ProtocolSettings()
