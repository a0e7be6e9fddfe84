"""The cohort on a plane: by principal components, and by the codes of a variational autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.explore.table import FeatureTable
from medseg.generative.dimension import latent_size
from medseg.generative.fitting import FitSettings
from medseg.generative.vae import Vae, VaeSettings
from medseg.seeding import torch_generator

#: Below this an autoencoder learns nothing that its few scans could show.
FEWEST_FOR_VAE = 30

Matrix = NDArray[np.float64]
__all__ = ["Components", "VaeCodes", "latent_size", "principal_components", "vae_codes"]


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of a cohort.

    Parameters
    ----------
    codes : ndarray, shape (n, k)
        Coordinates of the scans, the largest variance first.
    shares : ndarray, shape (k,)
        Share of the variance along each.
    directions : ndarray, shape (k, d)
        What each is made of.
    """

    codes: Matrix
    shares: Matrix
    directions: Matrix

    def kept(self, share: float) -> int:
        """Return how many components carry ``share`` of the variance."""
        return int(np.searchsorted(self.shares.cumsum(), share - 1e-9)) + 1

    def words(self, component: int, features: tuple[str, ...], *, most: int = 3) -> list[str]:
        """Return the features that a component is made of, the strongest first."""
        order = np.argsort(-np.abs(self.directions[component]))[:most]
        return [features[i] for i in order]


@dataclass(frozen=True, eq=False)
class VaeCodes:
    """Mean codes of a variational autoencoder with two numbers in a code, (n, 2).

    ``held_out_nats`` is its bound on the scans it was not fitted to, and ``gaussian_nats`` that of
    independent Gaussians: an autoencoder below it has learnt nothing.
    """

    codes: Matrix
    held_out_nats: float
    gaussian_nats: float


def principal_components(scores: Matrix) -> Components:
    """Return the principal components of scans (n, d): as many as there can be."""
    centred = scores - scores.mean(0)
    left, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    kept = max(int((lengths > 1e-9 * lengths[0]).sum()), 1)
    # The sign of a direction is arbitrary: make its largest number positive.
    top = np.abs(directions).argmax(1)
    sign = np.where(directions[np.arange(len(directions)), top] < 0, -1.0, 1.0)
    codes = left * lengths * sign
    variance = lengths**2
    return Components(
        codes[:, :kept], (variance / variance.sum())[:kept], (directions * sign[:, None])[:kept]
    )


def vae_codes(table: FeatureTable, *, seed: int) -> VaeCodes | None:
    """Return the scans as codes of two numbers; None for fewer than 30 scans."""
    if len(table) < FEWEST_FOR_VAE:
        return None
    items = torch.from_numpy(table.scores).float()
    fit = FitSettings(max_steps=600, validation_fraction=0.15)
    settings = VaeSettings(latent=2, hidden=(48,), standardise="scale", fit=fit)
    model = Vae((items.shape[1],), settings)
    record = model.fit(items, generator=torch_generator(seed, "explore", "vae"))
    with torch.no_grad():
        codes = model.encode(items).double().numpy()
    deviation = table.scores.std(0).clip(min=0.05)
    gaussian = -0.5 * len(table.features) - float(
        (np.log(deviation) + 0.5 * np.log(2 * np.pi)).sum()
    )
    nats = record.validation_nats
    return VaeCodes(codes, float("nan") if nats is None else nats, gaussian)
