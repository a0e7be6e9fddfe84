"""Objectives that need no mask: what a network can learn from scans alone.

They train a source like any other, whose head means nothing: a fine-tuning takes the rest.
"""

import itertools
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medseg.data.training_set import Batch
from medseg.errors import TrainingError
from medseg.networks.unet import UNet
from medseg.seeding import seeded_torch, torch_generator
from medseg.settings import settings
from medseg.training.objective import Forward, Terms

#: Voxels along each axis to which the deepest features of a patch are pooled.
_POOLED = 2


@settings
class MaskedAutoencoderSettings:
    """Reconstruct blocks of the scan that the network does not see."""

    kind: Literal["masked_autoencoder"] = "masked_autoencoder"
    #: Side of a block in voxels.
    block: int = Field(default=4, ge=1)
    #: Share of the blocks that are hidden.
    masked_fraction: float = Field(default=0.6, gt=0, lt=1)


@settings
class RelativePositionSettings:
    """Tell where in a scan one patch lies as seen from another."""

    kind: Literal["relative_position"] = "relative_position"
    #: Side of a cube in voxels; a network of L levels needs more than 2^(L-1), or its deepest
    #: features are one voxel, of which normalisation leaves nothing.
    side: int = Field(default=10, ge=2)
    #: Voxels between neighbours, so that no edge runs on from one into the other.
    gap: int = Field(default=2, ge=0)
    #: Each neighbour is moved by up to this many voxels along each axis.
    jitter: int = Field(default=1, ge=0)
    #: Neighbours asked about per patch of the batch.
    neighbours: int = Field(default=4, ge=1)
    #: Units of the classifier's hidden layer.
    hidden: int = Field(default=128, ge=1)

    @property
    def patch_side(self) -> int:
        """Voxels along each axis of a patch that holds a centre and its neighbours."""
        return 3 * self.side + 2 * self.gap + 2 * self.jitter


PretextSettings = MaskedAutoencoderSettings | RelativePositionSettings


def block_mask(
    shape: tuple[int, ...], *, block: int, fraction: float, generator: Generator
) -> Tensor:
    """Return which voxels are hidden, in whole blocks, the same number of them in each patch.

    Parameters
    ----------
    shape : tuple of int
        ``(b, *s)``; blocks at the end of an axis may be cut.
    block : int
        Side in voxels.
    fraction : float
        Share of the blocks, rounded to at least one hidden and one seen where there are two.
    generator : Generator

    Returns
    -------
    Tensor, shape (b, 1, *s), bool
    """
    patches, *sides = shape
    grid = [-(-side // block) for side in sides]
    blocks = torch.Size(grid).numel()
    hidden = min(max(1, round(fraction * blocks)), max(1, blocks - 1))
    rank = torch.rand(patches, blocks, generator=generator).argsort(1).argsort(1)
    mask = (rank < hidden).view(patches, 1, *grid)
    for axis, side in enumerate(sides, start=2):
        mask = mask.repeat_interleave(block, dim=axis).narrow(axis, 0, side)
    return mask


class MaskedAutoencoderObjective:
    """Mean squared error of the hidden voxels, and of those alone.

    A block is hidden in all channels: another modality would give it away. Voxels outside the head
    and channels that are absent, 0 in the scan, are not asked for.

    Parameters
    ----------
    settings : MaskedAutoencoderSettings
    seed : int
        Of the blocks.

    References
    ----------
    He et al. 2022, "Masked autoencoders are scalable vision learners", section 3; with a U-Net in
    place of the transformer the hidden blocks are 0 and not left out.
    """

    extra: nn.Module | None = None

    def __init__(self, settings: MaskedAutoencoderSettings, *, seed: int) -> None:
        self._settings, self._seed = settings, seed

    def hidden(self, image: Tensor, step: int) -> Tensor:
        """Return the voxels (b, 1, *s) that step ``step`` hides of an image (b, c, *s)."""
        mask = block_mask(
            (image.shape[0], *image.shape[2:]),
            block=self._settings.block,
            fraction=self._settings.masked_fraction,
            generator=torch_generator(self._seed, "hidden blocks", step),
        )
        return mask.to(image.device)

    def loss(self, forward: Forward, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch; see :class:`medseg.training.objective.Objective`."""
        image = batch.image
        hidden = self.hidden(image, step)
        restored = forward(image.masked_fill(hidden, 0.0)).float()
        asked = hidden & image.ne(0).any(1, keepdim=True) & _present(image)
        loss = mean_squared_error(restored, image, asked)
        return loss, {"reconstruction": float(loss.detach())}


def mean_squared_error(restored: Tensor, image: Tensor, asked: Tensor) -> Tensor:
    """Return the mean squared difference over the voxels asked for; 0 where there are none."""
    error = (restored - image).square() * asked
    return error.sum() / asked.sum().clamp(min=1)


def _present(image: Tensor) -> Tensor:
    """Return which channels (b, c, 1, ...) hold anything."""
    return image.flatten(2).ne(0).any(2).view(*image.shape[:2], *[1] * (image.ndim - 2))


class EncoderView(nn.Module):
    """A U-Net down to its deepest features, pooled to two voxels along each axis.

    Parameters
    ----------
    network : UNet
        Shared, not copied.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        pool = nn.AdaptiveAvgPool3d if network.settings.dims == 3 else nn.AdaptiveAvgPool2d
        self.pool = pool(_POOLED)

    @property
    def width(self) -> int:
        """Numbers that describe a patch."""
        return self.network.settings.widths[-1] * _POOLED**self.network.settings.dims

    def forward(self, image: Tensor) -> Tensor:
        """Return the description ``(b, width)`` of patches ``(b, c, *s)``."""
        return self.pool(self.network.encode(image)[-1]).flatten(1)


class RelativePositionObjective:
    """Cross-entropy of the place of a neighbour: 26 classes in a volume, 8 in a slice.

    From each patch of the batch a centre and some of its neighbours are cut, with gaps between them
    and a little jitter. The network is an :class:`EncoderView`; what compares two descriptions is
    in ``extra``. Let the batches not be flipped: left and right would then be a matter of chance.

    Parameters
    ----------
    settings : RelativePositionSettings
    view : EncoderView
    seed : int
        Of the classifier's weights, the neighbours and the jitter.

    References
    ----------
    Doersch, Gupta and Efros 2015, "Unsupervised visual representation learning by context
    prediction", section 3.
    """

    def __init__(self, settings: RelativePositionSettings, *, view: EncoderView, seed: int) -> None:
        self._settings, self._seed = settings, seed
        dims = view.network.settings.dims
        self._offsets = [o for o in itertools.product((-1, 0, 1), repeat=dims) if any(o)]
        with seeded_torch(seed, "position classifier"):
            self.extra: nn.Module | None = nn.Sequential(
                nn.Linear(2 * view.width, settings.hidden),
                nn.ReLU(),
                nn.Linear(settings.hidden, len(self._offsets)),
            )

    def loss(self, forward: Forward, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Return the loss of one batch; see :class:`medseg.training.objective.Objective`.

        Raises
        ------
        TrainingError
            The patches are too small to be cut.
        """
        logits, places = self.answers(forward, batch, step)
        loss = F.cross_entropy(logits.float(), places)
        right = (logits.argmax(1) == places).float().mean()
        return loss, {"cross_entropy_nats": float(loss.detach()), "accuracy": float(right)}

    def answers(self, forward: Forward, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Return logits (pairs, places) and the true places (pairs,) of one batch."""
        generator = torch_generator(self._seed, "neighbours", step)
        image, asked = batch.image, self._settings.neighbours
        patches, places = len(image), []
        cut = [self._cut(one, (0,) * (image.ndim - 2), generator) for one in image]
        for one in image:
            for _ in range(asked):
                place = int(torch.randint(len(self._offsets), (), generator=generator))
                places.append(place)
                cut.append(self._cut(one, self._offsets[place], generator))
        found = forward(torch.stack(cut))
        pairs = torch.cat([found[:patches].repeat_interleave(asked, 0), found[patches:]], dim=1)
        return _checked(self.extra)(pairs), torch.tensor(places, device=image.device)

    def _cut(self, image: Tensor, offset: tuple[int, ...], generator: Generator) -> Tensor:
        """Return a cube of a patch (c, *s), so many places away from its middle."""
        side, gap, jitter = self._settings.side, self._settings.gap, self._settings.jitter
        if min(image.shape[1:]) < self._settings.patch_side:
            raise TrainingError(
                f"A patch must hold three cubes of {side} voxels along each axis, gaps of {gap} "
                f"and jitter of {jitter}, but it is {tuple(image.shape[1:])} voxels.",
                hint=f"Set patch.size to {self._settings.patch_side} along each axis.",
            )
        starts = [
            (length - side) // 2
            + step * (side + gap)
            + int(torch.randint(-jitter, jitter + 1, (), generator=generator))
            for length, step in zip(image.shape[1:], offset, strict=True)
        ]
        return image[(slice(None), *(slice(start, start + side) for start in starts))]


def _checked(module: nn.Module | None) -> nn.Module:
    if module is None:
        raise TrainingError("The relative-position objective needs its classifier, but has none.")
    return module
