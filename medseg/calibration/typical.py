"""How far a case lies from what is usual, feature by feature."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import model_validator

from medseg.errors import DataError, ShapeError
from medseg.settings import settings

#: Joined to the deviation of each feature: a handful of cases may agree by chance.
LEAST_STD = 0.1


@settings
class Typical:
    """Mean and deviation of each feature over usual cases.

    A full covariance has more numbers than a few labelled cases can tell.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _of_one_length(self) -> "Typical":
        if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
            raise ValueError("mean and std must be of one length, at least 1, and std above 0")
        return self

    @classmethod
    def of(cls, features: ArrayLike) -> "Typical":
        """Return what is usual among ``features``, shape (m, f) with m of at least 1."""
        values = np.asarray(features, dtype=np.float64)
        if values.ndim != 2 or not values.size or not np.isfinite(values).all():
            raise DataError(
                "What is usual is learned from at least one case with finite features, but they "
                f"have shape {values.shape}.",
                hint="Add labelled cases.",
            )
        std = np.hypot(values.std(axis=0), LEAST_STD)
        return cls(mean=tuple(values.mean(axis=0).tolist()), std=tuple(std.tolist()))

    def distance(self, features: ArrayLike) -> float:
        """Return the root of the mean squared standardised feature of one case, shape (f,)."""
        values = np.asarray(features, dtype=np.float64)
        if values.shape != (len(self.mean),):
            raise ShapeError(
                f"A case has {len(self.mean)} features here, but it comes with {values.shape}.",
                hint="Use the model and the calibration of one version.",
            )
        return float(np.sqrt(np.square((values - self.mean) / self.std).mean()))


def distances_left_out(
    cases: Sequence[NDArray[np.float64]],
    usual: Sequence[NDArray[np.float64] | None],
    subjects: Sequence[str],
) -> list[float]:
    """Return each case's distance from what is usual among the other subjects.

    Parameters
    ----------
    cases : sequence of ndarray, shape (f,)
        What is judged.
    usual : sequence of ndarray, shape (f,), or None
        What shows the usual, a case each; None where a case shows nothing.
    subjects : sequence of str
        Whose the cases are.

    Returns
    -------
    list of float
        0 where no other subject shows anything.
    """
    distances = []
    for features, subject in zip(cases, subjects, strict=True):
        others = [
            shown
            for shown, whose in zip(usual, subjects, strict=True)
            if shown is not None and whose != subject
        ]
        distances.append(Typical.of(np.stack(others)).distance(features) if others else 0.0)
    return distances
