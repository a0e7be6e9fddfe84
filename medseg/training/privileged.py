"""A modality that training scans have and later scans have not, such as one with contrast agent."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medseg.data.training_set import Batch
from medseg.seeding import torch_generator
from medseg.settings import settings
from medseg.training.objective import Forward, Objective, Terms


@settings
class PrivilegedSettings:
    """Learn to do without some channels from what is known with them."""

    kind: Literal["privileged"] = "privileged"
    #: Channels that will be missing when the network is used.
    channels: tuple[str, ...] = Field(min_length=1)
    #: Weight of the agreement with the teacher; 0 is training without the channels.
    weight: float = Field(default=1.0, ge=0)
    #: A network trained before on all channels by the same method, or the student itself as it sees
    #: all channels.
    teacher: Literal["trained", "self"] = "trained"
    #: Chance that a patch is shown without the channels; with teacher "self" below 1, so that it
    #: learns from them.
    hidden_fraction: float = Field(default=1.0, gt=0, le=1)


class PrivilegedObjective:
    """``base(y, s(x)) + weight * H(t(x, x*), s(x))``: the student s sees x, the teacher also x*.

    H is the cross-entropy per voxel and region between the teacher's probabilities and the
    student's, less the teacher's own entropy, so that 0 is agreement. It uses no mask.

    Parameters
    ----------
    base : Objective
        Of the segmentation.
    settings : PrivilegedSettings
    channels : sequence of int
        Places of the privileged channels.
    teacher : callable, optional
        Images to logits; None for the student itself.
    seed : int
        Of the patches that are shown without the channels.

    References
    ----------
    Vapnik and Vashist 2009, "A new learning paradigm: learning using privileged information";
    Lopez-Paz et al. 2016, "Unifying distillation and privileged information", equation 6.
    """

    def __init__(
        self,
        base: Objective,
        settings: PrivilegedSettings,
        *,
        channels: Sequence[int],
        teacher: Callable[[Tensor], Tensor] | None,
        seed: int,
    ) -> None:
        self._base, self._settings, self._seed = base, settings, seed
        self._channels, self._teacher = list(channels), teacher
        self.extra: nn.Module | None = base.extra

    def loss(self, forward: Forward, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch; see :class:`medseg.training.objective.Objective`."""
        generator = torch_generator(self._seed, "privileged", step)
        chance = torch.rand(len(batch.image), generator=generator)
        seen = hide(batch.image, self._channels, chance < self._settings.hidden_fraction)
        made: list[Tensor] = []

        def both(image: Tensor) -> Tensor:
            # Within the base's call, so that all noise is the one of this step.
            logits = forward(image)
            made.append(logits)
            if self._settings.weight > 0:
                with torch.no_grad():
                    made.append((self._teacher or forward)(batch.image).float().sigmoid())
            return logits

        loss, terms = self._base.loss(both, replace(batch, image=seen), step)
        if self._settings.weight == 0:
            return loss, terms
        logits, wanted = made
        entropy = F.binary_cross_entropy(wanted, wanted)
        gap = F.binary_cross_entropy_with_logits(logits.float(), wanted) - entropy
        return loss + self._settings.weight * gap, {**terms, "teacher_gap": float(gap.detach())}


def hide(image: Tensor, channels: Sequence[int], which: Tensor | None = None) -> Tensor:
    """Return images (b, c, *s) with channels at 0, in all of them or in those of ``which`` (b,)."""
    hidden = torch.zeros(image.shape[:2], dtype=torch.bool)
    hidden[:, list(channels)] = True
    if which is not None:
        hidden &= which[:, None]
    wide = hidden.view(*hidden.shape, *[1] * (image.ndim - 2))
    return image.masked_fill(wide.to(image.device), 0.0)
