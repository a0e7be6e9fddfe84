"""The table from layer to filter prior that training asks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import ModelError, PriorError
from medseg.generative.storage import content_hash, read_folder, write_folder
from medseg.generative.vae import Encoder, Vae
from medseg.priors.gaussian import DiagonalGaussian, FullGaussian, SourceCentredGaussian
from medseg.priors.learned import VaePrior
from medseg.priors.prior import FilterPrior
from medseg.shapes import Kernels, PerKernel

# What each exact prior is built from: constructor, then the names of its tensors in that order.
_Exact = type[DiagonalGaussian] | type[FullGaussian] | type[SourceCentredGaussian]
_EXACT: dict[str, tuple[_Exact, tuple[str, str]]] = {
    "diagonal": (DiagonalGaussian, ("mean", "std")),
    "gaussian": (FullGaussian, ("mean", "covariance")),
    "source_centred": (SourceCentredGaussian, ("mean", "std")),
}


class LayerPriors(nn.Module):
    """One filter prior for each layer, each in the units of that layer's weights.

    Parameters
    ----------
    priors : mapping from layer name to FilterPrior
        Complete: a layer that is not in it is refused. Priors may share an autoencoder.
    provenance : mapping, optional
        Where they come from, as JSON: settings, seed, hash of the kernels, fit records.

    Raises
    ------
    PriorError
        No prior, or priors for kernels of different shapes.
    """

    def __init__(
        self, priors: Mapping[str, FilterPrior], *, provenance: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        shapes = {prior.kernel_shape for prior in priors.values()}
        if len(shapes) != 1:
            raise PriorError(
                f"The priors of one network must have one kernel shape, but these have "
                f"{sorted(shapes)}.",
                hint="Give at least one layer, and do not mix 2D and 3D.",
            )
        (self.kernel_shape,) = shapes
        self.layers = tuple(priors)
        self.provenance = dict(provenance or {})
        # A list beside the names: layer names hold dots, which a ModuleDict refuses.
        self._priors = nn.ModuleList([prior for prior in priors.values()])  # type: ignore[misc]

    def prior_for(self, layer: str) -> FilterPrior:
        """Return the prior of one layer, in the units of its weights.

        Raises
        ------
        PriorError
            The layer is not in the table.
        """
        if layer not in self.layers:
            raise PriorError(
                f"A layer must be one of {', '.join(self.layers)}, but it is {layer!r}.",
                hint="Fit the priors to networks of the same architecture as the target's.",
            )
        return self._priors[self.layers.index(layer)]  # type: ignore[return-value]

    def log_bound(
        self, layer: str, kernels: Kernels, *, generator: torch.Generator | None = None
    ) -> PerKernel:
        """Return a lower bound on log p in nats of kernels (m, *k) of one layer, (m,)."""
        return self.prior_for(layer).log_bound(kernels, generator=generator)

    def sample(self, layer: str, n: int, *, generator: torch.Generator) -> Kernels:
        """Return ``n`` kernels drawn from the prior of one layer, (n, *k)."""
        return self.prior_for(layer).sample(n, generator=generator)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all inference networks, each once, in a fixed order."""
        found = (
            parameter
            for layer in self.layers
            for parameter in self.prior_for(layer).trainable_parameters()
        )
        return list({id(parameter): parameter for parameter in found}.values())

    @property
    def hash(self) -> str:
        """SHA-256 of the densities; training the inference networks does not change it."""
        tensors, description = self._pack()
        density = {key: value for key, value in tensors.items() if not key.startswith("inference.")}
        return content_hash(density, description)

    def save(self, folder: Path) -> None:
        """Write ``priors.safetensors`` and ``priors.json``."""
        write_folder(folder, "priors", *self._pack())

    @classmethod
    def load(cls, folder: Path) -> LayerPriors:
        """Return the priors written by :meth:`save`.

        Raises
        ------
        ModelError
            A file is missing, damaged, or of another version.
        """
        tensors, description = read_folder(folder, "priors")
        try:
            return _unpack(tensors, description)
        except (KeyError, RuntimeError, TypeError) as error:
            raise ModelError(
                f"{folder} must hold priors of this version, but: {error}.",
                hint="Fit the priors again.",
            ) from error

    def _pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        rows: list[dict[str, Any]] = []
        shared = _Shared()
        for i, layer in enumerate(self.layers):
            prior = self.prior_for(layer)
            if isinstance(prior, VaePrior):
                row = {
                    "kind": "vae",
                    "scale": prior.scale,
                    "vae": shared.number("vae", prior.vae),
                    "inference": shared.number("inference", prior.inference),
                }
                members = {} if prior.condition is None else {"condition": prior.condition}
            else:
                kind = next(name for name, (made, _) in _EXACT.items() if type(prior) is made)
                row = {"kind": kind}
                members = {name: getattr(prior, name) for name in _EXACT[kind][1]}
            rows.append({"layer": layer, **row})
            tensors |= {f"layer.{i}.{name}": value for name, value in members.items()}
        for kind, modules in shared.modules.items():
            for number, module in enumerate(modules):
                state = module.state_dict()
                tensors |= {f"{kind}.{number}.{name}": value for name, value in state.items()}
        vaes = [module.describe() for module in shared.modules["vae"] if isinstance(module, Vae)]
        return tensors, {"layers": rows, "vaes": vaes, "provenance": self.provenance}


class _Shared:
    """Numbers modules by identity, so that one shared by many layers is written once."""

    def __init__(self) -> None:
        self.modules: dict[str, list[nn.Module]] = {"vae": [], "inference": []}

    def number(self, kind: str, module: nn.Module) -> int:
        known = self.modules[kind]
        for number, other in enumerate(known):
            if other is module:
                return number
        known.append(module)
        return len(known) - 1


def _unpack(tensors: dict[str, Tensor], description: dict[str, Any]) -> LayerPriors:
    vaes = [
        Vae.restore(described, _under(tensors, f"vae.{number}."))
        for number, described in enumerate(description["vaes"])
    ]
    encoders: dict[int, Encoder] = {}
    priors: dict[str, FilterPrior] = {}
    for i, row in enumerate(description["layers"]):
        members = _under(tensors, f"layer.{i}.")
        if row["kind"] != "vae":
            made, names = _EXACT[row["kind"]]
            priors[row["layer"]] = made(*(members[name] for name in names))
            continue
        prior = VaePrior(
            vaes[row["vae"]],
            scale=row["scale"],
            condition=members.get("condition"),
            inference=encoders.get(row["inference"]),
        )
        if row["inference"] not in encoders:
            state = _under(tensors, f"inference.{row['inference']}.")
            prior.inference.load_state_dict(state)
            encoders[row["inference"]] = prior.inference
        priors[row["layer"]] = prior
    return LayerPriors(priors, provenance=description["provenance"])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
