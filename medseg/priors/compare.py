"""Priors side by side on kernels that were kept from their fit."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from medseg.priors.fit import FitPriorSettings, fit_priors
from medseg.priors.kernel_set import KernelSet
from medseg.priors.layer_priors import LayerPriors
from medseg.priors.learned import LearnedPrior, VaePrior
from medseg.priors.prior import FilterPrior
from medseg.priors.two_sample import two_sample_accuracy
from medseg.seeding import torch_generator

#: Name of the row of real kernels of the other networks: what a prior's samples aim at.
REAL = "real kernels"

#: The priors that are compared by default.
COMPARED: dict[str, FitPriorSettings] = {
    "diagonal": FitPriorSettings(kind="diagonal"),
    "gaussian": FitPriorSettings(kind="gaussian"),
    "gaussian group": FitPriorSettings(kind="gaussian", grouping="group"),
    "vae": FitPriorSettings(kind="vae"),
    "vae group": FitPriorSettings(kind="vae", grouping="group"),
    "vae conditioned": FitPriorSettings(kind="vae", grouping="conditioned"),
}


def compare_priors(
    kernels: KernelSet,
    *,
    settings: Mapping[str, FitPriorSettings] = COMPARED,
    seed: int,
    n_codes: int = 64,
    max_kernels: int = 10_000,
    two_sample: int = 0,
) -> list[dict[str, object]]:
    """Return the mean log density of kernels that were kept from the fit, priors side by side.

    The last network is held out, or a fifth of the kernels of each layer when there is one network
    only (which flatters: kernels of one network are not independent). Exact densities are scored
    exactly, autoencoders by the importance-weighted bound, all in nats per kernel in the kernels'
    own units. What is not normalised gets no nats: its constant is unknown, so they would compare
    with nothing.

    Parameters
    ----------
    kernels : KernelSet
        Of two networks or more, best.
    settings : mapping of name to FitPriorSettings
        The priors.
    seed : int
        Of the fits, the codes and the choice of kernels.
    n_codes : int
        Codes per kernel of the importance-weighted bound.
    max_kernels : int
        Kernels scored, drawn at random when more are held out.
    two_sample : int
        Held-out kernels, at most, that classifiers tell from as many samples; 0 for no such test.

    Returns
    -------
    list of dict
        One row per prior and layer, layer ``"all"`` first: ``prior`` (its name), ``kind``,
        ``grouping``, ``layer``, ``nats_per_kernel`` (NaN if unnormalised), ``sd_nats``,
        ``n_kernels``, ``bound``, ``held_out``, ``fit_seconds`` (wall time of the fit). With a
        two-sample test the rows of all layers have its results, and one more row, named
        :data:`REAL`, has those of kernels of the other networks in place of samples.
    """
    train, held, described = hold_out(kernels, seed=seed)
    if len(held) > max_kernels:
        generator = torch_generator(seed, "held-out kernels")
        held = held.select(torch.randperm(len(held), generator=generator)[:max_kernels])
    tested = _drawn(held, two_sample, seed=seed)
    rows: list[dict[str, object]] = []
    for name, option in settings.items():
        started = time.perf_counter()
        priors = fit_priors(train, option, seed=seed)
        seconds = round(time.perf_counter() - started, 2)
        generator = torch_generator(seed, "held-out codes")
        scores = {
            layer: _score(priors.prior_for(layer), held.of_layer(layer), generator, n_codes)
            for layer in held.layer_names
        }
        common = {"prior": name, "kind": option.kind, "grouping": option.grouping}
        ending = {
            "bound": _bound(priors.prior_for(priors.layers[0]), n_codes),
            "held_out": described,
            "fit_seconds": seconds,
        }
        for layer, values in {"all": torch.cat(list(scores.values())), **scores}.items():
            found = _summary(values, normalised=priors.is_normalised)
            rows.append({**common, "layer": layer, **found, **ending})
        if two_sample:
            rows[-1 - len(scores)] |= _two_sample(tested, train, priors, seed=seed)
    if two_sample:
        whole = {"prior": REAL, "kind": REAL, "grouping": "layer", "layer": "all"}
        whole |= _summary(held.kernels, normalised=False) | {"held_out": described}
        rows.append(whole | _two_sample(tested, train, None, seed=seed))
    # The summary rows first: they are the table that is read.
    return sorted(rows, key=lambda row: row["layer"] != "all")


def _summary(values: Tensor, *, normalised: bool) -> dict[str, object]:
    return {
        "nats_per_kernel": float(values.mean()) if normalised and len(values) else math.nan,
        "sd_nats": float(values.std()) if normalised and len(values) > 1 else math.nan,
        "n_kernels": len(values),
    }


def _bound(prior: FilterPrior, n_codes: int) -> str:
    if not prior.is_normalised:
        return "unnormalised"
    return f"importance-weighted, {n_codes} codes" if isinstance(prior, VaePrior) else "exact"


@torch.no_grad()
def _score(prior: FilterPrior, kernels: Tensor, generator: torch.Generator, n_codes: int) -> Tensor:
    if not len(kernels):
        return kernels.new_zeros(0)
    if isinstance(prior, LearnedPrior):
        return prior.score(kernels, generator=generator, n_codes=n_codes)
    return prior.log_bound(kernels)


def _drawn(held: KernelSet, n: int, *, seed: int) -> KernelSet:
    order = torch.randperm(len(held), generator=torch_generator(seed, "two-sample kernels"))
    return held.select(order[:n])


def _two_sample(
    tested: KernelSet, train: KernelSet, priors: LayerPriors | None, *, seed: int
) -> dict[str, object]:
    """Return the accuracies of classifiers; each layer in units of its own scale in ``train``."""
    real, made = [], []
    for layer in tested.layer_names:
        own = tested.of_layer(layer)
        if not len(own):
            continue
        generator = torch_generator(seed, "two-sample", layer)
        if priors is None:
            # Without replacement: a forest knows twins.
            others = train.of_layer(layer)
            drawn = others[torch.randperm(len(others), generator=generator)[: len(own)]]
        else:
            drawn = priors.sample(layer, len(own), generator=generator).detach()
        scale = train.layer_scale(layer)
        real.append(own[: len(drawn)] / scale)
        made.append(drawn / scale)
    found = two_sample_accuracy(torch.cat(real), torch.cat(made), seed=seed)
    return {f"two_sample_{key}": value for key, value in asdict(found).items()}


def hold_out(kernels: KernelSet, *, seed: int) -> tuple[KernelSet, KernelSet, str]:
    """Return kernels to fit to, kernels to score, and in words which those are.

    The last network, or of a single one a fifth of the kernels of each layer.
    """
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
