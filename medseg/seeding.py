"""Named random generators grown from one seed; no global state is read or left changed.

A stream is named by what it is for, so that adding a consumer never shifts another's numbers, and a
run that is resumed at step 700 draws for step 700 what the uninterrupted run drew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream ``names`` under ``seed``.

    Examples
    --------
    >>> derive_seed(0, "patches", 7) == derive_seed(0, "patches", 7)
    True
    >>> derive_seed(0, "patches", 7) == derive_seed(0, "patches", 8)
    False
    """
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def torch_generator(seed: int, *names: str | int, device: str = "cpu") -> torch.Generator:
    """Return a fresh torch generator for the stream ``names`` under ``seed``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a fresh numpy generator for the stream ``names`` under ``seed``."""
    return np.random.default_rng(derive_seed(seed, *names))


@contextmanager
def seeded_torch(seed: int, *names: str | int) -> Iterator[None]:
    """Seed torch's global generator inside the block and restore it after, also on an error.

    For code that offers no generator argument, such as the initialisation of ``torch.nn`` layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, *names))
        yield
