"""Several networks as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Networks for the same channels and regions, of which each is a sample.

    Their probabilities are averaged, not their logits: that is the mixture of what they believe.
    :func:`medseg.inference.posterior.sample_probabilities` does it.

    Parameters
    ----------
    members : sequence of Module
        Deterministic or random; all of one kind.

    References
    ----------
    Lakshminarayanan, Pritzel and Blundell 2017, "Simple and scalable predictive uncertainty
    estimation using deep ensembles", section 2.4.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        """Return the mean of the members' logits, (b, n, *s); not the mean of probabilities."""
        return torch.stack([member(image) for member in self.members]).mean(0)


def members_of(network: nn.Module) -> tuple[nn.Module, ...]:
    """Return the members of an ensemble, or the one network."""
    return tuple(network.members) if isinstance(network, Ensemble) else (network,)


def joined(networks: Sequence[nn.Module]) -> nn.Module:
    """Return the network itself where there is one, else the ensemble of all their members."""
    members = [member for network in networks for member in members_of(network)]
    return members[0] if len(members) == 1 else Ensemble(members)
