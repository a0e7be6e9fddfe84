"""Kernels of source networks, each with its layer, depth group, network and channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Integer
from torch import Tensor

from medseg.errors import PriorError
from medseg.generative.storage import content_hash, read_folder, write_folder
from medseg.shapes import Kernels


@dataclass(frozen=True)
class LayerInfo:
    """What a layer is, apart from its kernels.

    Parameters
    ----------
    name : str
        Name of the convolution in the network.
    group : str
        Depth group.
    depth : float
        Place among the layers, 0 for the first and 1 for the last.
    """

    name: str
    group: str
    depth: float


@dataclass(frozen=True, eq=False)
class KernelSet:
    """Kernel slices and where they come from.

    Parameters
    ----------
    kernels : Tensor, shape (m, *k), float32
        Slices in the networks' own units; finite.
    layer : Tensor, shape (m,), int64
        Number of the layer in ``layers``.
    network : Tensor, shape (m,), int64
        Number of the source network, from 0.
    channels : Tensor, shape (m, 2), int64
        Output and input channel of the slice in its layer.
    layers : tuple of LayerInfo
        In the networks' order.

    Raises
    ------
    PriorError
        A kernel is not finite, or the members disagree in length.
    """

    kernels: Kernels
    layer: Integer[Tensor, " m"]
    network: Integer[Tensor, " m"]
    channels: Integer[Tensor, "m 2"]
    layers: tuple[LayerInfo, ...]

    def __post_init__(self) -> None:
        lengths = [len(self.kernels), len(self.layer), len(self.network), len(self.channels)]
        if len(set(lengths)) != 1:
            raise PriorError(
                "Kernels, layer, network and channels must have one length, but these have "
                f"{', '.join(map(str, lengths))}."
            )
        finite = torch.isfinite(self.kernels).flatten(1).all(1)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            raise PriorError(
                f"Kernels must be finite, but {int((~finite).sum())} of {len(finite)} are not; "
                f"the first is in "
                f"layer {self.layers[int(self.layer[first])].name!r} of network "
                f"{int(self.network[first])}.",
                hint="That training diverged: leave the network out or train it again.",
            )

    def __len__(self) -> int:
        return len(self.kernels)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one slice."""
        return tuple(self.kernels.shape[1:])

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, in the networks' order."""
        return tuple(info.name for info in self.layers)

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the depth groups, in the networks' order."""
        return tuple(dict.fromkeys(info.group for info in self.layers))

    @property
    def networks(self) -> tuple[int, ...]:
        """Numbers of the networks that have kernels here."""
        return tuple(int(number) for number in self.network.unique())

    def info(self, layer: str) -> LayerInfo:
        """Return what the layer ``layer`` is; an unknown one raises PriorError."""
        return self.layers[self._layer_number(layer)]

    def of_layer(self, layer: str) -> Kernels:
        """Return the kernels of one layer, all networks, (m, *k)."""
        return self.kernels[self.layer == self._layer_number(layer)]

    def of_group(self, group: str) -> Kernels:
        """Return the kernels of one depth group, all networks, (m, *k)."""
        names = [info.name for info in self.layers if info.group == group]
        if not names:
            raise PriorError(
                f"A depth group must be one of {', '.join(self.group_names)}, but it is {group!r}."
            )
        return torch.cat([self.of_layer(name) for name in names])

    def layer_scale(self, layer: str) -> float:
        """Return the root mean square of the weights of one layer."""
        return _rms(self.of_layer(layer))

    def group_scale(self, group: str) -> float:
        """Return the root mean square of the weights of one depth group."""
        return _rms(self.of_group(group))

    def select(self, rows: Tensor) -> KernelSet:
        """Return the slices ``rows``, bool (m,) or int64; the layers keep their numbers."""
        return replace(
            self,
            kernels=self.kernels[rows],
            layer=self.layer[rows],
            network=self.network[rows],
            channels=self.channels[rows],
        )

    def of_networks(self, numbers: Sequence[int]) -> KernelSet:
        """Return the slices of some networks."""
        return self.select(torch.isin(self.network, torch.tensor(list(numbers))))

    def resample(self, layer: str, n: int, *, generator: torch.Generator) -> Kernels:
        """Return ``n`` kernels of one layer drawn with replacement, as they are, (n, *k).

        Raises
        ------
        PriorError
            The layer is unknown or has no kernel.
        """
        kernels = self.of_layer(layer)
        if not len(kernels):
            raise PriorError(
                f"Layer {layer!r} must have a kernel to draw from, but it has 0.",
                hint="Prune less, or harvest from more networks.",
            )
        rows = torch.randint(len(kernels), (n,), generator=generator, device=generator.device)
        return kernels[rows.to(kernels.device)]

    @property
    def hash(self) -> str:
        """SHA-256 of the content."""
        return content_hash(self._tensors(), self._description())

    def save(self, folder: Path) -> None:
        """Write ``kernels.safetensors`` and ``kernels.json``."""
        write_folder(folder, "kernels", self._tensors(), self._description())

    @classmethod
    def load(cls, folder: Path) -> KernelSet:
        """Return the set written by :meth:`save`; a missing or damaged file raises ModelError."""
        tensors, description = read_folder(folder, "kernels")
        layers = tuple(LayerInfo(**row) for row in description["layers"])
        return cls(**tensors, layers=layers)

    def _layer_number(self, layer: str) -> int:
        if layer not in self.layer_names:
            raise PriorError(
                f"A layer must be one of {', '.join(self.layer_names)}, but it is {layer!r}.",
                hint="Source and target networks must have one architecture.",
            )
        return self.layer_names.index(layer)

    def _tensors(self) -> dict[str, Tensor]:
        names = ("kernels", "layer", "network", "channels")
        return {name: getattr(self, name) for name in names}

    def _description(self) -> dict[str, object]:
        filled = {info.group for i, info in enumerate(self.layers) if bool((self.layer == i).any())}
        return {
            "layers": [asdict(info) for info in self.layers],
            "group_scale": {name: self.group_scale(name) for name in sorted(filled)},
        }


def _rms(kernels: Tensor) -> float:
    if not kernels.numel():
        raise PriorError(
            "A scale needs at least one kernel, but there are 0.",
            hint="Prune less, or harvest from more networks.",
        )
    return float(kernels.double().square().mean().sqrt())
