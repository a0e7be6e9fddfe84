"""Do samples look like the items, and are all items among them? Told by nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medseg.errors import ModelError


@dataclass(frozen=True)
class Coverage:
    """How samples lie among items.

    Parameters
    ----------
    coverage : float
        Share of the items that have a sample nearer than their k-th nearest item. Of samples from
        the items' own distribution, as many as items, it is about ``1 - 2^-k``.
    fidelity : float
        Share of the samples that are nearer to some item than that item's k-th nearest item.
    spread : float
        Total variance of the samples over that of the items.
    """

    coverage: float
    fidelity: float
    spread: float

    @property
    def collapsed(self) -> bool:
        """Fewer than half of the items are covered, though samples resemble items or each other."""
        return self.coverage < 0.5 and (self.fidelity >= 0.5 or self.spread < 0.25)

    @property
    def missed(self) -> bool:
        """Fewer than half of the items are covered, for the samples are elsewhere."""
        return self.coverage < 0.5 and not self.collapsed


def measure_coverage(
    items: Float[Tensor, "m d"], samples: Float[Tensor, "n d"], *, neighbours: int = 5
) -> Coverage:
    """Return how ``samples`` lie among ``items``; best with as many of both.

    Parameters
    ----------
    items, samples : Tensor, shape (m, d) and (n, d)
        In units in which distances mean something. Memory is O(m (m + n)).
    neighbours : int
        k, less than m.

    References
    ----------
    Naeem et al. (2020), Reliable fidelity and diversity metrics for generative models, equations 1
    (fidelity, there precision) and 5 (coverage).
    """
    if not 1 <= neighbours < len(items) or not len(samples):
        raise ModelError(
            f"Coverage needs 1 to {len(items) - 1} neighbours and at least one sample, but it was "
            f"given {neighbours} and {len(samples)} samples."
        )
    # The nearest item of an item is itself.
    radius = torch.cdist(items, items).topk(neighbours + 1, largest=False).values[:, -1]
    within = torch.cdist(items, samples) <= radius[:, None]
    variances = [x.var(0, correction=0).sum().clamp(min=1e-30) for x in (samples, items)]
    return Coverage(
        coverage=float(within.any(1).float().mean()),
        fidelity=float(within.any(0).float().mean()),
        spread=float(variances[0] / variances[1]),
    )
