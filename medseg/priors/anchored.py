"""A prior that keeps the source, and where it lets go still asks for a plausible filter."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from medseg.errors import PriorError
from medseg.priors.gaussian import SourceCentredGaussian
from medseg.priors.prior import FilterPrior
from medseg.shapes import Kernels, PerKernel


class AnchoredPrior(nn.Module):
    """A mixture for each kernel of a layer: near its source kernel, or anywhere filters are likely.

    ``p(w_i) = pi N(w_i; source_i, width^2) + (1 - pi) p_learned(w_i)``. Near the source it pulls
    like a Gaussian around it; a kernel that the target needs elsewhere pays a bounded price and is
    then held by the learned filter prior. ``pi`` is learned with the posterior (empirical Bayes):
    it is one number a layer, against thousands of kernels.

    Parameters
    ----------
    anchor : SourceCentredGaussian
        One Gaussian per kernel of the layer, in its order.
    learned : FilterPrior
        Over single kernels, in the units of the layer.
    share : float
        Start of ``pi``, above 0 and below 1.

    Raises
    ------
    PriorError
        The two are for kernels of different shapes, or the share is out of range.

    References
    ----------
    The components: Krishnan et al. (2020), MOPED, equation 6; Atanov et al. (2019), The deep
    weight prior, equation 8.
    """

    is_exact = False

    def __init__(
        self, anchor: SourceCentredGaussian, learned: FilterPrior, *, share: float = 0.9
    ) -> None:
        super().__init__()
        if anchor.kernel_shape != learned.kernel_shape:
            raise PriorError(
                f"Both parts of a mixture must score kernels of one shape, but these score "
                f"{anchor.kernel_shape} and {learned.kernel_shape}."
            )
        if not 0.0 < share < 1.0:
            raise PriorError(f"The share of the source must be above 0 and below 1, not {share}.")
        if not learned.is_normalised:
            raise PriorError(
                "The parts of a mixture must integrate to one, but the learned prior does not.",
                hint="Take a vae, a gaussian, ppca, gmm, flow or som as the learned prior.",
            )
        self.anchor, self.learned = anchor, learned
        self.share_logit = nn.Parameter(torch.logit(torch.tensor(share)))

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one slice."""
        return self.anchor.kernel_shape

    @property
    def is_normalised(self) -> bool:
        """Whether the density integrates to one: it does."""
        return True

    @property
    def share(self) -> float:
        """Weight of the source's part, ``pi``."""
        return float(self.share_logit.detach().sigmoid())

    def select(self, rows: Tensor) -> AnchoredPrior:
        """Return the prior of the kernels with the numbers ``rows``, with the same share."""
        chosen = AnchoredPrior(self.anchor.select(rows), self.learned)
        chosen.share_logit = self.share_logit
        return chosen

    def log_bound(self, kernels: Kernels, *, generator: torch.Generator | None = None) -> PerKernel:
        """Return a lower bound on log p in nats, (m,), of the kernels in the layer's order."""
        near = self.anchor.log_bound(kernels)
        likely = self.learned.log_bound(kernels, generator=generator)
        return torch.logaddexp(
            logsigmoid(self.share_logit) + near, logsigmoid(-self.share_logit) + likely
        )

    def sample(self, n: int, *, generator: torch.Generator) -> Kernels:
        """Return one kernel for each position, in order; ``n`` must be their number."""
        near = self.anchor.sample(n, generator=generator)
        likely = self.learned.sample(n, generator=generator)
        device = generator.device
        drawn = torch.rand(n, generator=generator, device=device).to(near.device)
        stays = (drawn < self.share).view(-1, *[1] * len(self.kernel_shape))
        return torch.where(stays, near, likely)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the share's logit and what the learned prior trains."""
        return [self.share_logit, *self.learned.trainable_parameters()]
