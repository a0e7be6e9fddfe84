"""Every kind of generative model, by name. Literal, so that grep finds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from medseg.errors import ConfigError, ModelError
from medseg.generative.autoencoder import Autoencoder
from medseg.generative.base import GenerativeBase
from medseg.generative.boovae import BooVae
from medseg.generative.conv_vae import ConvVae
from medseg.generative.dbm import Dbm
from medseg.generative.dbn import Dbn
from medseg.generative.denoising import DenoisingAutoencoder
from medseg.generative.flow import Flow
from medseg.generative.gan import Gan
from medseg.generative.mixture import GaussianMixture
from medseg.generative.pca import Pca, Ppca
from medseg.generative.rbm import Rbm
from medseg.generative.som import Som
from medseg.generative.vae import Vae

KINDS: dict[str, type[GenerativeBase]] = {
    "pca": Pca,
    "ppca": Ppca,
    "gmm": GaussianMixture,
    "flow": Flow,
    "vae": Vae,
    "conv_vae": ConvVae,
    "boovae": BooVae,
    "rbm": Rbm,
    "dbn": Dbn,
    "dbm": Dbm,
    "ae": Autoencoder,
    "dae": DenoisingAutoencoder,
    "gan": Gan,
    "som": Som,
}


def kind_of(name: str) -> type[GenerativeBase]:
    """Return the class of a kind.

    Raises
    ------
    ConfigError
        There is no such kind.
    """
    if name not in KINDS:
        raise ConfigError(
            f"A kind of generative model must be one of {', '.join(KINDS)}, but it is {name!r}."
        )
    return KINDS[name]


def make_model(
    kind: str, event_shape: tuple[int, ...], settings: Mapping[str, Any] | None = None
) -> GenerativeBase:
    """Return an unfitted model of a kind, with settings given by name and checked.

    Raises
    ------
    ConfigError
        No such kind, or a setting it does not know or allow.
    """
    made = kind_of(kind)
    try:
        options = TypeAdapter(made.settings_type).validate_python(dict(settings or {}))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(
            f"The settings of kind {kind!r} must be valid, but {'; '.join(faults)}.",
            hint=f"See {made.settings_type.__name__} for what may be set.",
        ) from error
    return made(event_shape, options)


def restore_model(description: dict[str, Any], tensors: dict[str, Tensor]) -> GenerativeBase:
    """Return a model of any kind from its ``describe()`` and ``state_dict()``."""
    return kind_of(str(description.get("kind"))).restore(description, tensors)


def load_model(folder: Path) -> GenerativeBase:
    """Return the model in a folder, of whichever kind it is.

    Raises
    ------
    ModelError
        The folder holds no model, or more than one.
    """
    found = [name for name in KINDS if (folder / f"{name}.json").is_file()]
    if len(found) != 1:
        raise ModelError(
            f"{folder} must hold one generative model, but it holds {found or 'none'}.",
            hint="Give the folder that was written by save.",
        )
    return KINDS[found[0]].load(folder)
