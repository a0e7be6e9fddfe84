"""Whether a case is more doubtful than usual ones, by all signs of doubt at once.

A limit for each sign flags every case that is beyond any of them: with ten signs that each flag a
fifth, nearly all cases. Here a case has one score, the largest of its signs on a common scale, and
the rank of this score among usual cases decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.calibration.conformal import cases_needed, percentile_among
from medseg.errors import DataError, ShapeError

Signs = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Doubt:
    """A case beside n usual ones, in one scale for all m signs.

    Parameters
    ----------
    scores : ndarray, shape (m,)
        Of each sign: its distance above the median of all n + 1 cases, in mean absolute deviations.
    usual : ndarray, shape (n,)
        The largest score of each usual case.
    """

    scores: Signs
    usual: Signs

    @property
    def joint(self) -> float:
        """The largest score of the case, by which cases are put in order."""
        return float(self.scores.max())

    @property
    def percentile(self) -> float:
        """Share in % of the usual cases that are less doubtful; equal ones count half."""
        return percentile_among(self.usual, self.joint)

    def flagged(self, share: float) -> NDArray[np.bool_]:
        """Return the signs, shape (m,), for each of which alone the case is among the worst.

        A usual case has any such sign with a chance of at most ``share``, and of more than
        ``share - 1 / (n + 1)`` where no two scores are equal: among n + 1 cases that could have
        come in any order, so many have the ranks that count. With fewer than
        ``cases_needed(1 - share)`` usual cases none is flagged.

        References
        ----------
        Vovk, Gammerman, Shafer 2005, "Algorithmic learning in a random world", section 2.2: the
        scores see usual cases and the new one alike, so that ranks are exact.
        """
        as_bad = 1 + (self.usual[:, None] >= self.scores).sum(axis=0)
        return as_bad / (len(self.usual) + 1) <= share + 1e-12


def joint_doubt(usual: Signs, values: Signs) -> Doubt:
    """Return how doubtful a case is beside usual ones.

    Parameters
    ----------
    usual : ndarray, shape (n, m)
        Signs of n usual cases, larger where there is more doubt.
    values : ndarray, shape (m,)
        The same signs of the case.

    Raises
    ------
    ShapeError
        Not the same signs.
    DataError
        No usual case, no sign, or one that is not finite.
    """
    if usual.ndim != 2 or values.shape != usual.shape[1:]:
        raise ShapeError(
            f"A case is compared by the signs of usual ones, {usual.shape}, but it comes with "
            f"{values.shape}.",
            hint="Use the model and the calibration of one version.",
        )
    every = np.vstack([usual, values])
    if not usual.size or not np.isfinite(every).all():
        raise DataError(
            "A case is compared with at least one usual case by at least one finite sign, but "
            f"there are {usual.shape}, of which {int((~np.isfinite(every)).sum())} are not finite.",
            hint="Calibrate again with labelled cases.",
        )
    away = every - np.median(every, axis=0)
    spread = np.abs(away).mean(axis=0)
    scores = away / np.where(spread > 0, spread, 1.0)
    return Doubt(scores=scores[-1], usual=scores[:-1].max(axis=1))


def can_flag(n: int, share: float) -> bool:
    """Return whether any case can be among the worst ``share`` of n usual cases and itself."""
    return n >= cases_needed(1.0 - share)
