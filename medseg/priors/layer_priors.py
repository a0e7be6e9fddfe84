"""The table from layer to filter prior that training asks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import ModelError, PriorError
from medseg.generative.base import GenerativeBase
from medseg.generative.catalog import restore_model
from medseg.generative.storage import content_hash, read_folder, write_folder
from medseg.generative.vae import Encoder
from medseg.priors.anchored import AnchoredPrior
from medseg.priors.gaussian import DiagonalGaussian, FullGaussian, SourceCentredGaussian
from medseg.priors.learned import LearnedPrior, VaePrior, learned_prior
from medseg.priors.log_uniform import LogUniform
from medseg.priors.prior import FilterPrior, meaning_of
from medseg.shapes import Kernels, PerKernel

# What each prior that is no model is built from: constructor, then its tensors in that order.
_Plain = type[DiagonalGaussian | FullGaussian | SourceCentredGaussian | LogUniform]
_PLAIN: dict[str, tuple[_Plain, tuple[str, str]]] = {
    "diagonal": (DiagonalGaussian, ("mean", "std")),
    "gaussian": (FullGaussian, ("mean", "covariance")),
    "source_centred": (SourceCentredGaussian, ("mean", "std")),
    "log_uniform": (LogUniform, ("low", "high")),
}


class LayerPriors(nn.Module):
    """One filter prior for each layer, each in the units of that layer's weights.

    Parameters
    ----------
    priors : mapping from layer name to FilterPrior
        Complete: a layer that is not in it is refused. Priors may share a model.
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
    def is_normalised(self) -> bool:
        """Whether the densities of all layers integrate to one."""
        return all(self.prior_for(layer).is_normalised for layer in self.layers)

    def describe(self) -> list[dict[str, object]]:
        """Return kind, and what the nats of the bound mean, of the prior of each layer."""
        return [
            {"layer": layer, "kind": _kind(prior), "nats": meaning_of(prior)}
            for layer in self.layers
            for prior in [self.prior_for(layer)]
        ]

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
        rows = self.describe()
        models, encoders = _Numbered(), _Numbered()
        for i, row in enumerate(rows):
            described, members = _pack_prior(self.prior_for(str(row["layer"])), models, encoders)
            row |= described
            tensors |= {f"layer.{i}.{name}": value for name, value in members.items()}
        for kind, numbered in (("model", models), ("inference", encoders)):
            for number, module in enumerate(numbered.modules):
                state = module.state_dict()
                tensors |= {f"{kind}.{number}.{name}": value for name, value in state.items()}
        described = [m.describe() for m in models.modules if isinstance(m, GenerativeBase)]
        return tensors, {"layers": rows, "models": described, "provenance": self.provenance}


def _kind(prior: FilterPrior) -> str:
    if isinstance(prior, LearnedPrior):
        return prior.kind
    if isinstance(prior, AnchoredPrior):
        return "anchored"
    return next(name for name, (made, _) in _PLAIN.items() if type(prior) is made)


def _pack_prior(
    prior: FilterPrior, models: _Numbered, encoders: _Numbered
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what JSON holds of a prior and its own tensors; shared modules are numbered."""
    row: dict[str, Any] = {"kind": _kind(prior)}
    if isinstance(prior, AnchoredPrior):
        members = {"share_logit": prior.share_logit.detach()}
        for part in ("anchor", "learned"):
            row[part], inner = _pack_prior(getattr(prior, part), models, encoders)
            members |= {f"{part}.{name}": value for name, value in inner.items()}
        return row, members
    if isinstance(prior, LearnedPrior):
        row |= {"scale": prior.scale, "model": models.number(prior.model)}
        if isinstance(prior, VaePrior):
            row["inference"] = encoders.number(prior.inference)
        return row, {} if prior.condition is None else {"condition": prior.condition}
    return row, {name: getattr(prior, name) for name in _PLAIN[row["kind"]][1]}


class _Numbered:
    """Numbers modules by identity, so that one shared by many layers is written once."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []

    def number(self, module: nn.Module) -> int:
        for number, other in enumerate(self.modules):
            if other is module:
                return number
        self.modules.append(module)
        return len(self.modules) - 1


def _unpack(tensors: dict[str, Tensor], description: dict[str, Any]) -> LayerPriors:
    models = [
        restore_model(described, _under(tensors, f"model.{number}."))
        for number, described in enumerate(description["models"])
    ]
    encoders: dict[int, Encoder] = {}

    def restored(row: dict[str, Any], members: dict[str, Tensor]) -> FilterPrior:
        if row["kind"] == "anchored":
            anchor, learned = (
                restored(row[part], _under(members, f"{part}.")) for part in ("anchor", "learned")
            )
            if not isinstance(anchor, SourceCentredGaussian):
                raise TypeError(f"an anchor of kind {row['anchor']['kind']}")
            mixed = AnchoredPrior(anchor, learned)
            mixed.share_logit.data.copy_(members["share_logit"])
            return mixed
        if row["kind"] in _PLAIN:
            made, names = _PLAIN[row["kind"]]
            return made(*(members[name] for name in names))
        number = row.get("inference", -1)
        prior = learned_prior(
            models[row["model"]],
            scale=row["scale"],
            condition=members.get("condition"),
            inference=encoders.get(number),
        )
        if isinstance(prior, VaePrior) and number not in encoders:
            prior.inference.load_state_dict(_under(tensors, f"inference.{number}."))
            encoders[number] = prior.inference
        return prior

    priors = {
        row["layer"]: restored(row, _under(tensors, f"layer.{i}."))
        for i, row in enumerate(description["layers"])
    }
    return LayerPriors(priors, provenance=description["provenance"])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
