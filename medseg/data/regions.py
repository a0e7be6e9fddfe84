"""From labels to what a network predicts, and back.

A *region* is a named union of labels; regions may overlap (the core lies inside the whole tumour).
What labels a region is made of is said per source, by a *definition*: a source that does not define
a region does not say that it is empty, it says nothing, and the region is unknown there.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medseg.errors import LabelError, ShapeError
from medseg.settings import settings
from medseg.shapes import LabelVolume

Mode = Literal["regions", "classes"]
Definition = Mapping[str, Sequence[int]]

#: Labels 1 necrosis, 2 oedema, 3 non-enhancing, 4 enhancing (Menze et al. 2015, section III).
WHOLE_TUMOUR: Definition = {
    "whole": (1, 2, 3, 4),
    "core": (1, 3, 4),
    "enhancing": (4,),
    "oedema": (2,),
    "necrosis": (1,),
    "non_enhancing": (3,),
}
#: Label 1 lesion.
MS_LESION: Definition = {"lesion": (1,)}


@settings
class RegionSettings:
    """What a network predicts.

    Parameters
    ----------
    mode : {"regions", "classes"}
        A sigmoid per region, which may overlap; or a softmax over background and the regions,
        which may not.
    names : tuple of str
        The regions in the order of the channels, without the background.
    """

    mode: Mode = "regions"
    names: tuple[str, ...] = Field(min_length=1)

    @property
    def channels(self) -> int:
        """Output channels of the network."""
        return len(self.names) + (self.mode == "classes")


def encode(
    label: LabelVolume,
    *,
    names: Sequence[str],
    definition: Definition,
    mode: Mode = "regions",
) -> tuple[Tensor, Tensor]:
    """Return the target of each region and whether the source knows it.

    Parameters
    ----------
    label : Tensor, shape (*s), an integer type
        Labels of the source; 0 is background.
    names : sequence of str
        Regions in the order of the channels.
    definition : mapping of str to sequence of int
        Labels that make up each region in this source; regions left out are unknown.
    mode : {"regions", "classes"}
        With "classes", channel 0 is what lies in no region.

    Returns
    -------
    target : Tensor, shape (n, *s), float32
        1 inside, 0 outside, 0 where unknown.
    known : Tensor, shape (n,), bool
        False for unknown regions; the background of "classes" is always known.

    Raises
    ------
    LabelError
        A name occurs twice, a region is defined by no label or by background, or classes overlap.

    Examples
    --------
    >>> label = torch.tensor([0, 1, 2, 4])
    >>> target, known = encode(label, names=["core", "lesion"], definition=WHOLE_TUMOUR)
    >>> target.tolist(), known.tolist()
    ([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]], [True, False])
    """
    _check(names, definition, mode)
    target = torch.zeros((len(names), *label.shape), dtype=torch.float32)
    for channel, name in enumerate(names):
        if name in definition:
            labels = torch.tensor(list(definition[name]), dtype=torch.int32)
            target[channel] = torch.isin(label.int(), labels)
    known = torch.tensor([name in definition for name in names])
    if mode == "classes":
        target = torch.cat([1 - target.sum(dim=0, keepdim=True), target])
        known = torch.cat([torch.ones(1, dtype=torch.bool), known])
    return target, known


def _check(names: Sequence[str], definition: Definition, mode: Mode) -> None:
    if len(set(names)) < len(names):
        raise LabelError(f"Regions must have different names, but they are {list(names)}.")
    for name in names:
        labels = definition.get(name)
        if labels is not None and (not labels or min(labels) < 1):
            raise LabelError(
                f"A region is made of labels of 1 or more, but {name!r} is {list(labels)}.",
                hint="Leave the region out of the definition if the source does not mark it.",
            )
    if mode == "classes":
        used = [value for name in names for value in set(definition.get(name, ()))]
        shared = sorted({value for value in used if used.count(value) > 1})
        if shared:
            raise LabelError(
                f"Classes must not share labels, but {shared} belong to more than one of "
                f"{list(names)}.",
                hint="Use mode 'regions', or name classes that exclude each other.",
            )


def decode(
    probabilities: Tensor, *, settings: RegionSettings, threshold: float = 0.5
) -> dict[str, Tensor]:
    """Return the mask of each region.

    Parameters
    ----------
    probabilities : Tensor, shape (n, *s)
        One channel per region; with mode "classes" the background first.
    settings : RegionSettings
        Mode and names the network was trained with.
    threshold : float
        A voxel is inside a region when its probability is above this. Not used in mode "classes",
        where the most probable class wins.

    Returns
    -------
    dict of str to Tensor, shape (*s), bool

    Raises
    ------
    ShapeError
        The number of channels is not that of the settings.
    """
    if probabilities.shape[0] != settings.channels:
        raise ShapeError(
            f"Mode {settings.mode!r} with regions {list(settings.names)} has {settings.channels} "
            f"channels, but the probabilities have {probabilities.shape[0]}.",
            hint="Use the regions of the model that predicted them.",
        )
    if settings.mode == "classes":
        winner = probabilities.argmax(dim=0)
        return {name: winner == index + 1 for index, name in enumerate(settings.names)}
    return {name: probabilities[i] > threshold for i, name in enumerate(settings.names)}
