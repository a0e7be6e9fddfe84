"""Tiny data sets on disk."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.array([[-1.0, 0, 0, 9], [0, 2.0, 0, -4], [0, 0, 3.0, 1], [0, 0, 0, 1]])
SHAPE = (6, 7, 5)


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """Write noise to a NIfTI file, and its folders."""

    def write(path: Path, *, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
        nib.save(nib.Nifti1Image(data, AFFINE), path)
        return path

    return write


@pytest.fixture
def write_mask() -> Callable[..., Path]:
    """Write a mask that holds the given labels once each."""

    def write(path: Path, labels: tuple[int, ...] = (1,)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = np.zeros(SHAPE, dtype=np.float32)
        data.reshape(-1)[10 : 10 + len(labels)] = labels
        nib.save(nib.Nifti1Image(data, AFFINE), path)
        return path

    return write
