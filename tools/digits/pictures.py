"""Letters drawn from fonts, and scikit-learn's digits: scanned and scaled alike.

Nothing is downloaded. The digits are the 1797 of the UCI set, bitmaps of 32 x 32 counted in blocks
of 4 x 4. Letters A to J of matplotlib's own fonts take the place of notMNIST, and are made into
such bitmaps and counted the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from medseg.data.training_set import Batch
from medseg.seeding import torch_generator

CLASSES = 10
LETTERS = "ABCDEFGHIJ"
#: Faces that matplotlib ships and that have these letters.
FACES = (
    *(f"DejaVuSans{face}" for face in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{face}" for face in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{face}" for face in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{face}" for face in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)
# The scanner of the digits: a bitmap, counted in blocks.
_BITMAP, _BLOCK = 32, 4


@dataclass(frozen=True, eq=False)
class Pictures:
    """Grey pictures in [-1, 1], ink is 1, each of one of ten classes.

    Parameters
    ----------
    images : Tensor, shape (n, 1, s, s), float32
    labels : Tensor, shape (n,), int64
        Both have one more number a picture where sets stand side by side.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Tensor) -> Pictures:
        """Return some of them."""
        return Pictures(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class PictureBatches:
    """Batches by number for replicas side by side: a picture is a scan of one voxel.

    Parameters
    ----------
    sets : sequence of Pictures
        What each replica learns from; as many for each.
    batch_size : int
        Different pictures in a batch of a replica; all, where there are no more.
    seeds : sequence of int
        One a replica.
    """

    sets: Sequence[Pictures]
    batch_size: int
    seeds: Sequence[int]

    def batch(self, step: int) -> Batch:
        """Return batch number ``step``: images (b, r, s, s), targets (b * r, 10, 1, 1)."""
        drawn = []
        for pictures, seed in zip(self.sets, self.seeds, strict=True):
            generator = torch_generator(seed, "batch", step)
            order = torch.randperm(len(pictures), generator=generator)
            drawn.append(pictures.select(order[: self.batch_size]))
        together = side_by_side(drawn)
        target = F.one_hot(together.labels.flatten(), CLASSES).float()[..., None, None]
        return Batch(together.images, target, torch.ones(len(target), CLASSES, dtype=torch.bool))


def side_by_side(sets: Sequence[Pictures]) -> Pictures:
    """Return sets of equal size as one: images (n, r, s, s), labels (n, r)."""
    images = torch.cat([pictures.images for pictures in sets], 1)
    return Pictures(images, torch.stack([pictures.labels for pictures in sets], 1))


def split_evenly(pictures: Pictures, n: int, *, seed: int) -> tuple[Pictures, Pictures]:
    """Return ``n`` pictures to train on, as many of each class, and all others.

    The first 50 of a seed are among its first 100, and so on.
    """
    order = torch.randperm(len(pictures), generator=torch_generator(seed, "split"))
    labels = pictures.labels[order]
    place = torch.empty_like(order)
    for label in range(CLASSES):
        mine = labels == label
        place[mine] = torch.arange(int(mine.sum()))
    # The first of every class, then the second of every class, and so on.
    order = order[place.argsort(stable=True)]
    return pictures.select(order[:n]), pictures.select(order[n:])


def digits(size: int) -> Pictures:
    """Return all 1797 digits of scikit-learn, ``size`` pixels a side."""
    from sklearn.datasets import load_digits

    data = load_digits()
    counts = torch.from_numpy(data["images"]).float()[:, None] / _BLOCK**2
    return Pictures(_scaled(counts, size), torch.from_numpy(data["target"]).long())


def letters(n: int, size: int, *, seed: int) -> Pictures:
    """Return ``n`` letters in random faces, places, slants and strokes, ``size`` pixels a side."""
    generator = torch_generator(seed, "letters")
    glyphs = _glyphs()
    labels = torch.randint(CLASSES, (n,), generator=generator)
    faces = torch.randint(len(FACES), (n,), generator=generator)
    grid = F.affine_grid(_affine(n, generator), [n, 1, _BITMAP, _BITMAP], align_corners=False)
    ink = F.grid_sample(glyphs[faces, labels][:, None], grid, align_corners=False)
    # Thickness is where a blurred stroke is cut; the noise roughens its edge, as a scanner does.
    ink = F.avg_pool2d(ink, 3, stride=1, padding=1)
    cut = 0.2 + 0.5 * torch.rand(n, 1, 1, 1, generator=generator)
    noise = 0.1 * torch.randn(ink.shape, generator=generator)
    counts = F.avg_pool2d((ink + noise > cut).float(), _BLOCK)
    return Pictures(_scaled(counts, size), labels)


def _scaled(counts: Tensor, size: int) -> Tensor:
    resized = F.interpolate(counts, size=(size, size), mode="bilinear", align_corners=False)
    return 2 * resized - 1


def _glyphs() -> Tensor:
    """Return every letter of every face (faces, 10, 64, 64), its box filling the picture."""
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    rows = [
        np.stack([_glyph(folder / f"{face}.ttf", letter) for letter in LETTERS]) for face in FACES
    ]
    return torch.from_numpy(np.stack(rows)).float() / 255


def _glyph(file: Path, letter: str) -> np.ndarray:
    side = 2 * _BITMAP
    canvas = Image.new("L", (4 * side, 4 * side))
    font = ImageFont.truetype(str(file), 2 * side)
    ImageDraw.Draw(canvas).text((2 * side, 2 * side), letter, fill=255, font=font, anchor="mm")
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"{file.name} has no letter {letter}")
    glyph = canvas.crop(box)
    scale = side / max(glyph.size)
    glyph = glyph.resize((max(round(glyph.width * scale), 1), max(round(glyph.height * scale), 1)))
    framed = Image.new("L", (side, side))
    framed.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return np.asarray(framed)


def _affine(n: int, generator: torch.Generator) -> Tensor:
    """Return matrices (n, 2, 3) from the picture's coordinates to the glyph's."""

    def spread(width: float) -> Tensor:
        return width * (2 * torch.rand(n, generator=generator) - 1)

    angle, slant = spread(math.radians(15)), spread(0.2)
    wide, high = 1.05 + spread(0.15), 1.05 + spread(0.1)
    cosine, sine = angle.cos(), angle.sin()
    rows = [
        torch.stack([wide * cosine, wide * (slant * cosine - sine), spread(0.1)], 1),
        torch.stack([high * sine, high * (slant * sine + cosine), spread(0.1)], 1),
    ]
    return torch.stack(rows, 1)
