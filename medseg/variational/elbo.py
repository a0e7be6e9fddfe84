"""The two terms of the evidence lower bound, in nats of the whole target set."""

from dataclasses import dataclass

from pydantic import Field
from torch import Tensor

from medseg.errors import TrainingError
from medseg.settings import settings


@settings
class ElboSettings:
    """Weight of the prior and cost of its estimate."""

    #: Temperature of the KL term; 1 is the evidence lower bound itself.
    beta: float = Field(default=1.0, ge=0.0)
    #: Steps over which beta rises linearly from 0; 0 starts at full weight.
    warm_up_steps: int = Field(default=100, ge=0)
    #: Share of the kernels on which the KL is estimated at each step, without bias.
    kl_fraction: float = Field(default=1.0, gt=0.0, le=1.0)

    def beta_at(self, step: int) -> float:
        """Return beta at ``step``, counted from 0; a slow start keeps the means from collapsing."""
        if self.warm_up_steps == 0:
            return self.beta
        return self.beta * min(1.0, (step + 1) / self.warm_up_steps)


@dataclass(frozen=True)
class ElboTerms:
    """Both terms side by side, each a scalar tensor.

    Parameters
    ----------
    data_nats : Tensor, shape ()
        Estimate of ``-E_q log p(y | x, W)`` of **all** target scans: a sum over voxels and scans.
    kl_nats : Tensor, shape ()
        ``KL(q || p)`` of all kernels, or an upper bound of it; of unnormalised priors less the log
        Z of each kernel.
    beta : float
        Temperature of the KL term.
    n_observations : float
        Scored outputs in ``data_nats``: voxels per scan x outputs per voxel x scans.
    normalised : bool
        Whether the priors integrate to one.
    """

    data_nats: Tensor
    kl_nats: Tensor
    beta: float
    n_observations: float
    normalised: bool = True

    @property
    def negative_elbo_nats(self) -> Tensor:
        """``data_nats + beta * kl_nats``, nats of the target set."""
        return self.data_nats + self.beta * self.kl_nats

    @property
    def loss(self) -> Tensor:
        """``negative_elbo_nats / n_observations``: nats per scored output.

        Of the same size for one scan and for twenty, so one learning rate serves both, and a Dice
        term may be added with a weight that keeps its meaning.
        """
        return self.negative_elbo_nats / self.n_observations

    def as_log(self) -> dict[str, float]:
        """Return the numbers for a training log, nats of the target set.

        Without log Z neither a KL nor a bound of the evidence is known: the terms that lack it say
        so in their names.
        """
        lacks = "" if self.normalised else "_minus_log_z"
        return {
            "data_nats": self.data_nats.item(),
            f"kl{lacks}_nats": self.kl_nats.item(),
            "beta": self.beta,
            f"negative_elbo{lacks}_nats": self.negative_elbo_nats.item(),
        }


def elbo_terms(
    mean_nats: Tensor,
    kl_nats: Tensor,
    *,
    voxels_per_scan: int,
    n_scans: float,
    beta: float,
    outputs_per_voxel: float = 1,
    normalised: bool = True,
) -> ElboTerms:
    """Return the terms of ``-E_q log p(y | x, W) + beta KL(q || p)`` for the whole target set.

    ``data_nats = mean_nats * voxels_per_scan * outputs_per_voxel * n_scans``: a step sees a few
    patches, and their mean stands for every voxel of every target scan. Treating voxels as
    independent overstates what a scan tells; ``beta`` is the place to correct it, and a report must
    name it.

    Parameters
    ----------
    mean_nats : Tensor, shape () or (b,)
        Cross-entropy in nats, mean over voxels (and over the outputs of a voxel); a batch is
        averaged. A likelihood only: a Dice term does not belong here.
    kl_nats : Tensor, shape ()
        KL of the whole network, as from ``network_kl``.
    voxels_per_scan : int
        Voxels of one target scan that are scored, such as its mean brain volume in voxels.
    n_scans : float
        Target scans trained on; more where some of the batches are not theirs.
    beta : float
        Temperature of the KL term.
    outputs_per_voxel : float
        Independent outputs that ``mean_nats`` was averaged over: the number of regions for
        sigmoid heads (of known ones, in the mean over scans), 1 for a softmax.
    normalised : bool
        Whether the priors integrate to one.

    Raises
    ------
    TrainingError
        When a count is below 1 or beta is negative.
    """
    counts = {
        "voxels_per_scan": voxels_per_scan,
        "n_scans": n_scans,
        "outputs_per_voxel": outputs_per_voxel,
    }
    for name, count in counts.items():
        if count < 1:
            raise TrainingError(
                f"{name} must be at least 1, but it is {count}",
                hint="pass the size of the target set, not of a batch",
            )
    if beta < 0:
        raise TrainingError(
            f"beta must not be negative, but it is {beta}", hint="0 switches the prior off"
        )
    n_observations = voxels_per_scan * outputs_per_voxel * n_scans
    return ElboTerms(
        data_nats=mean_nats.mean() * n_observations,
        kl_nats=kl_nats,
        beta=beta,
        n_observations=n_observations,
        normalised=normalised,
    )
