"""One deterministic network with the mean and the uncertainty of many."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medseg.data.training_set import Batch
from medseg.seeding import torch_generator
from medseg.settings import settings
from medseg.training.objective import Forward, Objective, Terms
from medseg.variational.sampling import sampled_weights

#: Images and step to the probabilities (b, n, *s) of one member after another.
Teacher = Callable[[Tensor, int], Iterator[Tensor]]


@settings
class DistillationSettings:
    """Train the method as ever, then one network that says at once what its samples say."""

    kind: Literal["distillation"] = "distillation"
    #: Posterior samples per step.
    samples: int = Field(default=4, ge=2)
    #: Weight of the uncertainty beside that of the mean.
    share_weight: float = Field(default=1.0, ge=0)
    #: Weight of the masks beside the teacher.
    label_weight: float = Field(default=0.0, ge=0)


def posterior_teacher(network: nn.Module, *, samples: int, seed: int) -> Teacher:
    """Return a teacher whose members are samples of a variational network, new ones each step.

    Parameters
    ----------
    network : Module
        Variational; moved to where the images are.
    samples : int
    seed : int
    """

    def members(image: Tensor, step: int) -> Iterator[Tensor]:
        network.to(image.device).eval()
        for number in range(samples):
            generator = torch_generator(seed, "teacher", step, number)
            with torch.no_grad(), sampled_weights(network, generator):
                yield network(image).float().sigmoid()

    return members


class DistillationObjective:
    """Match the mean of the members' probabilities, and the share of variance between them.

    A voxel's answer, inside or not, has the variance ``m (1 - m)`` with m the mean of the members'
    probabilities p. By the law of total variance a part of it, ``Var(p)``, lies between the members
    and more data would remove it; the rest, ``E p (1 - p)``, lies within each. The student's first
    n logits are those of m, the next n those of the share ``Var(p) / (m (1 - m))``. Both are fitted
    by cross-entropy, the second weighted with the variance: where nothing varies nothing is asked.
    Both are linear in moments that are unbiased for any number of samples, so that few a step will
    do.

    Parameters
    ----------
    settings : DistillationSettings
    teacher : Teacher
    base : Objective
        Of the masks.

    References
    ----------
    Malinin, Mlodozeniec and Gales 2020, "Ensemble distribution distillation", section 3, who fit a
    Dirichlet by maximum likelihood; this fits the same two moments of a Beta distribution.
    """

    def __init__(
        self, settings: DistillationSettings, *, teacher: Teacher, base: Objective
    ) -> None:
        self._settings, self._teacher, self._base = settings, teacher, base
        self.extra: nn.Module | None = base.extra

    def loss(self, forward: Forward, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch; see :class:`medseg.training.objective.Objective`."""
        mean, between, within = moments(self._teacher(batch.image, step))
        logits, share = forward(batch.image).float().chunk(2, dim=1)
        entropy = F.binary_cross_entropy_with_logits(logits, mean)
        division = (between * F.softplus(-share) + within * F.softplus(share)).mean()
        # In nats per unit of variance, so that it weighs as much as the mean does.
        division = division / (between + within).mean().clamp(min=1e-6)
        loss = entropy + self._settings.share_weight * division
        terms = {"mean_nats": float(entropy.detach()), "share_nats": float(division.detach())}
        if self._settings.label_weight > 0:
            labels, more = self._base.loss(lambda _: logits, batch, step)
            loss, terms = loss + self._settings.label_weight * labels, {**terms, **more}
        return loss, terms


def moments(members: Iterator[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean of probabilities, their variance, and the mean variance within each.

    All three are unbiased for what infinitely many members would have.
    """
    every = torch.stack(list(members))
    return every.mean(0), every.var(0, correction=1), (every * (1 - every)).mean(0)
