"""Fits one filter prior a layer to harvested kernels; compares priors on unseen kernels."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from pydantic import Field, TypeAdapter, model_validator
from torch import Tensor, nn

from medseg.errors import PriorError
from medseg.generative.fitting import FitRecord, FitSettings
from medseg.generative.vae import Vae, VaeSettings
from medseg.priors.gaussian import DiagonalGaussian, FullGaussian, SourceCentredGaussian
from medseg.priors.harvest import layer_kernels
from medseg.priors.kernel_set import KernelSet
from medseg.priors.layer_priors import LayerPriors
from medseg.priors.learned import VaePrior
from medseg.priors.prior import FilterPrior
from medseg.seeding import torch_generator
from medseg.settings import settings

logger = logging.getLogger(__name__)

# Cosines of the depth that a conditioned model is told: smooth, yet able to single out a third of
# the layers.
_DEPTH_FEATURES = 4


@settings
class FitPriorSettings:
    """Which prior is fitted, to which kernels together, and how."""

    #: ``diagonal``: independent weights; ``gaussian``: full covariance; ``vae``: variational
    #: autoencoder.
    kind: Literal["diagonal", "gaussian", "vae"] = "vae"
    #: One model per layer, one per depth group, or one for all that is told the layer (vae only).
    grouping: Literal["layer", "group", "conditioned"] = "layer"
    #: Kernels are divided by the root mean square weight of their layer, or of their depth group.
    scale: Literal["layer", "group"] = "layer"
    #: Fewest kernels a model is fitted to.
    min_kernels: int = Field(default=16, ge=2)
    #: Shrinkage of the full covariance; by default estimated (Ledoit and Wolf 2004).
    shrinkage: float | None = Field(default=None, ge=0, le=1)
    #: Numbers in a code of the autoencoder.
    latent: int = Field(default=6, ge=1)
    #: Widths of its hidden layers.
    hidden: tuple[int, ...] = (64,)
    #: Its likelihood's deviation; see :class:`medseg.generative.vae.VaeSettings`.
    decoder_std: Literal["shared", "per_feature", "from_code"] = "from_code"
    #: Least deviation of its likelihood, relative to the rms of the standardised kernels.
    std_floor: float = Field(default=0.1, gt=0)
    #: Whiten the kernels first, so that it learns what a full Gaussian cannot express.
    whiten: bool = True
    #: What a conditioned model is told: smooth functions of the depth, or which layer it is.
    condition: Literal["depth", "layer"] = "depth"
    #: Passes over the kernels, at most.
    epochs: int = Field(default=200, ge=1)
    #: Optimiser steps, at most.
    max_steps: int = Field(default=500, ge=1)
    #: Kernels per step.
    batch_size: int = Field(default=256, ge=1)
    #: Peak learning rate.
    learning_rate: float = Field(default=5e-3, gt=0)

    @model_validator(mode="after")
    def _only_a_vae_is_conditioned(self) -> "FitPriorSettings":
        if self.grouping == "conditioned" and self.kind != "vae":
            raise ValueError(
                f"grouping 'conditioned' needs kind 'vae', but the kind is {self.kind!r}"
            )
        return self

    def vae_settings(self, condition_size: int) -> VaeSettings:
        """Return the settings of the autoencoder alone."""
        return VaeSettings(
            latent=self.latent,
            hidden=self.hidden,
            decoder_std=self.decoder_std,
            std_floor=self.std_floor,
            standardise="whiten" if self.whiten else "scale",
            condition_size=condition_size,
            fit=FitSettings(
                epochs=self.epochs,
                max_steps=self.max_steps,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
            ),
        )


#: The priors that :func:`held_out_nats` compares by default.
COMPARED = (
    FitPriorSettings(kind="diagonal", grouping="layer"),
    FitPriorSettings(kind="gaussian", grouping="layer"),
    FitPriorSettings(kind="gaussian", grouping="group"),
    FitPriorSettings(kind="vae", grouping="layer"),
    FitPriorSettings(kind="vae", grouping="group"),
    FitPriorSettings(kind="vae", grouping="conditioned"),
)


def fit_priors(kernels: KernelSet, settings: FitPriorSettings, *, seed: int) -> LayerPriors:
    """Return a prior for every layer of the kernel set.

    Parameters
    ----------
    kernels : KernelSet
        Of the source networks.
    settings : FitPriorSettings
        Kind, grouping, sizes.
    seed : int
        Of the autoencoders' start and batches; each model has its own stream.

    Returns
    -------
    LayerPriors
        In the units of the kernels.

    Raises
    ------
    PriorError
        A layer (or group) with fewer than ``min_kernels`` kernels, or whose kernels do not vary.
    """
    scales = {name: _scale(kernels, name, settings) for name in kernels.layer_names}
    priors: dict[str, FilterPrior] = {}
    records: dict[str, dict[str, Any]] = {}
    for unit, names in _units(kernels, settings.grouping).items():
        scaled = {name: kernels.of_layer(name) / scales[name] for name in names}
        items = torch.cat(list(scaled.values()))
        _check_fittable(items, unit=unit, min_kernels=settings.min_kernels)
        if settings.kind == "vae":
            fitted, record = _fit_vae(
                kernels, scaled, scales, settings=settings, seed=seed, unit=unit
            )
            records[unit] = asdict(record)
            logger.info(
                "VAE of %s: %d kernels, %d steps, %.2f nats per standardised kernel",
                unit,
                len(items),
                record.steps,
                record.train_nats,
            )
        else:
            fitted = _fit_gaussian(items, {name: scales[name] for name in names}, settings)
        priors.update(fitted)
    provenance = {
        "settings": TypeAdapter(FitPriorSettings).dump_python(settings, mode="json"),
        "seed": seed,
        "kernels": kernels.hash,
        "n_kernels": len(kernels),
        "networks": list(kernels.networks),
        "fits": records,
    }
    ordered = {name: priors[name] for name in kernels.layer_names}
    return LayerPriors(ordered, provenance=provenance)


def source_centred_priors(network: nn.Module, *, relative_std: float) -> LayerPriors:
    """Return Gaussians around the weights of one source network.

    Parameters
    ----------
    network : Module
        Deterministic source network.
    relative_std : float
        Standard deviation of every weight of a layer over the root mean square weight of that
        layer.

    Raises
    ------
    PriorError
        The network has no convolution of kernel size 3, or a layer that is all zero.
    """
    priors: dict[str, FilterPrior] = {}
    for name, kernels in layer_kernels(network).items():
        rms = kernels.double().square().mean().sqrt().float()
        priors[name] = SourceCentredGaussian(kernels, relative_std * rms)
    return LayerPriors(priors, provenance={"kind": "source_centred", "relative_std": relative_std})


def held_out_nats(
    kernels: KernelSet,
    *,
    settings: Sequence[FitPriorSettings] = COMPARED,
    seed: int,
    n_codes: int = 64,
    max_kernels: int = 10_000,
) -> list[dict[str, object]]:
    """Return the mean log density of kernels that were kept from the fit, priors side by side.

    The last network is held out, or a fifth of the kernels of each layer when there is one network
    only (which flatters: kernels of one network are not independent). Gaussians are scored exactly,
    autoencoders by the importance-weighted bound, all in nats per kernel in the kernels' own units.

    Parameters
    ----------
    kernels : KernelSet
        Of two networks or more, best.
    settings : sequence of FitPriorSettings
        The priors.
    seed : int
        Of the fits, the codes and the choice of kernels.
    n_codes : int
        Codes per kernel of the importance-weighted bound.
    max_kernels : int
        Kernels scored, drawn at random when more are held out.

    Returns
    -------
    list of dict
        One row per prior and layer, layer ``"all"`` first: ``kind``, ``grouping``, ``whitened``,
        ``layer``, ``nats_per_kernel``, ``sd_nats``, ``n_kernels``, ``bound``, ``held_out``.
    """
    train, held, described = _hold_out(kernels, seed=seed)
    if len(held) > max_kernels:
        generator = torch_generator(seed, "held-out kernels")
        held = held.select(torch.randperm(len(held), generator=generator)[:max_kernels])
    rows: list[dict[str, object]] = []
    for option in settings:
        priors = fit_priors(train, option, seed=seed)
        generator = torch_generator(seed, "held-out codes")
        scores = {
            name: _score(priors.prior_for(name), held.of_layer(name), generator, n_codes)
            for name in held.layer_names
        }
        common = {
            "kind": option.kind,
            "grouping": option.grouping,
            "whitened": option.kind == "vae" and option.whiten,
        }
        ending = {
            "bound": f"importance-weighted, {n_codes} codes" if option.kind == "vae" else "exact",
            "held_out": described,
        }
        for layer, values in {"all": torch.cat(list(scores.values())), **scores}.items():
            rows.append({**common, "layer": layer, **_summary(values), **ending})
    # The summary rows first: they are the table that is read.
    return sorted(rows, key=lambda row: row["layer"] != "all")


def _summary(values: Tensor) -> dict[str, object]:
    enough = len(values) > 1
    return {
        "nats_per_kernel": float(values.mean()) if len(values) else math.nan,
        "sd_nats": float(values.std()) if enough else math.nan,
        "n_kernels": len(values),
    }


def _score(prior: FilterPrior, kernels: Tensor, generator: torch.Generator, n_codes: int) -> Tensor:
    if isinstance(prior, VaePrior) and len(kernels):
        return prior.score(kernels, generator=generator, n_codes=n_codes)
    return prior.log_bound(kernels) if len(kernels) else kernels.new_zeros(0)


def _hold_out(kernels: KernelSet, *, seed: int) -> tuple[KernelSet, KernelSet, str]:
    networks = kernels.networks
    if len(networks) > 1:
        held = kernels.of_networks(networks[-1:])
        return kernels.of_networks(networks[:-1]), held, f"network {networks[-1]}"
    chance = torch.rand(len(kernels), generator=torch_generator(seed, "held-out share"))
    inside = torch.zeros(len(kernels), dtype=torch.bool)
    for i in range(len(kernels.layers)):
        # A fifth of every layer by rank, so that no layer is left without kernels to fit.
        rows = (kernels.layer == i).nonzero().flatten()
        inside[rows[chance[rows].argsort()[: len(rows) // 5]]] = True
    return kernels.select(~inside), kernels.select(inside), "a fifth of the kernels"


def _units(kernels: KernelSet, grouping: str) -> dict[str, list[str]]:
    if grouping == "layer":
        return {name: [name] for name in kernels.layer_names}
    if grouping == "conditioned":
        return {"all layers": list(kernels.layer_names)}
    return {
        group: [info.name for info in kernels.layers if info.group == group]
        for group in kernels.group_names
    }


def _scale(kernels: KernelSet, layer: str, settings: FitPriorSettings) -> float:
    own = settings.scale == "layer"
    scale = kernels.layer_scale(layer) if own else kernels.group_scale(kernels.info(layer).group)
    if not scale > 0:
        raise PriorError(
            f"Kernels must not all be zero, but those of layer {layer!r} have a root mean square "
            f"of {scale}.",
            hint="The layer is dead: train the source networks longer, or leave them out.",
        )
    return scale


def _check_fittable(items: Tensor, *, unit: str, min_kernels: int) -> None:
    if len(items) < min_kernels:
        raise PriorError(
            f"A prior needs at least {min_kernels} kernels (min_kernels), but {unit!r} has "
            f"{len(items)}.",
            hint="Harvest from more networks, prune less, or use grouping 'group' or "
            "'conditioned'.",
        )
    spread = float((items - items[0]).abs().max())
    if spread < 1e-6:
        raise PriorError(
            f"Kernels must differ for a prior to be fitted, but all {len(items)} of {unit!r} are "
            f"the same "
            f"(largest difference {spread:.1g} of their rms).",
            hint="The layer was not trained or was set to a constant: leave it out.",
        )


def _fit_gaussian(
    items: Tensor, scales: Mapping[str, float], settings: FitPriorSettings
) -> dict[str, FilterPrior]:
    if settings.kind == "diagonal":
        fitted = DiagonalGaussian.fit(items)
    else:
        fitted = FullGaussian.fit(items, shrinkage=settings.shrinkage)
    return {name: fitted.scaled(scale) for name, scale in scales.items()}


def _fit_vae(
    kernels: KernelSet,
    scaled: Mapping[str, Tensor],
    scales: Mapping[str, float],
    *,
    settings: FitPriorSettings,
    seed: int,
    unit: str,
) -> tuple[dict[str, FilterPrior], FitRecord]:
    conditions: dict[str, Tensor] = {}
    told = None
    if settings.grouping == "conditioned":
        conditions = {name: _condition(kernels, name, settings.condition) for name in scaled}
        told = torch.cat([conditions[name].expand(len(k), -1) for name, k in scaled.items()])
    size = 0 if told is None else told.shape[1]
    vae = Vae(kernels.kernel_shape, settings.vae_settings(size))
    generator = torch_generator(seed, "prior", unit)
    record = vae.fit(torch.cat(list(scaled.values())), generator=generator, condition=told)
    priors: dict[str, FilterPrior] = {}
    shared = None
    for name in scaled:
        prior = VaePrior(vae, scale=scales[name], condition=conditions.get(name), inference=shared)
        shared = prior.inference
        priors[name] = prior
    return priors, record


def _condition(kernels: KernelSet, layer: str, kind: str) -> Tensor:
    if kind == "layer":
        return torch.tensor([float(name == layer) for name in kernels.layer_names])
    depth = kernels.info(layer).depth
    return torch.tensor([math.cos(math.pi * j * depth) for j in range(1, _DEPTH_FEATURES + 1)])
