"""Known values, and MONAI's structural similarity."""

from __future__ import annotations

import math

import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs

from medseg.errors import ShapeError
from medseg.metrics.image import psnr_db, ssim


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    true = torch.nn.functional.avg_pool3d(torch.rand(1, 24, 26, 9, generator=generator), 3, 1, 1)[0]
    return true + 0.05 * torch.randn(true.shape, generator=generator), true


def test_equal_images_are_perfect(pair) -> None:
    _, true = pair
    inside = torch.ones_like(true).bool()
    assert psnr_db(true, true, inside) == math.inf
    assert ssim(true, true, inside) == pytest.approx(1.0)


def test_only_what_is_inside_counts(pair) -> None:
    found, true = pair
    inside = torch.ones_like(true).bool()
    inside[:12] = False
    spoilt = torch.where(inside, found, found + 9)
    assert psnr_db(found, true, inside) == psnr_db(spoilt, true, inside)
    assert psnr_db(found, true, inside) == pytest.approx(
        20 * math.log10(float(true[12:].max() - true[12:].min()))
        - 10 * math.log10(float((found - true)[12:].square().mean())),
        abs=1e-4,
    )


def test_structural_similarity_is_monais(pair) -> None:
    found, true = pair
    # MONAI keeps the voxels whose window lies inside.
    inner = torch.zeros_like(true).bool()
    inner[5:-5, 5:-5] = True
    spread = float(true[inner].max() - true[inner].min())
    theirs, _ = compute_ssim_and_cs(
        found.movedim(-1, 0)[:, None],
        true.movedim(-1, 0)[:, None],
        spatial_dims=2,
        kernel_size=(11, 11),
        kernel_sigma=(1.5, 1.5),
        data_range=spread,
    )
    assert ssim(found, true, inner) == pytest.approx(float(theirs.mean()), abs=1e-4)


def test_images_that_cannot_be_compared_are_refused(pair) -> None:
    found, true = pair
    with pytest.raises(ShapeError, match="0 voxels inside"):
        psnr_db(found, true, torch.zeros_like(true).bool())
    with pytest.raises(ShapeError, match="must vary"):
        ssim(found, torch.ones_like(true), torch.ones_like(true).bool())
