"""What the training loop minimises for each method.

Generator and discriminator learn in the same step of the same loop: the discriminator is the
objective's ``extra`` module, and :func:`medseg.translation.adversary.judge` keeps the two apart. So
resuming, averaging and checks on numbers are those of every other training.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from medseg.data.training_set import Batch
from medseg.training.objective import Forward, Terms
from medseg.translation.adversary import Game, discriminator_loss, judge, towards
from medseg.translation.generator import CyclePair
from medseg.translation.resolution import thicken


def brain_l1(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute difference where ``wanted`` is not 0, which is inside the brain."""
    return (made - wanted).abs().sum() / (wanted != 0).sum().clamp(min=1)


class PairedObjective:
    """pix2pix: near to the true slice, and like a true one to a discriminator that sees the input.

    ``adversarial_weight * L_adv(G, D) + l1_weight * |G(x) - y|``.

    Parameters
    ----------
    discriminator : Module or None
        Sees input and output side by side; None leaves the distance alone.
    inputs : int
        Channels of a batch's image that are the input; the others are the true output.
    game : Game
    weights : (float, float)
        Of the discriminator's opinion and of the distance.

    References
    ----------
    Isola et al. 2017, "Image-to-image translation with conditional adversarial networks",
    equation 4.
    """

    def __init__(
        self,
        discriminator: nn.Module | None,
        *,
        inputs: int,
        game: Game,
        weights: tuple[float, float],
    ) -> None:
        self.extra = discriminator
        self._inputs, self._weights = inputs, weights
        self._game: Game = game

    def loss(self, forward: Forward, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch; see :class:`medseg.training.objective.Objective`."""
        x, y = batch.image[:, : self._inputs], batch.image[:, self._inputs :]
        made = forward(x)
        distance = brain_l1(made, y)
        terms = {"l1": float(distance.detach())}
        if self.extra is None:
            return distance, terms
        adversarial, near = self._weights
        pair = x.new_empty(len(x), x.shape[1] + y.shape[1], *x.shape[2:])
        pair[:, : self._inputs], pair[:, self._inputs :] = x, made
        fooled = towards(judge(self.extra, pair), real=True, game=self._game)
        judged = discriminator_loss(self.extra, real=batch.image, made=pair, game=self._game)
        terms |= {"adversarial": float(fooled.detach()), "discriminator": float(judged.detach())}
        whole = (adversarial * fooled + near * distance) / max(adversarial, near)
        return whole + judged, terms


class CycleObjective:
    """CycleGAN: each way looks like the other domain, and there and back is where it began.

    ``adversarial * (L_adv(G, D_Y) + L_adv(F, D_X)) + cycle * (|F(G(x)) - x| + |G(F(y)) - y|)
    + identity * (|G(y) - y| + |F(x) - x|)``.

    The discriminators see the newest images only: a pool of earlier ones would have to be kept in
    every checkpoint.

    Parameters
    ----------
    pair : CyclePair
        Says how the network's output is divided.
    discriminators : ModuleList of two Modules
        Of the first and of the second domain.
    game : Game
    weights : (float, float, float)
        Of the opinion of the discriminators, of the cycle and of the identity.

    References
    ----------
    Zhu et al. 2017, "Unpaired image-to-image translation using cycle-consistent adversarial
    networks", equation 3 and section 5.2 (identity).
    """

    def __init__(
        self,
        pair: CyclePair,
        discriminators: nn.ModuleList,
        *,
        game: Game,
        weights: tuple[float, float, float],
    ) -> None:
        self.extra: nn.Module | None = discriminators
        self._discriminators, self._weights = discriminators, weights
        self._game: Game = game
        self._channels, self._sizes = pair.channels, pair.sizes

    def loss(self, forward: Forward, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch; see :class:`medseg.training.objective.Objective`."""
        x, y = batch.image.split(list(self._channels), dim=1)
        whole = forward(batch.image)
        ends = pairwise(accumulate(self._sizes, initial=0))
        second, first, back_first, back_second, *same = (whole[:, a:b] for a, b in ends)
        of_first, of_second = self._discriminators
        sides = ((of_first, x, first), (of_second, y, second))
        fooled = torch.stack(
            [towards(judge(d, made), real=True, game=self._game) for d, _, made in sides]
        ).sum()
        judged = torch.stack(
            [discriminator_loss(d, real=r, made=m, game=self._game) for d, r, m in sides]
        ).sum()
        cycle = brain_l1(back_first, x) + brain_l1(back_second, y)
        adversarial, around, stay = self._weights
        loss = adversarial * fooled + around * cycle
        terms: Terms = {"cycle_l1": float(cycle.detach())}
        if same:
            identity = brain_l1(same[0], y) + brain_l1(same[1], x)
            loss = loss + stay * identity
            terms["identity_l1"] = float(identity.detach())
        terms |= {"adversarial": float(fooled.detach()), "discriminator": float(judged.detach())}
        return loss / max(self._weights) + judged, terms


class ResolutionObjective:
    """Mean absolute difference to the thin slices whose averages the network is given.

    Parameters
    ----------
    factor, reach : int
        Thin slices per thick one; neighbouring planes on each side.
    """

    extra: nn.Module | None = None

    def __init__(self, *, factor: int, reach: int) -> None:
        self._factor, self._reach = factor, reach

    def loss(self, forward: Forward, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch; see :class:`medseg.training.objective.Objective`."""
        made = forward(thicken(batch.image, self._factor))
        distance = (made - batch.image[:, self._reach : self._reach + 1]).abs().mean()
        return distance, {"l1": float(distance.detach())}
