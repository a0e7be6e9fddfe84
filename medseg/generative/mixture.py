"""A mixture of Gaussians, fitted by expectation and maximisation."""

import math
import warnings
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medseg.generative.base import CAPABILITIES, GenerativeBase
from medseg.generative.fitting import FitRecord
from medseg.generative.model import Codes, Conditions, Items, PerItem
from medseg.generative.noise import LOG_TWO_PI, draw_normal, draw_seed
from medseg.generative.standardise import Standardisation, Standardiser
from medseg.settings import settings


@settings
class MixtureSettings:
    """Size of a Gaussian mixture, and how it is fitted."""

    #: Gaussians in the mixture.
    components: int = Field(default=8, ge=1)
    #: Covariance of each: any, or independent numbers.
    covariance: Literal["full", "diagonal"] = "full"
    #: What is done to the items first. After whitening, ``regularisation`` pulls each Gaussian
    #: towards the covariance of all items.
    standardise: Standardisation = "whiten"
    #: Added to every variance, in standardised units, where the items have rms 1.
    regularisation: float = Field(default=1e-2, ge=0)
    #: Passes of expectation and maximisation, at most.
    max_steps: int = Field(default=200, ge=1)
    #: Starts, of which the likeliest end is kept.
    starts: int = Field(default=1, ge=1)


class GaussianMixture(GenerativeBase):
    """``p(x) = sum_k pi_k N(x; m_k, C_k)``; its code is the probability of each component.

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one item.
    settings : MixtureSettings
        Components and fit.

    References
    ----------
    Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm,
    section 4.3.
    """

    kind = "gmm"
    settings_type = MixtureSettings
    provides = CAPABILITIES
    is_exact = True
    is_normalised = True
    settings: MixtureSettings
    log_weights: Tensor
    means: Tensor
    whiteners: Tensor

    def __init__(self, event_shape: tuple[int, ...], settings: MixtureSettings) -> None:
        super().__init__(event_shape, settings)
        k, d = settings.components, self.size
        self.standardiser = Standardiser(d)
        self.register_buffer("log_weights", torch.full((k,), -math.log(k)))
        self.register_buffer("means", torch.zeros(k, d))
        # Upper triangular A_k with A_k A_k' the inverse covariance, or the diagonal alone.
        one = torch.eye(d) if settings.covariance == "full" else torch.ones(d)
        self.register_buffer("whiteners", one.expand(k, *one.shape).clone())

    @property
    def fewest_items(self) -> int:
        """Two, and as many as there are components."""
        return max(2, self.settings.components)

    def _fit(
        self, items: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        # Here: scikit-learn takes a second to import, and a stored model does without it.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as Fitter

        rows, options = items.flatten(1), self.settings
        self.standardiser.fit(rows, options.standardise)
        fitter = Fitter(
            options.components,
            covariance_type="full" if options.covariance == "full" else "diag",
            reg_covar=options.regularisation,
            max_iter=options.max_steps,
            n_init=options.starts,
            random_state=draw_seed(generator),
        )
        with warnings.catch_warnings():
            # The record says it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitter.fit(self.standardiser(rows).double().cpu().numpy())
        self.log_weights.copy_(torch.from_numpy(fitter.weights_).clamp(min=1e-30).log())
        self.means.copy_(torch.from_numpy(fitter.means_))
        self.whiteners.copy_(torch.from_numpy(fitter.precisions_cholesky_))
        notes = []
        if not fitter.converged_:
            notes.append(f"The mixture was still gaining at max_steps {options.max_steps}.")
        with torch.no_grad():
            nats = float(self.bound(items).mean())
        return FitRecord(fitter.n_iter_, nats, None, notes)

    def bound(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
    ) -> PerItem:
        """Return log p in nats, exactly, (m,)."""
        return self._joint(items, condition).logsumexp(1) + self.standardiser.log_det

    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> Items:
        """Return ``n`` items: a component drawn by its weight, then its Gaussian."""
        self.check_condition(n, condition)
        weights = self.log_weights.exp().to(generator.device)
        chosen = torch.multinomial(weights, n, replacement=True, generator=generator)
        chosen = chosen.to(self.means.device)
        rows = draw_normal((n, self.size), like=self.means, generator=generator)
        if self.whiteners.ndim == 2:
            rows = rows / self.whiteners[chosen]
        else:
            for k in chosen.unique():
                own = chosen == k
                rows[own] = torch.linalg.solve_triangular(
                    self.whiteners[k], rows[own], upper=True, left=False
                )
        rows = self.standardiser.inverse(self.means[chosen] + rows)
        return rows.reshape(n, *self.event_shape)

    def encode(self, items: Items, *, condition: Conditions | None = None) -> Codes:
        """Return the probability of each component given the item, (m, components)."""
        return self._joint(items, condition).softmax(1)

    def decode(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return the means of the components, weighted by the code, (m, *event_shape)."""
        self.check_codes(codes, self.settings.components)
        self.check_condition(len(codes), condition)
        return self.standardiser.inverse(codes @ self.means).reshape(len(codes), *self.event_shape)

    def _joint(self, items: Tensor, condition: Tensor | None) -> Tensor:
        """Return log p(u, k), (m, components), in standardised units."""
        u = self.standardiser(self.vectors(items, condition))
        if self.whiteners.ndim == 2:
            white = (u[:, None] - self.means) * self.whiteners
            log_det = self.whiteners.log().sum(1)
        else:
            white = torch.einsum("mkd,kde->mke", u[:, None] - self.means, self.whiteners)
            log_det = self.whiteners.diagonal(dim1=1, dim2=2).log().sum(1)
        log_density = -0.5 * (white.square().sum(2) + self.size * LOG_TWO_PI) + log_det
        return log_density + self.log_weights
