"""Filter priors that take the kernels of a new disease without those of the old ones."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor

from medseg.errors import PriorError
from medseg.generative.boovae import BooVae
from medseg.priors.kernel_set import KernelSet
from medseg.priors.layer_priors import LayerPriors
from medseg.priors.learned import VaePrior
from medseg.priors.prior import FilterPrior
from medseg.seeding import torch_generator

logger = logging.getLogger(__name__)


def extend_priors(priors: LayerPriors, kernels: KernelSet, *, seed: int) -> LayerPriors:
    """Return priors of kind ``boovae`` after one more task; those given stay.

    Kernels are divided by the scales of the old priors, so that the density of an old kernel is
    that of the same model. Inference networks start anew, from the new encoders.

    Parameters
    ----------
    priors : LayerPriors
        Fitted by :func:`medseg.priors.fit.fit_priors` with kind ``boovae``, any grouping.
    kernels : KernelSet
        Of networks of the new disease and the same architecture.
    seed : int
        Of batches and of what the old model draws.

    Raises
    ------
    PriorError
        Priors of another kind, or kernels of other layers or another shape.
    """
    old = {name: cast(VaePrior, priors.prior_for(name)) for name in priors.layers}
    strange = [name for name, prior in old.items() if not _is_extensible(prior)]
    if strange:
        raise PriorError(
            f"Priors are extended where their model is a boovae, but that of layer {strange[0]!r} "
            f"is not one.",
            hint="Fit the first disease with `medseg fit-prior --kind boovae`.",
        )
    if priors.layers != kernels.layer_names or priors.kernel_shape != kernels.kernel_shape:
        raise PriorError(
            f"New kernels must be {priors.kernel_shape} and of the layers "
            f"{', '.join(priors.layers)}, but they are {kernels.kernel_shape} and of "
            f"{', '.join(kernels.layer_names)}.",
            hint="Harvest from networks of the same architecture.",
        )
    made: dict[str, FilterPrior] = {}
    records: dict[str, dict[str, Any]] = {}
    for number, names in enumerate(_units(old)):
        first = old[names[0]]
        unit = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        scaled = {name: kernels.of_layer(name) / old[name].scale for name in names}
        told = None
        if first.condition is not None:
            rows = [cast(Tensor, old[n].condition).expand(len(k), -1) for n, k in scaled.items()]
            told = torch.cat(rows)
        model, record = cast(BooVae, first.model).extend(
            torch.cat(list(scaled.values())),
            generator=torch_generator(seed, "extended prior", number),
            condition=told,
        )
        records[unit] = asdict(record)
        logger.info("boovae of %s: %d new kernels", unit, sum(map(len, scaled.values())))
        shared = None
        for name in names:
            prior = VaePrior(
                model, scale=old[name].scale, condition=old[name].condition, inference=shared
            )
            shared, made[name] = prior.inference, prior
    provenance = {
        "extends": priors.hash,
        "before": priors.provenance,
        "seed": seed,
        "kernels": kernels.hash,
        "n_kernels": len(kernels),
        "networks": list(kernels.networks),
        "fits": records,
    }
    return LayerPriors({name: made[name] for name in priors.layers}, provenance=provenance)


@torch.no_grad()
def mean_nats(priors: LayerPriors, kernels: KernelSet, *, seed: int, n_codes: int = 64) -> float:
    """Return the mean log density of kernels of all layers under autoencoders, nats per kernel."""
    generator = torch_generator(seed, "held-out codes")
    total = 0.0
    for name in kernels.layer_names:
        prior, own = priors.prior_for(name), kernels.of_layer(name)
        if isinstance(prior, VaePrior) and len(own):
            scores = prior.score(own, generator=generator, n_codes=n_codes)
            total += float(scores.double().sum())
    return total / max(len(kernels), 1)


def _is_extensible(prior: FilterPrior) -> bool:
    return isinstance(prior, VaePrior) and isinstance(prior.model, BooVae)


def _units(old: dict[str, VaePrior]) -> list[list[str]]:
    """Return the layers that share a model, model by model."""
    units: dict[int, list[str]] = {}
    for name, prior in old.items():
        units.setdefault(id(prior.model), []).append(name)
    return list(units.values())
