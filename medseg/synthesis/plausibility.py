"""How plausible the shape of a predicted mask is, as a flag for review."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medseg.generative.base import GenerativeBase
from medseg.seeding import torch_generator


@dataclass(frozen=True, eq=False)
class ShapeJudge:
    """How unusual a mask is among training masks, by the energy of a model of masks.

    Parameters
    ----------
    model : GenerativeBase
        With ``energy``: a VAE's bound, or a free energy, whose constant does not matter here.
    energies : Tensor, shape (m,)
        Of masks that the model was not fitted to, best; else of those it was.
    limit : float
        Percentile above which a mask is for a human to look at.
    """

    model: GenerativeBase
    energies: Tensor
    limit: float = 95.0

    @classmethod
    def of(cls, model: GenerativeBase, masks: Tensor, *, limit: float = 95.0) -> ShapeJudge:
        """Return a judge that compares with ``masks``, (m, *event)."""
        return cls(model, _energies(model, masks), limit)

    def percentile(self, masks: Tensor) -> Tensor:
        """Return the share in % of the training masks that are more usual than each mask, (m,).

        Masks that are just as usual count half.
        """
        apart = _energies(self.model, masks)[:, None] - self.energies[None, :]
        return 50.0 * (1.0 + apart.sign()).mean(1)

    def needs_review(self, masks: Tensor) -> Tensor:
        """Return which masks are more unusual than ``limit`` % of the training masks, bool (m,)."""
        return self.percentile(masks) > self.limit


@torch.no_grad()
def _energies(model: GenerativeBase, masks: Tensor) -> Tensor:
    # The same codes for every call: a mask keeps its percentile.
    return model.energy(masks, generator=torch_generator(0, "plausibility")).detach()
