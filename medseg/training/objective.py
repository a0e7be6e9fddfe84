"""What a training minimises."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from medseg.data.training_set import Batch
from medseg.losses.segmentation import (
    LossSettings,
    Mode,
    segmentation_loss,
    soft_dice_loss,
    voxel_cross_entropy,
)
from medseg.priors.layer_priors import LayerPriors
from medseg.seeding import torch_generator
from medseg.variational.elbo import ElboSettings, elbo_terms
from medseg.variational.kl import network_kl
from medseg.variational.sampling import use_generator
from medseg.variational.swag import WeightMoments

Terms = dict[str, float]
Forward = Callable[[Tensor], Tensor]


class Objective(Protocol):
    """A scalar to be minimised, and the parameters it brings of its own."""

    @property
    def extra(self) -> nn.Module | None:
        """Module trained along with the network, such as an inference network; or None."""
        ...

    def loss(self, forward: Forward, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch, a scalar, and its terms for the log.

        Parameters
        ----------
        forward : callable
            The network as the training strategy wraps it: image batch to logits.
        batch : Batch
        step : int
            Counted from 0; all chance is a function of it.
        """
        ...


class SegmentationObjective:
    """Cross-entropy and soft Dice, with an optional pull to given weights.

    ``loss + strength * sum_w (w - w_source)^2`` over the parameters named in ``anchor``.

    Parameters
    ----------
    mode : {"regions", "classes"}
    settings : LossSettings
    network : Module
        Whose parameters the pull is on.
    anchor : mapping of parameter name to Tensor, optional
        Weights to stay near to.
    strength : float
        Weight of the pull, per squared unit of weight.
    seed : int
        Of dropout, where the network has it.

    References
    ----------
    Li, Grandvalet and Davoine 2018, "Explicit inductive bias for transfer learning", equation 2
    (their coefficient is halved).
    """

    extra: nn.Module | None = None

    def __init__(
        self,
        *,
        mode: Mode,
        settings: LossSettings,
        network: nn.Module,
        anchor: Mapping[str, Tensor] | None = None,
        strength: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._mode: Mode = mode
        self._settings = settings
        self._network, self._seed = network, seed
        parameters = dict(network.named_parameters())
        self._pulled = [(parameters[name], value) for name, value in (anchor or {}).items()]
        self._strength = strength

    def loss(self, forward: Forward, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch; see :class:`Objective`."""
        with use_generator(self._network, torch_generator(self._seed, "dropout", step)):
            logits = forward(batch.image)
        loss, terms = segmentation_loss(
            logits, batch.target, batch.known, mode=self._mode, settings=self._settings
        )
        record = {name: float(value) for name, value in terms.items()}
        if self._pulled:
            # The training strategy may have moved the network since the anchor was taken.
            self._pulled = [(now, then.to(now.device)) for now, then in self._pulled]
            pull = torch.stack([(now - then).square().sum() for now, then in self._pulled]).sum()
            loss = loss + self._strength * pull
            record["squared_distance"] = float(pull.detach())
        return loss, record


@dataclass(eq=False)
class Held:
    """A weight without a posterior, and the Gaussian that is its prior.

    Parameters
    ----------
    value, mean : Tensor
        The weight, and where it is held.
    std : float
        Above 0, in the unit of the weight.
    """

    value: Tensor
    mean: Tensor
    std: float

    def nats(self) -> Tensor:
        """Return minus the log density but for its constant, a scalar in nats."""
        # The training strategy may have moved the weight since.
        self.mean = self.mean.to(self.value.device)
        return 0.5 * ((self.value - self.mean) / self.std).square().sum()


class SwagObjective:
    """Another objective, while the path of the weights is followed over the last half of the steps.

    Parameters
    ----------
    base : Objective
        Without parameters of its own.
    network : Module
    steps : int
        Of the training.
    rank : int
        Deviations kept; as many moments are looked at, where there are as many steps.
    """

    def __init__(self, base: Objective, network: nn.Module, *, steps: int, rank: int) -> None:
        self._base, self._network = base, network
        half = steps - steps // 2
        self._first, self._every = steps // 2, -(-half // rank)
        self.moments = WeightMoments(self._weights(), rank=rank)
        # Kept in checkpoints; it has nothing to train.
        self.extra: nn.Module | None = self.moments

    def loss(self, forward: Forward, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch; see :class:`Objective`."""
        if step >= self._first and (step - self._first) % self._every == 0:
            self.moments.add(self._weights())
        return self._base.loss(forward, batch, step)

    def _weights(self) -> dict[str, Tensor]:
        return dict(self._network.named_parameters())


class VariationalObjective:
    """Negative evidence lower bound per scored output, plus a Dice utility kept apart from it.

    Parameters
    ----------
    network : Module
        Variational; its layers' KL is taken against ``priors``.
    priors : LayerPriors
        Its inference networks, where it has them, are trained too.
    mode : {"regions", "classes"}
    loss : LossSettings
    elbo : ElboSettings
    observations : (int, float, float)
        Voxels per scan, scans and outputs per voxel of the target set, see
        :func:`medseg.variational.elbo.elbo_terms`.
    seed : int
        Of all noise.
    held : sequence of Held
        Weights without a posterior that a prior holds: their maximum a posteriori is sought.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        priors: LayerPriors,
        mode: Mode,
        loss: LossSettings,
        elbo: ElboSettings,
        observations: tuple[int, float, float],
        seed: int,
        held: Sequence[Held] = (),
    ) -> None:
        self.extra: nn.Module | None = priors
        self._held = held
        self._network, self._priors = network, priors
        self._mode: Mode = mode
        self._loss, self._elbo, self._seed = loss, elbo, seed
        self._voxels, self._scans, self._outputs = observations

    def loss(self, forward: Forward, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch; see :class:`Objective`."""
        with use_generator(self._network, torch_generator(self._seed, "weight noise", step)):
            logits = forward(batch.image)
        nats = voxel_cross_entropy(logits, batch.target, batch.known, self._mode).mean()
        kl = network_kl(
            self._network,
            self._priors,
            generator=torch_generator(self._seed, "kl", step),
            fraction=self._elbo.kl_fraction,
        )
        if self._held:
            kl = kl + torch.stack([held.nats() for held in self._held]).sum()
        bound = elbo_terms(
            nats,
            kl,
            voxels_per_scan=self._voxels,
            n_scans=self._scans,
            beta=self._elbo.beta_at(step),
            outputs_per_voxel=self._outputs,
            normalised=self._priors.is_normalised,
        )
        dice = soft_dice_loss(
            logits,
            batch.target,
            batch.known,
            self._mode,
            smoothing_voxels=self._loss.dice_smoothing_voxels,
        ).mean()
        terms = {"cross_entropy_nats": float(nats.detach()), "dice": float(dice.detach())}
        loss = self._loss.cross_entropy * bound.loss + self._loss.dice * dice
        return loss, {**bound.as_log(), **terms}
