"""Two diseases at once: one body with a head for each, or two bodies that stay alike."""

import copy
import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from medseg.data.training_set import Batch
from medseg.networks.unet import UNet
from medseg.settings import settings
from medseg.training.objective import Objective, Terms


@settings
class HardSharingSettings:
    """One body for both diseases, a head for each."""

    kind: Literal["hard_sharing"] = "hard_sharing"


@settings
class SoftSharingSettings:
    """A body for each disease, with a penalty on the distance of their weights."""

    kind: Literal["soft_sharing"] = "soft_sharing"
    #: Per squared unit of weight; .inf is hard sharing.
    strength: float = Field(default=0.01, ge=0)


class SharingNetwork(nn.Module):
    """Two networks as what they share and half of what divides them: ``w = shared +- half``.

    Written so, infinite strength is not a limit but the case without ``halves``. The head belongs
    to neither: each disease has rows of its own in it.

    Parameters
    ----------
    network : UNet
        Shared, not copied; its head predicts the regions of both diseases.
    divided : bool
        Let the bodies differ. They begin alike.
    """

    def __init__(self, network: UNet, *, divided: bool) -> None:
        super().__init__()
        self.shared = network
        self._names = [n for n, _ in network.named_parameters() if not n.startswith("head.")]
        weights = dict(network.named_parameters())
        self.halves = nn.ParameterList(
            nn.Parameter(torch.zeros_like(weights[name])) for name in self._names if divided
        )

    def forward(self, image: Tensor, second: Tensor | None = None) -> Tensor:
        """Return logits (b, n, *s); ``second`` (b,) says which images are the second disease's."""
        if not len(self.halves) or second is None:
            return self.shared(image)
        logits: dict[int, Tensor] = {}
        for sign, chosen in ((1.0, ~second), (-1.0, second)):
            where = torch.nonzero(chosen).flatten().tolist()
            if where:
                found = functional_call(self.shared, self._body(sign), (image[where],))
                logits.update(zip(where, found, strict=True))
        return torch.stack([logits[number] for number in range(len(image))])

    def squared_distance(self) -> Tensor:
        """Return the squared distance between the weights of the two bodies."""
        return 4 * torch.stack([half.square().sum() for half in self.halves]).sum()

    def first(self) -> UNet:
        """Return the network of the first disease, a copy of its own."""
        network = copy.deepcopy(self.shared)
        if len(self.halves):
            body = {name: value.detach() for name, value in self._body(1.0).items()}
            network.load_state_dict({**network.state_dict(), **body})
        return network

    def _body(self, sign: float) -> dict[str, Tensor]:
        weights = dict(self.shared.named_parameters())
        return {
            name: weights[name] + sign * half
            for name, half in zip(self._names, self.halves, strict=True)
        }


class SharingObjective:
    """The objective of both diseases, and for soft sharing the penalty that ties their bodies.

    ``base + strength * |w_1 - w_2|^2``. A patch is of the second disease when it knows none of the
    regions of the first; the head's other rows are unknown to it and say nothing.

    Parameters
    ----------
    base : Objective
    network : SharingNetwork
    regions : int
        Of the first disease; they come first.
    strength : float
        Infinity for a body that is one.

    References
    ----------
    Caruana 1997, "Multitask learning", for hard sharing; Duong et al. 2015, "Low resource
    dependency parsing", equation 2, for soft sharing.
    """

    def __init__(
        self, base: Objective, *, network: SharingNetwork, regions: int, strength: float
    ) -> None:
        self._base, self._network = base, network
        self._regions, self._strength = regions, strength
        self.extra: nn.Module | None = base.extra

    def loss(self, forward: Callable[..., Tensor], batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch; ``forward`` is that of a :class:`SharingNetwork`."""
        second = ~batch.known[:, : self._regions].any(1)
        loss, terms = self._base.loss(lambda image: forward(image, second), batch, step)
        if math.isinf(self._strength):
            return loss, terms
        distance = self._network.squared_distance()
        if self._strength > 0:
            loss = loss + self._strength * distance
        return loss, {**terms, "squared_distance": float(distance.detach())}
