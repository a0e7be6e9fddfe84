"""Running out of memory, told apart from everything else that can go wrong."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medseg.errors import MedsegError

#: What torch, OpenVINO and ONNX Runtime say when they cannot allocate.
_WORDS = ("out of memory", "can't allocate memory", "bad_alloc", "failed to allocate")


class EngineMemoryError(MedsegError, MemoryError):
    """A window whose activations do not fit into the memory there is."""


@contextmanager
def memory_errors(shape: tuple[int, ...], where: str) -> Iterator[None]:
    """Turn whatever says "out of memory" inside the block into an `EngineMemoryError`.

    Parameters
    ----------
    shape : tuple of int
        Of the images.
    where : str
        The device.
    """
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        # The frames of the failed pass hold its activations, which a smaller window needs.
        traceback.clear_frames(error.__traceback__)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise EngineMemoryError(
            f"a window's activations must fit into memory, but images {shape} do not on {where}",
            hint="Use smaller windows or a smaller batch.",
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        word in text for word in _WORDS
    )
