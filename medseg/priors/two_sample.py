"""Can a classifier tell sampled kernels from real ones? Half right is as good as samples can be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg.errors import PriorError
from medseg.seeding import derive_seed
from medseg.shapes import Kernels

_FOLDS, _TREES, _LEAST_LEAF = 5, 60, 5


@dataclass(frozen=True)
class TwoSampleResult:
    """Cross-validated accuracies, each with its standard deviation over the folds; 0.5 is perfect.

    Parameters
    ----------
    logistic, logistic_sd : float
        Logistic regression on weights, their products and the log norm: the best there is between
        two Gaussians.
    forest, forest_sd : float
        Random forest on weights and log norm.
    n : int
        Kernels of each side.
    """

    logistic: float
    logistic_sd: float
    forest: float
    forest_sd: float
    n: int


def two_sample_accuracy(real: Kernels, sampled: Kernels, *, seed: int) -> TwoSampleResult:
    """Return how well classifiers tell ``sampled`` from as many ``real`` kernels, both (m, *k).

    Parameters
    ----------
    real, sampled : Tensor, shape (m, *k)
        As many of each, in common units.
    seed : int
        Of the folds and the forest.

    Raises
    ------
    PriorError
        Fewer than 10 kernels, other shapes, or numbers that are not finite.

    References
    ----------
    Lopez-Paz and Oquab (2017), Revisiting classifier two-sample tests, section 3.
    """
    # Here: scikit-learn takes a second to import.
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    finite = bool(torch.isfinite(real).all()) and bool(torch.isfinite(sampled).all())
    if real.shape != sampled.shape or len(real) < 2 * _FOLDS or not finite:
        raise PriorError(
            f"A two-sample test needs as many real as sampled kernels, at least {2 * _FOLDS}, all "
            f"finite, but it was given {tuple(real.shape)} and {tuple(sampled.shape)}"
            f"{'' if finite else ', some not finite'}.",
            hint="Harvest from more networks, or look at the fit of the prior.",
        )
    rows = torch.cat([real, sampled]).flatten(1).double()
    norm = rows.norm(dim=1, keepdim=True).clamp(min=1e-12).log()
    labels = np.repeat([0, 1], len(real))
    state = derive_seed(seed, "two-sample") % 2**31
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    forest = RandomForestClassifier(_TREES, min_samples_leaf=_LEAST_LEAF, random_state=state)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=state)
    accuracies = [
        cross_val_score(classifier, features.numpy(), labels, cv=folds)
        for classifier, features in (
            (linear, torch.cat([rows, _products(rows), norm], dim=1)),
            (forest, torch.cat([rows, norm], dim=1)),
        )
    ]
    moments = [float(value) for found in accuracies for value in (found.mean(), found.std(ddof=1))]
    return TwoSampleResult(*moments, n=len(real))


def _products(rows: Tensor) -> Tensor:
    """Return the products of each two numbers of a row, (m, d (d + 1) / 2)."""
    first, second = torch.triu_indices(rows.shape[1], rows.shape[1])
    return rows[:, first] * rows[:, second]
