"""A filter prior made of a variational autoencoder."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from medseg.errors import PriorError
from medseg.generative.vae import Encoder, Vae
from medseg.priors.prior import check_kernels
from medseg.shapes import Kernels, PerKernel


class VaePrior(nn.Module):
    """The deep weight prior ``p(w) = integral p(w | z) N(z; 0, I) dz`` over single kernels.

    ``log_bound`` is the auxiliary bound with one code z and the KL of the inference network in
    closed form, ``log p(w) >= E_r(z|w)[log p(w | z)] - KL(r(z|w) || N(0, I))``. The decoder is
    frozen but lets gradients through to w; the inference network r starts as a copy of the encoder
    and may be trained.

    Parameters
    ----------
    vae : Vae
        Fitted to kernels divided by ``scale``. Its parameters are frozen here. Several priors may
        share it.
    scale : float
        Typical size of a weight of the layer; the bound includes ``-d log(scale)``, so that its
        nats refer to the kernels themselves.
    condition : Tensor, shape (c,), optional
        What the autoencoder is told about the layer.
    inference : Encoder, optional
        The network r, when it is shared with other priors or was trained before.

    Raises
    ------
    PriorError
        The scale is not a positive number.

    References
    ----------
    Atanov et al. (2019), The deep weight prior, equations 8 to 10.
    """

    condition: Tensor | None
    is_exact = False
    is_normalised = True

    def __init__(
        self,
        vae: Vae,
        *,
        scale: float = 1.0,
        condition: Tensor | None = None,
        inference: Encoder | None = None,
    ) -> None:
        super().__init__()
        if not (scale > 0 and math.isfinite(scale)):
            raise PriorError(
                f"A scale must be finite and above 0, but it is {scale}.",
                hint="The kernels of this layer are all zero: leave it out or prune less.",
            )
        self.vae = vae.requires_grad_(False)
        if inference is None:
            inference = copy.deepcopy(vae.encoder).requires_grad_(True)
        self.inference = inference
        self.scale = float(scale)
        self.register_buffer("condition", condition)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one slice."""
        return self.vae.event_shape

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

    def sample(self, n: int, *, generator: torch.Generator) -> Kernels:
        """Return ``n`` kernels: a code, its decoded mean, and the likelihood's noise."""
        return self.scale * self.vae.sample(n, generator=generator, condition=self._conditions(n))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the inference network r."""
        return list(self.inference.parameters())

    def _conditions(self, n: int) -> Tensor | None:
        return None if self.condition is None else self.condition.expand(n, -1)

    def _log_jacobian(self) -> float:
        return -math.prod(self.kernel_shape) * math.log(self.scale)
