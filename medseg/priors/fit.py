"""Fits filter priors of any kind to harvested kernels, one a layer or one for several."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, cast

import torch
from pydantic import Field, TypeAdapter, model_validator
from torch import Tensor, nn

from medseg.errors import ConfigError, PriorError
from medseg.generative.base import GenerativeBase
from medseg.generative.catalog import KINDS, make_model
from medseg.generative.dimension import propose_latent
from medseg.priors.anchored import AnchoredPrior
from medseg.priors.gaussian import DiagonalGaussian, FullGaussian, SourceCentredGaussian
from medseg.priors.harvest import layer_kernels
from medseg.priors.kernel_set import KernelSet
from medseg.priors.layer_priors import LayerPriors
from medseg.priors.learned import NEEDED, learned_prior
from medseg.priors.prior import FilterPrior
from medseg.seeding import numpy_generator, torch_generator
from medseg.settings import settings

logger = logging.getLogger(__name__)

# Cosines of the depth that a conditioned model is told: smooth, yet able to single out a third of
# the layers.
_DEPTH_FEATURES = 4

#: Share of its layer's root mean square below which a weight's size sets no deviation.
_SMALLEST_WEIGHT = 0.01

_STEPS = {"fit": {"max_steps": 500}}

#: Settings in which a model of kernels differs from the defaults of its kind: for some hundred to
#: some thousand items of 9 or 27 numbers, and steps that a network of ten layers can afford. They
#: are whitened first, so that a model learns what a full Gaussian cannot express.
MODELS: dict[str, dict[str, Any]] = {
    "flow": {"steps": 3, **_STEPS},
    "vae": {"std_floor": 0.1, "standardise": "whiten", **_STEPS},
    "boovae": {"std_floor": 0.1, "standardise": "whiten", **_STEPS},
    "rbm": {"contrastive": _STEPS},
    "dbn": {"contrastive": _STEPS},
    "dbm": {"contrastive": _STEPS, "rounds": 10},
    "dae": _STEPS,
    # Whitened kernels fill all of their dimensions: fewer numbers in a code could not.
    "gan": {
        "standardise": "whiten",
        "latent": 32,
        "fit": {"max_steps": 1000},
        "reference_steps": 500,
    },
}

#: Every kind of prior: two Gaussians with a KL in closed form, and each generative model that has
#: an energy and samples. A convolutional one has no use for kernels as small as these.
PRIOR_KINDS = (
    "diagonal",
    "gaussian",
    *(name for name, kind in KINDS.items() if kind.provides >= NEEDED and name != "conv_vae"),
)


@settings
class FitPriorSettings:
    """Which prior is fitted, to which kernels together, and how."""

    #: One of :data:`PRIOR_KINDS`. ``diagonal``: independent weights; ``gaussian``: full covariance;
    #: else a generative model, such as ``vae``, ``gmm`` or ``rbm``.
    kind: str = "vae"
    #: One model per layer, one per depth group, or one for all that is told the layer (kinds that
    #: take a condition).
    grouping: Literal["layer", "group", "conditioned"] = "layer"
    #: Kernels are divided by the root mean square weight of their layer, or of their depth group.
    scale: Literal["layer", "group"] = "layer"
    #: Fewest kernels a model is fitted to.
    min_kernels: int = Field(default=16, ge=2)
    #: Shrinkage of the full covariance; by default estimated (Ledoit and Wolf 2004).
    shrinkage: float | None = Field(default=None, ge=0, le=1)
    #: What a conditioned model is told: smooth functions of the depth, or which layer it is.
    condition: Literal["depth", "layer"] = "depth"
    #: Settings of the generative model that differ from :data:`MODELS` and the kind's defaults.
    #: ``latent: auto`` takes the intrinsic dimension of the kernels
    #: (:func:`medseg.generative.dimension.propose_latent`), for kinds with a code.
    model: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_the_kind(self) -> "FitPriorSettings":
        if self.kind not in PRIOR_KINDS:
            raise ValueError(
                f"kind must be one of {', '.join(PRIOR_KINDS)}, but it is {self.kind!r}"
            )
        if self.grouping == "conditioned" and not takes_condition(self.kind):
            told = [name for name in PRIOR_KINDS if takes_condition(name)]
            raise ValueError(
                f"grouping 'conditioned' needs one of the kinds {', '.join(told)}, but the kind is "
                f"{self.kind!r}"
            )
        if self.kind not in KINDS:
            if self.model:
                raise ValueError(f"kind {self.kind!r} has no model to set {list(self.model)} of")
            return self
        try:
            self.make((3, 3, 3))
        except ConfigError as error:
            raise ValueError(error.message) from error
        return self

    @property
    def sizes_itself(self) -> bool:
        """Whether the length of the code is found from the kernels."""
        return self.model.get("latent") == "auto"

    def make(
        self,
        kernel_shape: tuple[int, ...],
        *,
        n: int = 1000,
        condition_size: int = 0,
        latent: int | None = None,
    ) -> GenerativeBase:
        """Return the unfitted model for ``n`` kernels; ``latent`` is what "auto" stands for.

        Raises
        ------
        ConfigError
            A setting its kind does not know or allow.
        """
        values = _merged(MODELS.get(self.kind, {}), _sizes(self.kind, n))
        values = _merged(values, self.model)
        if self.sizes_itself:
            # Before the kernels are known, any length of code shows whether the rest is right.
            values["latent"] = 1 if latent is None else latent
        told = {"condition_size": condition_size} if condition_size else {}
        return make_model(self.kind, kernel_shape, values | told)


def takes_condition(kind: str) -> bool:
    """Return whether models of a kind can be told the layer."""
    return kind in KINDS and "condition_size" in KINDS[kind].settings_type.__dataclass_fields__


def is_normalised(kind: str) -> bool:
    """Return whether priors of a kind integrate to one, as the parts of a mixture must."""
    return kind not in KINDS or KINDS[kind].is_normalised


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with ``changes`` put in, at any depth."""
    merged = dict(values)
    for key, change in changes.items():
        before = merged.get(key)
        inside = isinstance(before, Mapping) and isinstance(change, Mapping)
        merged[key] = _merged(cast(Mapping[str, Any], before), change) if inside else change
    return merged


def _sizes(kind: str, n: int) -> dict[str, Any]:
    """Return what must be smaller where there are few kernels: a part of a mixture needs some."""
    if kind == "gmm":
        return {"components": min(max(n // 400, 1), 8)}
    if kind == "som":
        side = min(max(math.isqrt(n // 20), 1), 6)
        return {"size_x": side, "size_y": side}
    return {}


def fit_priors(kernels: KernelSet, settings: FitPriorSettings, *, seed: int) -> LayerPriors:
    """Return a prior for every layer of the kernel set.

    Parameters
    ----------
    kernels : KernelSet
        Of the source networks.
    settings : FitPriorSettings
        Kind, grouping, sizes.
    seed : int
        Of the models' start and batches; each model has its own stream.

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
        if settings.kind in KINDS:
            fitted, record = _fit_model(
                kernels, scaled, scales, settings=settings, seed=seed, unit=unit
            )
            records[unit] = record
            words = " ".join([f"{record['steps']} steps.", *record["warnings"]])
            logger.info("%s of %s: %d kernels, %s", settings.kind, unit, len(items), words)
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


def source_centred_priors(
    network: nn.Module, *, relative_std: float, spread: Literal["layer", "weight"] = "layer"
) -> LayerPriors:
    """Return Gaussians around the weights of one source network.

    Parameters
    ----------
    network : Module
        Deterministic source network.
    relative_std : float
        Standard deviation of every weight over what ``spread`` says.
    spread : {"layer", "weight"}
        The root mean square weight of the layer, or the size of the weight itself (Krishnan et al.
        2020, equation 6), with a floor of a hundredth of the former: a weight of 0 may move.

    Raises
    ------
    PriorError
        The network has no convolution of kernel size 3, or a layer that is all zero.
    """
    priors: dict[str, FilterPrior] = {}
    for name, kernels in layer_kernels(network).items():
        rms = kernels.double().square().mean().sqrt().float()
        size = rms if spread == "layer" else kernels.abs().clamp(min=_SMALLEST_WEIGHT * rms)
        priors[name] = SourceCentredGaussian(kernels, relative_std * size)
    provenance = {"kind": "source_centred", "relative_std": relative_std, "spread": spread}
    return LayerPriors(priors, provenance=provenance)


def anchored_priors(
    anchors: LayerPriors, learned: LayerPriors, *, share: float = 0.9
) -> LayerPriors:
    """Return the mixture of two tables of priors, layer by layer.

    Parameters
    ----------
    anchors : LayerPriors
        Of :class:`SourceCentredGaussian`, as from ``source_centred_priors``.
    learned : LayerPriors
        For the same layers.
    share : float
        Start of the weight of the source's part, above 0 and below 1.

    Raises
    ------
    PriorError
        An anchor is no Gaussian around a source, or a layer has no learned prior.
    """
    mixed: dict[str, FilterPrior] = {}
    for name in anchors.layers:
        anchor = anchors.prior_for(name)
        if not isinstance(anchor, SourceCentredGaussian):
            raise PriorError(
                f"An anchor is a Gaussian around source kernels, but that of layer {name!r} is a "
                f"{type(anchor).__name__}."
            )
        mixed[name] = AnchoredPrior(anchor, learned.prior_for(name), share=share)
    return LayerPriors(mixed, provenance={"kind": "anchored", "learned": learned.hash})


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


def _fit_model(
    kernels: KernelSet,
    scaled: Mapping[str, Tensor],
    scales: Mapping[str, float],
    *,
    settings: FitPriorSettings,
    seed: int,
    unit: str,
) -> tuple[dict[str, FilterPrior], dict[str, Any]]:
    conditions: dict[str, Tensor] = {}
    told = None
    if settings.grouping == "conditioned":
        conditions = {name: _condition(kernels, name, settings.condition) for name in scaled}
        told = torch.cat([conditions[name].expand(len(k), -1) for name, k in scaled.items()])
    items = torch.cat(list(scaled.values()))
    size = 0 if told is None else told.shape[1]
    latent = None
    if settings.sizes_itself:
        latent = propose_latent(items, generator=numpy_generator(seed, "latent", unit))
    model = settings.make(kernels.kernel_shape, n=len(items), condition_size=size, latent=latent)
    generator = torch_generator(seed, "prior", unit)
    record = asdict(model.fit(items, generator=generator, condition=told))
    if latent is not None:
        record["latent"] = latent
    priors: dict[str, FilterPrior] = {}
    shared = None
    for name in scaled:
        prior = learned_prior(
            model, scale=scales[name], condition=conditions.get(name), inference=shared
        )
        shared = getattr(prior, "inference", None)
        priors[name] = prior
    return priors, record


def _condition(kernels: KernelSet, layer: str, kind: str) -> Tensor:
    if kind == "layer":
        return torch.tensor([float(name == layer) for name in kernels.layer_names])
    depth = kernels.info(layer).depth
    return torch.tensor([math.cos(math.pi * j * depth) for j in range(1, _DEPTH_FEATURES + 1)])
