"""Autoencoders: under- and overcomplete, deep, sparse, contractive, stochastic, stacked."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from medseg.errors import ModelError
from medseg.generative.autoencoder_layers import (
    Activation,
    AutoencoderLayers,
    code_entropy,
    code_size,
)
from medseg.generative.base import GenerativeBase
from medseg.generative.covariance import shrunk_covariance
from medseg.generative.fitting import FitRecord, FitSettings, fit_by_gradient
from medseg.generative.model import Codes, Conditions, Items, PerItem
from medseg.generative.noise import draw_normal, draw_seed, draw_uniform
from medseg.generative.standardise import Standardisation, Standardiser, split_and_standardise
from medseg.seeding import torch_generator
from medseg.settings import settings


@settings
class AutoencoderSettings:
    """Size, regularisers and fit of an autoencoder.

    The loss of an item is its squared error (or cross-entropy), summed over its numbers in
    standardised units, plus the regularisers; their weights are relative to that.
    """

    #: Widths of the layers up to the code, which is the last: below the size of an item the model
    #: is undercomplete, above it overcomplete; one number is a shallow model.
    widths: tuple[int, ...] = Field(default=(64, 8), min_length=1)
    #: Between the layers.
    activation: Activation = "elu"
    #: Of the code.
    code_activation: Activation = "linear"
    #: The decoder uses the transposed weights of the encoder.
    tied: bool = False
    #: ``squared``, or ``cross_entropy`` for items between 0 and 1, such as masks.
    loss: Literal["squared", "cross_entropy"] = "squared"
    #: What is done to the items first; nothing with cross-entropy.
    standardise: Standardisation = "scale"
    #: Sparse: weight of ``sum |h_j|``, a Laplace prior of the code, with ``|h_j|`` counted in
    #: decoder weights of length 1.
    l1: float = Field(default=0.0, ge=0)
    #: Sparse: weight of the entropy in nats of the units' shares in the code.
    entropy: float = Field(default=0.0, ge=0)
    #: Contractive: weight of the squared Frobenius norm of the code's Jacobian.
    contraction: float = Field(default=0.0, ge=0)
    #: Stochastic code while fitting: Gaussian noise before the activation (Salakhutdinov and Hinton
    #: 2009, Semantic hashing), or units that are 1 with the probability they have (straight-through
    #: gradient, Bengio, Leonard and Courville 2013).
    code_noise: Literal["none", "gaussian", "bernoulli"] = "none"
    #: Deviation of that Gaussian noise.
    code_noise_std: float = Field(default=1.0, gt=0)
    #: Stacked: steps for which each layer first learns alone to reconstruct the one below; 0: none.
    greedy_steps: int = Field(default=0, ge=0)
    #: Weight of the sum of squared weights of a layer that learns alone.
    greedy_weight_penalty: float = Field(default=1e-4, ge=0)
    #: Steps and rates.
    fit: FitSettings = FitSettings()

    @model_validator(mode="after")
    def _noise_needs_limits(self) -> "AutoencoderSettings":
        allowed = {"gaussian": ("sigmoid", "tanh"), "bernoulli": ("sigmoid",)}
        if self.code_activation not in allowed.get(self.code_noise, (self.code_activation,)):
            raise ValueError(
                f"code_noise {self.code_noise!r} needs a code_activation of "
                f"{' or '.join(allowed[self.code_noise])}, but it is {self.code_activation!r}: an "
                "unlimited code outgrows its noise"
            )
        return self


class Autoencoder(GenerativeBase):
    """Encoder f and decoder g with ``g(f(x))`` close to x.

    It is no distribution and cannot be sampled. Its energy takes the residual as Gaussian noise and
    the codes as Gaussian,

    ``E(x) = |x - g(f(x))|^2 / 2 s^2 + (f(x) - m)' C^-1 (f(x) - m) / 2``,

    with ``s``, ``m`` and ``C`` measured after the fit: for a linear autoencoder this is minus the
    log-likelihood of probabilistic PCA, up to a constant. With cross-entropy, that takes the place
    of the first term.

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one item.
    settings : AutoencoderSettings
        Sizes, regularisers and fit.

    References
    ----------
    Vincent et al. (2010), Stacked denoising autoencoders (greedy stacking, section 3.4).
    Ghosh et al. (2020), From variational to deterministic autoencoders (codes as a Gaussian fitted
    afterwards, section 4).
    """

    kind = "ae"
    settings_type = AutoencoderSettings
    provides = frozenset({"energy", "encode", "decode", "reconstruct"})
    settings: AutoencoderSettings
    residual_std: Tensor
    code_mean: Tensor
    code_whitening: Tensor

    def __init__(self, event_shape: tuple[int, ...], settings: AutoencoderSettings) -> None:
        super().__init__(event_shape, settings)
        self.standardiser = Standardiser(self.size)
        self.layers = AutoencoderLayers(
            (self.size, *settings.widths),
            activation=settings.activation,
            code_activation=settings.code_activation,
            tied=settings.tied,
        )
        self.layers.reset(torch_generator(0, self.kind))
        code = settings.widths[-1]
        self.register_buffer("residual_std", torch.ones(()))
        self.register_buffer("code_mean", torch.zeros(code))
        self.register_buffer("code_whitening", torch.eye(code))

    def check_fittable(self, items: Tensor, condition: Tensor | None = None) -> None:
        """Refuse what the base refuses, and with cross-entropy all outside [0, 1]."""
        super().check_fittable(items, condition)
        least, most = float(items.min()), float(items.max())
        if self.settings.loss == "cross_entropy" and (least < 0 or most > 1):
            raise ModelError(
                f"Cross-entropy needs items between 0 and 1, but they go from {least:.3g} to "
                f"{most:.3g}.",
                hint="Scale them, or use the loss 'squared'.",
            )

    def _fit(
        self, items: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        vectors, fit = items.flatten(1), self.settings.fit
        self.layers.reset(generator)
        binary = self.settings.loss == "cross_entropy"
        u, train, held = split_and_standardise(
            vectors,
            self.standardiser,
            kind="none" if binary else self.settings.standardise,
            fraction=fit.validation_fraction,
            generator=generator,
        )
        if self.settings.greedy_steps:
            self._fit_greedily(u, train, generator)
        seed = draw_seed(generator)

        def batch_loss(rows: Tensor, progress: float) -> Tensor:
            return self.loss(u[rows], generator=generator).mean()

        @torch.no_grad()
        def validation() -> float:
            # The same noise at every check, so that checks differ by the model alone.
            noise = torch.Generator(device=generator.device).manual_seed(seed)
            return float(self.loss(u[held], generator=noise).mean())

        record = fit_by_gradient(
            self,
            batch_loss,
            validation if len(held) else None,
            rows=train,
            settings=fit,
            generator=generator,
        )
        if not all(bool(p.isfinite().all()) for p in self.parameters()):
            return record  # The fit diverged, which the caller reports.
        with torch.no_grad():
            self._measure(u[train], u[held] if len(held) else u[train], generator)
            # In nats, where the loss is a squared error plus weighted penalties.
            nats = [-float(self.energy(items[rows]).mean()) for rows in (train, held) if len(rows)]
        return FitRecord(record.steps, nats[0], nats[1] if len(held) else None)

    def loss(self, u: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return what the fit minimises for standardised vectors (m, d), each, (m,)."""
        chosen = self.settings
        before = self.layers.before_code(self.corrupt(u, generator)[0])
        last = len(chosen.widths) - 1
        if chosen.code_noise == "gaussian":
            before = before + chosen.code_noise_std * draw_normal(
                tuple(before.shape), like=before, generator=generator
            )
        code = self.layers.activate(before, last)
        total = 0.0
        if chosen.l1 or chosen.entropy:
            size = code_size(code, self.layers.weight_down(last))
            total = chosen.l1 * size.sum(1) + chosen.entropy * code_entropy(size)
        if chosen.code_noise == "bernoulli":
            chance = (draw_uniform(tuple(code.shape), like=code, generator=generator) + 1) / 2
            code = code + ((chance < code).to(code) - code).detach()
        if chosen.contraction:
            total = total + chosen.contraction * self.layers.contraction(u)
        return self.reconstruction_loss(self.layers.decode(code), u) + total

    def corrupt(self, u: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return what the encoder is shown for ``u``, and which numbers of it were hidden."""
        return u, None

    def reconstruction_loss(self, answer: Tensor, u: Tensor) -> Tensor:
        """Return the squared error or cross-entropy of the decoder's answer, (m,)."""
        if self.settings.loss == "squared":
            return (answer - u).square().sum(1)
        return functional.binary_cross_entropy_with_logits(answer, u, reduction="none").sum(1)

    def energy(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
    ) -> PerItem:
        """Return residual and code as nats up to a constant, (m,); see the class."""
        with torch.autocast(device_type=items.device.type, enabled=False):
            u = self.standardiser(self.vectors(items, condition))
            code = self.layers.encode(u)
            misfit = self.reconstruction_loss(self.layers.decode(code), u)
            if self.settings.loss == "squared":
                misfit = misfit / (2 * self.residual_std.square())
            white = (code - self.code_mean) @ self.code_whitening.T
            return misfit + 0.5 * white.square().sum(1) - self.standardiser.log_det

    def encode(self, items: Items, *, condition: Conditions | None = None) -> Codes:
        """Return the code of each item, (m, k), without noise."""
        return self.layers.encode(self.standardiser(self.vectors(items, condition)))

    def decode(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return the item of each code, (m, *event_shape)."""
        self.check_codes(codes, self.settings.widths[-1])
        self.check_condition(len(codes), condition)
        return self._items(self.answer(codes))

    def answer(self, codes: Tensor) -> Tensor:
        """Return the decoder's mean of codes in standardised units, (m, d)."""
        decoded = self.layers.decode(codes)
        return decoded if self.settings.loss == "squared" else decoded.sigmoid()

    def _items(self, u: Tensor) -> Tensor:
        return self.standardiser.inverse(u).reshape(len(u), *self.event_shape)

    def _measure(self, train: Tensor, held: Tensor, generator: torch.Generator) -> None:
        """Set the scale of the residual and the Gaussian of the codes."""
        # The code takes its part of the noise along: what is left has fewer directions.
        free = self.size - self.settings.widths[-1]
        residual = held - self.answer(self.layers.encode(held))
        directions = free if free > 0 else self.size
        variance = residual.square().sum(1).mean() / directions
        self.residual_std.copy_(variance.sqrt().clamp(min=1e-3))
        codes = self.layers.encode(train)
        covariance = shrunk_covariance(codes)
        # An overcomplete code fills only some of its directions.
        jitter = 1e-3 * covariance.diagonal().mean().clamp(min=1e-12)
        covariance.diagonal().add_(jitter)
        self.code_mean.copy_(codes.mean(0))
        self.code_whitening.copy_(torch.linalg.inv(torch.linalg.cholesky(covariance)))

    def _fit_greedily(self, u: Tensor, rows: Tensor, generator: torch.Generator) -> None:
        """Let each layer learn to reconstruct the one below it, from the items up."""
        chosen = replace(self.settings.fit, max_steps=self.settings.greedy_steps)
        below = u
        for k, (up, down) in enumerate(zip(self.layers.up, self.layers.down, strict=True)):
            level = nn.ModuleList([up, down])

            def batch_loss(rows: Tensor, progress: float, k: int = k, h: Tensor = below) -> Tensor:
                seen = self.corrupt(h[rows], generator)[0]
                code = self.layers.activate(self.layers.step_up(seen, k), k)
                answer = self.layers.step_down(code, k)
                loss = (
                    self.reconstruction_loss(answer, h[rows])
                    if k == 0
                    else (answer - h[rows]).square().sum(1)
                )
                weights = [self.layers.up[k].get_parameter("weight"), self.layers.weight_down(k)]
                size = torch.stack([weight.square().sum() for weight in weights]).sum()
                return loss.mean() + self.settings.greedy_weight_penalty * size

            fit_by_gradient(
                level, batch_loss, None, rows=rows, settings=chosen, generator=generator
            )
            with torch.no_grad():
                below = self.layers.activate(self.layers.step_up(below, k), k)
