"""What the rest of medseg asks of a network."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from medseg.shapes import ImageBatch, LogitBatch


@runtime_checkable
class SegmentationNetwork(Protocol):
    """Images in, one logit map per region or class out, on the same grid, for any grid size.

    The two lists of names are prefixes of parameter names: the layers next to the image and those
    next to the mask, which are the ones retrained when the rest of a network is kept.
    """

    def __call__(self, image: ImageBatch) -> LogitBatch:
        """Return logits ``(b, n, *s)`` for images ``(b, c, *s)``."""
        ...

    def input_block_names(self) -> tuple[str, ...]:
        """Return the names of the modules that see the image first."""
        ...

    def output_block_names(self) -> tuple[str, ...]:
        """Return the names of the modules that make the logits."""
        ...
