"""Every name a configuration may use, and what it stands for. Literal, so that grep finds it."""

from collections.abc import Callable
from typing import Any

from medseg.config.learned import LearnedSettings, make_learned
from medseg.data.phantom.cohort import PhantomSettings, PhantomSource
from medseg.data.regions import MS_LESION, WHOLE_TUMOUR, Definition
from medseg.data.source import CaseSource
from medseg.data.sources.brats import BratsSettings, BratsSource
from medseg.data.sources.folder import FolderSettings, FolderSource
from medseg.data.sources.ms import MsSettings, MsSource
from medseg.networks.presets import unet_2d, unet_3d, unet_short_3d
from medseg.networks.unet import UNetSettings

#: Kind of data -> its settings and the source built from them.
SOURCES: dict[str, tuple[type[Any], Callable[[Any], CaseSource]]] = {
    "phantom": (PhantomSettings, PhantomSource),
    "ms": (MsSettings, MsSource),
    "brats": (BratsSettings, BratsSource),
    "folder": (FolderSettings, FolderSource),
    "learned": (LearnedSettings, make_learned),
}

#: Kind of data -> what its labels mean when the configuration does not say. These kinds need no
#: more than a ``root``, so a bare folder is tried as each of them.
DEFINITIONS: dict[str, Definition] = {"ms": MS_LESION, "brats": WHOLE_TUMOUR}

#: Disease of a phantom -> what its labels mean.
PHANTOM_DEFINITIONS: dict[str, Definition] = {"ms": MS_LESION, "tumour": WHOLE_TUMOUR}

#: Kinds whose cases are generated, not measured.
SYNTHETIC: tuple[str, ...] = ("phantom", "learned")

NETWORKS: dict[str, Callable[[int, int], UNetSettings]] = {
    "unet_short_3d": unet_short_3d,
    "unet_3d": unet_3d,
    "unet_2d": unet_2d,
}
