"""The discriminator that looks at patches, and the two sides of its game."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from medseg.shapes import ImageBatch

Game = Literal["logistic", "least_squares"]
_SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """Says of each patch of an image how real it looks.

    Convolutions of kernel 4 and stride 2 with leaky ReLU, then one of kernel 3: a patch is 18
    voxels wide for two widths and 38 for three. Nothing is normalised: in so shallow a network that
    would hide how strong noise and contrast are, which is what tells scans apart.

    Parameters
    ----------
    in_channels : int
    widths : tuple of int

    References
    ----------
    Isola et al. 2017, "Image-to-image translation with conditional adversarial networks", 3.2.2.
    """

    def __init__(self, in_channels: int, *, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((in_channels, *widths)):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        self.net = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, image: ImageBatch) -> Float[Tensor, "b 1 *t"]:
        """Return logits, high where a patch looks real."""
        return self.net(image)


def judge(discriminator: nn.Module, image: Tensor) -> Tensor:
    """Return the discriminator's logits of ``image``; no gradient reaches its weights.

    So the loss of the generator and that of the discriminator can be added and descended in one
    step of one optimiser: each moves its own weights only. Adam works number by number, so that is
    what two optimisers would do, stepping at the same time.
    """
    fixed = {name: value.detach() for name, value in discriminator.state_dict().items()}
    return functional_call(discriminator, fixed, (image,))


def towards(logits: Tensor, *, real: bool, game: Game) -> Tensor:
    """Return the loss, a scalar, of logits that should say real (1) or made (0).

    References
    ----------
    Goodfellow et al. 2014, section 3 (logistic, non-saturating for the generator); Mao et al.
    2017, "Least squares generative adversarial networks", equation 9.
    """
    if game == "least_squares":
        return (logits - float(real)).square().mean()
    return F.softplus(-logits if real else logits).mean()


def discriminator_loss(
    discriminator: nn.Module, *, real: Tensor, made: Tensor, game: Game
) -> Tensor:
    """Return the discriminator's loss, halved as in both papers; ``made`` gets no gradient."""
    on_real, on_made = discriminator(torch.cat([real, made.detach()])).chunk(2)
    return 0.5 * (towards(on_real, real=True, game=game) + towards(on_made, real=False, game=game))
