"""Cross-entropy, a likelihood in nats per voxel, and soft Dice, a utility; per case.

A region that the source of a case does not define is *unknown* there: it takes no part in the
case's loss and its logits get no gradient. A case with no known region has loss 0.

In mode "regions" every channel is a yes-or-no question of its own (sigmoid). In mode "classes" the
channels exclude each other (softmax) and the first is the background; an unknown class is taken
out of the softmax.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from medseg.errors import ShapeError
from medseg.settings import settings
from medseg.shapes import KnownBatch, LogitBatch, PerCase, TargetBatch

Mode = Literal["regions", "classes"]


@settings
class LossSettings:
    """Weights of the terms of `segmentation_loss`."""

    cross_entropy: float = Field(default=1.0, ge=0)
    dice: float = Field(default=1.0, ge=0)
    #: Voxels added to numerator and denominator of soft Dice: 1 makes an empty region a mild pull
    #: to an empty prediction, 1e-5 makes it all or nothing.
    dice_smoothing_voxels: float = Field(default=1.0, gt=0)


def voxel_cross_entropy(
    logits: LogitBatch, target: TargetBatch, known: KnownBatch, mode: Mode
) -> PerCase:
    """Return the mean cross-entropy over voxels (and known regions), in nats per voxel.

    Parameters
    ----------
    logits : Tensor, shape (b, n, *s)
    target : Tensor, shape (b, n, *s)
        1 inside, 0 outside; in mode "classes" one channel is 1 at each voxel.
    known : Tensor of bool, shape (b, n)
    mode : {"regions", "classes"}

    Returns
    -------
    Tensor of float32, shape (b,)

    Raises
    ------
    ShapeError
        When the shapes do not agree.
    """
    logits, target = _prepared(logits, target, known)
    if mode == "classes":
        per_channel = -target * _log_softmax(logits, known)
        return per_channel.flatten(2).mean(2).sum(1) * known.any(1)
    per_voxel = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _mean_of_known(per_voxel.flatten(2).mean(2), known)


def soft_dice_loss(
    logits: LogitBatch,
    target: TargetBatch,
    known: KnownBatch,
    mode: Mode,
    *,
    smoothing_voxels: float = 1.0,
) -> PerCase:
    """Return one minus the soft Dice coefficient, averaged over the known regions of each case.

    ``1 - (2 sum(p t) + a) / (sum(p) + sum(t) + a)``, with sums over the voxels of one region of
    one case. In mode "classes" the background is left out.

    Parameters
    ----------
    logits, target, known, mode
        As in `voxel_cross_entropy`.
    smoothing_voxels : float
        a above.

    Returns
    -------
    Tensor of float32, shape (b,)

    Raises
    ------
    ShapeError
        When the shapes do not agree.

    References
    ----------
    Milletari et al. 2016, "V-Net", section 3, with a plain instead of a squared denominator.
    """
    logits, target = _prepared(logits, target, known)
    if mode == "classes":
        chance = _log_softmax(logits, known).exp()[:, 1:]
        target, known = target[:, 1:], known[:, 1:]
    else:
        chance = logits.sigmoid()
    chance, target = chance.flatten(2), target.flatten(2)
    overlap = (chance * target).sum(2)
    total = chance.sum(2) + target.sum(2)
    loss = 1 - (2 * overlap + smoothing_voxels) / (total + smoothing_voxels)
    return _mean_of_known(loss, known)


def segmentation_loss(
    logits: LogitBatch,
    target: TargetBatch,
    known: KnownBatch,
    *,
    mode: Mode,
    settings: LossSettings,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the terms, averaged over cases, and the terms.

    Parameters
    ----------
    logits, target, known, mode
        As in `voxel_cross_entropy`.
    settings : LossSettings

    Returns
    -------
    loss : Tensor, shape ()
    terms : dict of str to Tensor, shape ()
        Detached and unweighted: ``cross_entropy_nats`` (per voxel) and ``dice`` (the soft Dice
        loss: 0 is perfect).

    Raises
    ------
    ShapeError
        When the shapes do not agree.
    """
    entropy = voxel_cross_entropy(logits, target, known, mode).mean()
    dice = soft_dice_loss(
        logits, target, known, mode, smoothing_voxels=settings.dice_smoothing_voxels
    ).mean()
    loss = settings.cross_entropy * entropy + settings.dice * dice
    return loss, {"cross_entropy_nats": entropy.detach(), "dice": dice.detach()}


def _prepared(logits: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float32, and 0 for whatever unknown regions hold, NaN included."""
    if logits.shape != target.shape or known.shape != logits.shape[:2]:
        raise ShapeError(
            "logits and target are (b, n, *s) and known is (b, n), but they are "
            f"{tuple(logits.shape)}, {tuple(target.shape)} and {tuple(known.shape)}",
            hint="Check the regions of the network against those of the training set.",
        )
    logits, target = logits.float(), target.float()
    if bool(known.all()):
        return logits, target
    unknown = ~_over_voxels(known, logits)
    return logits.masked_fill(unknown, 0.0), target.masked_fill(unknown, 0.0)


def _log_softmax(logits: Tensor, known: Tensor) -> Tensor:
    """Return log probabilities among the known classes.

    Unknown ones get a number that is finite, so that 0 times it is 0, but whose exponential is 0.
    """
    unknown = ~_over_voxels(known, logits)
    return logits.masked_fill(unknown, torch.finfo(logits.dtype).min / 4).log_softmax(1)


def _over_voxels(known: Tensor, logits: Tensor) -> Tensor:
    return known.reshape(*known.shape, *[1] * (logits.ndim - 2))


def _mean_of_known(per_region: Tensor, known: Tensor) -> Tensor:
    """Return the mean over the known regions of each case, 0 where there are none."""
    count = known.sum(1).clamp(min=1)
    return (per_region * known).sum(1) / count
