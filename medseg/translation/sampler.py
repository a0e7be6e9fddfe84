"""Batches of two cohorts side by side, for learning without pairs."""

from __future__ import annotations

import torch

from medseg.data.training_set import Batch, PatchSampler
from medseg.errors import DataError


class UnpairedSampler:
    """Patches of one cohort's cases beside patches of another's, as channels of one image.

    Parameters
    ----------
    first, second : PatchSampler
        With patches of the same size and number.

    Raises
    ------
    DataError
        A person is in both cohorts, given by their subjects.
    """

    def __init__(
        self,
        first: PatchSampler,
        second: PatchSampler,
        *,
        subjects: tuple[tuple[str, ...], tuple[str, ...]],
    ) -> None:
        shared = sorted(set(subjects[0]) & set(subjects[1]))
        if shared:
            raise DataError(
                f"Cohorts without pairs must hold different people, but {shared[:5]} are in both.",
                hint="Split the cohort by subject, or take method pix2pix, which uses the pairs.",
            )
        self._first, self._second = first, second

    def batch(self, step: int) -> Batch:
        """Return batch number ``step``; target and mask are those of the first cohort."""
        first, second = self._first.batch(step), self._second.batch(step)
        image = torch.cat([first.image, second.image], dim=1)
        return Batch(image, first.target, first.known)
