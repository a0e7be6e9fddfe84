"""A filter prior made of any generative model that has an energy and can be sampled."""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn

from medseg.errors import PriorError
from medseg.generative.base import GenerativeBase
from medseg.generative.catalog import KINDS
from medseg.generative.vae import Encoder, Vae
from medseg.priors.prior import check_kernels
from medseg.shapes import Kernels, PerKernel

#: What a generative model must provide to be a filter prior.
NEEDED = frozenset({"sample", "energy"})


class LearnedPrior(nn.Module):
    """The density of a generative model over single kernels, in the units of one layer.

    ``log_bound`` is minus the model's energy: log p itself for an exact density (ppca, gmm, flow,
    and som as the mixture around its codebook); for the others log p up to a constant log Z, or
    what the model has in its place: the free energy (rbm), a bound on it (dbn, dbm), the slope of
    the denoiser integrated (dae), the log ratio of densities from a discriminator (gan). A constant
    moves no posterior, but such nats compare with those of no other prior.

    Parameters
    ----------
    model : GenerativeBase
        Fitted to kernels divided by ``scale``. Its parameters are frozen here. Several priors may
        share it.
    scale : float
        Typical size of a weight of the layer; the bound includes ``-d log(scale)``, so that its
        nats refer to the kernels themselves.
    condition : Tensor, shape (c,), optional
        What the model is told about the layer.

    Raises
    ------
    PriorError
        The scale is not a positive number, or the model has no energy or cannot be sampled.
    """

    condition: Tensor | None

    def __init__(
        self, model: GenerativeBase, *, scale: float = 1.0, condition: Tensor | None = None
    ) -> None:
        super().__init__()
        if not (scale > 0 and math.isfinite(scale)):
            raise PriorError(
                f"A scale must be finite and above 0, but it is {scale}.",
                hint="The kernels of this layer are all zero: leave it out or prune less.",
            )
        if not model.provides >= NEEDED:
            able = [name for name, kind in KINDS.items() if kind.provides >= NEEDED]
            raise PriorError(
                f"A filter prior needs a model with {' and '.join(sorted(NEEDED))}, but kind "
                f"{model.kind!r} provides {', '.join(sorted(model.provides))} only.",
                hint=f"Take one of {', '.join(able)}.",
            )
        # Gradients that a fit left behind would only take memory.
        model.zero_grad(set_to_none=True)
        self.model = model.requires_grad_(False)
        self.scale = float(scale)
        self.register_buffer("condition", condition)

    @property
    def kind(self) -> str:
        """Kind of the model."""
        return self.model.kind

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one slice."""
        return self.model.event_shape

    @property
    def is_exact(self) -> bool:
        """Whether the bound is the log density."""
        return self.model.is_exact

    @property
    def is_normalised(self) -> bool:
        """Whether the density integrates to one; else nats lack log Z."""
        return self.model.is_normalised

    def log_bound(self, kernels: Kernels, *, generator: torch.Generator | None = None) -> PerKernel:
        """Return minus the energy in nats, (m,): see the class."""
        check_kernels(kernels, self.kernel_shape)
        energy = self.model.energy(
            kernels / self.scale, generator=generator, condition=self._conditions(len(kernels))
        )
        return self._log_jacobian() - energy

    @torch.no_grad()
    def score(
        self, kernels: Kernels, *, generator: torch.Generator | None = None, n_codes: int = 64
    ) -> PerKernel:
        """Return the tightest bound the model has in nats, (m,), without gradients."""
        del n_codes
        return self.log_bound(kernels, generator=generator)

    def sample(self, n: int, *, generator: torch.Generator) -> Kernels:
        """Return ``n`` kernels drawn from the model."""
        return self.scale * self.model.sample(n, generator=generator, condition=self._conditions(n))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return nothing: the energy depends on the model alone, which is frozen."""
        return []

    def _conditions(self, n: int) -> Tensor | None:
        return None if self.condition is None else self.condition.expand(n, -1)

    def _log_jacobian(self) -> float:
        return -math.prod(self.kernel_shape) * math.log(self.scale)


class VaePrior(LearnedPrior):
    """The deep weight prior ``p(w) = integral p(w | z) N(z; 0, I) dz`` over single kernels.

    ``log_bound`` is the auxiliary bound with one code z and the KL of the inference network in
    closed form, ``log p(w) >= E_r(z|w)[log p(w | z)] - KL(r(z|w) || N(0, I))``. The decoder is
    frozen but lets gradients through to w; the inference network r starts as a copy of the encoder
    and may be trained.

    Parameters
    ----------
    model : Vae
        As in :class:`LearnedPrior`, like ``scale`` and ``condition``.
    inference : Encoder, optional
        The network r, when it is shared with other priors or was trained before.

    References
    ----------
    Atanov et al. (2019), The deep weight prior, equations 8 to 10.
    """

    def __init__(
        self,
        model: Vae,
        *,
        scale: float = 1.0,
        condition: Tensor | None = None,
        inference: Encoder | None = None,
    ) -> None:
        super().__init__(model, scale=scale, condition=condition)
        if inference is None:
            inference = copy.deepcopy(model.encoder).requires_grad_(True)
        self.inference = inference

    @property
    def vae(self) -> Vae:
        """The model."""
        return cast(Vae, self.model)

    def log_bound(self, kernels: Kernels, *, generator: torch.Generator | None = None) -> PerKernel:
        """Return the bound with one code per kernel in nats, (m,)."""
        check_kernels(kernels, self.kernel_shape)
        bound = self.vae.elbo(
            kernels / self.scale,
            generator=generator,
            condition=self._conditions(len(kernels)),
            encoder=self.inference,
        )
        return bound + self._log_jacobian()

    @torch.no_grad()
    def score(
        self, kernels: Kernels, *, generator: torch.Generator | None = None, n_codes: int = 64
    ) -> PerKernel:
        """Return the importance-weighted bound in nats, (m,), without gradients."""
        check_kernels(kernels, self.kernel_shape)
        bound = self.vae.bound(
            kernels / self.scale,
            generator=generator,
            condition=self._conditions(len(kernels)),
            n_codes=n_codes,
            encoder=self.inference,
        )
        return bound + self._log_jacobian()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the inference network r."""
        return list(self.inference.parameters())


def learned_prior(
    model: GenerativeBase,
    *,
    scale: float = 1.0,
    condition: Tensor | None = None,
    inference: Encoder | None = None,
) -> LearnedPrior:
    """Return the prior of a model; ``inference`` is for autoencoders that have such a network."""
    if isinstance(model, Vae):
        return VaePrior(model, scale=scale, condition=condition, inference=inference)
    return LearnedPrior(model, scale=scale, condition=condition)
