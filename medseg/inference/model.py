"""A model is a folder: weights, a description and a card. Nothing in it is ever executed."""

import hashlib
import json
import logging
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medseg import __version__
from medseg.calibration import record
from medseg.calibration.record import Calibration, read_calibration, write_calibration
from medseg.data.regions import RegionSettings
from medseg.errors import ModelError
from medseg.inference.card import model_card
from medseg.inference.ensemble import joined
from medseg.inference.intensity_prior import IntensityPrior
from medseg.inference.posterior import Head
from medseg.io.atomic import atomic_path, file_sha256, write_json, write_text
from medseg.networks.unet import UNet, UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.seeding import seeded_torch
from medseg.settings import settings
from medseg.variational.convert import to_variational
from medseg.variational.settings import VariationalSettings
from medseg.variational.swag import SwagNetwork, WeightMoments

log = logging.getLogger(__name__)

FORMAT = 1
WEIGHTS_NAME, SPEC_NAME, CARD_NAME = "model.safetensors", "model.json", "card.md"


@settings
class ModelSpec:
    """Everything about a model but its weights.

    Parameters
    ----------
    architecture : UNetSettings
    channels : tuple of str
        Modality of each input channel, in order.
    regions : RegionSettings
        What the outputs are, in order.
    region_definition : dict
        Labels of the training data that make up each region.
    preprocess : PreprocessSettings
    allow_missing : bool
        Whether the network was trained to do without some channels.
    variational : VariationalSettings or None
        None for a deterministic network.
    swag_rank : int
        Deviations of a SWAG posterior; 0 for none.
    members : int
        Networks in it, all of this architecture; their samples are mixed.
    has_share : bool
        A distilled network: half of its outputs tell how far the networks agree that it learned
        from, see :class:`medseg.inference.posterior.Head`.
    patch : tuple of int, optional
        Voxels that the network saw at once while it was trained; windows are of this size where
        nothing else is asked for.
    intensities : IntensityPrior, optional
        What labelled scans look like: predictions are held against each scan's intensities.
    method : str
        How it was trained, for example "dwp".
    temperature : float
        Logits are divided by it.
    training : dict
        Free JSON: ``subjects`` trained on, ``seen_subjects`` in any way, as salted hashes; seed,
        steps, versions, prior hash.
    """

    architecture: UNetSettings
    channels: tuple[str, ...] = Field(min_length=1)
    regions: RegionSettings
    region_definition: dict[str, tuple[int, ...]]
    preprocess: PreprocessSettings
    allow_missing: bool = False
    variational: VariationalSettings | None = None
    swag_rank: int = Field(default=0, ge=0)
    members: int = Field(default=1, ge=1)
    has_share: bool = False
    patch: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    intensities: IntensityPrior | None = None
    method: str
    temperature: float = Field(default=1.0, gt=0)
    training: dict[str, Any] = Field(default_factory=dict)

    @property
    def is_random(self) -> bool:
        """Whether samples differ: some weights, or the channels that pass, are random."""
        random = self.variational is not None or self.swag_rank > 0
        return random or self.architecture.dropout > 0

    @model_validator(mode="after")
    def _fits_together(self) -> "ModelSpec":
        if len(self.channels) != self.architecture.in_channels:
            raise ValueError(
                f"channels names {len(self.channels)} modalities, but the architecture takes "
                f"{self.architecture.in_channels}"
            )
        if self.has_share and (self.variational is not None or self.regions.mode != "regions"):
            raise ValueError("has_share is for deterministic networks of sigmoid regions")
        if self.intensities is not None:
            self.intensities.require_fit(self.regions, len(self.channels))
        if self.has_share and self.members > 1:
            raise ValueError("has_share is for one network, not for several members")
        if self.patch is not None and len(self.patch) != self.architecture.dims:
            raise ValueError(
                f"patch has a length for each of {self.architecture.dims} axes, but it is "
                f"{list(self.patch)}"
            )
        outputs = self.regions.channels * (2 if self.has_share else 1)
        if outputs != self.architecture.out_channels:
            raise ValueError(
                f"regions need {outputs} outputs, but the architecture has "
                f"{self.architecture.out_channels}"
            )
        if set(self.region_definition) != set(self.regions.names):
            raise ValueError(
                f"region_definition is for {sorted(self.region_definition)}, but the regions are "
                f"{sorted(self.regions.names)}"
            )
        return self


@dataclass(frozen=True, eq=False)
class Model:
    """A network and what is needed to use it.

    Parameters
    ----------
    network : nn.Module
        As built from ``spec``.
    spec : ModelSpec
    folder : Path, optional
        Where it was loaded from; compiled forms of it are kept there.
    calibration : Calibration, optional
        What labelled cases said of it.
    temperatures : tuple of float, optional
        Of each region, in place of the description's; by default those of the calibration.
    engines : dict
        What computes its logits, by what was asked for: see ``medseg.inference.compute``.
    """

    network: nn.Module
    spec: ModelSpec
    folder: Path | None = None
    calibration: Calibration | None = None
    temperatures: tuple[float, ...] | None = None
    engines: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def head(self) -> Head:
        """How the network's logits are read."""
        spec, temperature = self.spec, self.temperatures
        if temperature is None and self.calibration is not None:
            temperature = self.calibration.temperatures
        if temperature is None:
            chosen = spec.temperature
        elif spec.regions.mode == "classes":
            chosen = temperature[0]  # a softmax has one
        else:
            # Shares of variance are no probabilities of a region.
            chosen = temperature + (1.0,) * (len(temperature) if spec.has_share else 0)
        rest = spec.has_share, spec.patch, spec.intensities
        return Head(spec.regions, spec.architecture.dims, chosen, *rest)

    def fingerprint(self) -> str:
        """Return a SHA-256 over description, weights and calibration."""
        digest = hashlib.sha256(json.dumps(spec_to_json(self.spec), sort_keys=True).encode())
        for name, value in sorted(_tensors(self.network).items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().data)
        if self.calibration is not None:
            digest.update(repr(self.calibration).encode())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the model into a folder, made where missing.

        Parameters
        ----------
        folder : Path
            Gets ``model.safetensors``, ``model.json`` and ``card.md``. The description goes last
            and names the hash of the weights: a model torn by a crash is noticed when it is loaded.
            A calibration that lies there is of another model, and goes.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / record.NAME).unlink(missing_ok=True)
        tensors = _tensors(self.network)
        with atomic_path(folder / WEIGHTS_NAME) as temporary:
            save_file(tensors, temporary)
        spec = spec_to_json(self.spec)
        write_text(folder / CARD_NAME, model_card(spec, n_weights=_count(tensors)))
        write_json(
            folder / SPEC_NAME,
            {
                "format": FORMAT,
                "medseg": __version__,
                "weights_sha256": file_sha256(folder / WEIGHTS_NAME),
                "spec": spec,
            },
        )


def save_calibration(model: Model, folder: Path, calibration: Calibration) -> Calibration:
    """Write the calibration of a model beside it, bound to it, and return it as written.

    Raises
    ------
    ModelError
        The folder holds another model by now.
    """
    folder = Path(folder)
    there = load_model(folder, ignore_calibration=True)
    if there.fingerprint() != replace(model, calibration=None).fingerprint():
        raise ModelError(
            f"A calibration goes beside the model it was fitted to, but {folder} holds another.",
            hint="The folder was written to meanwhile: calibrate again.",
        )
    bound = replace(calibration, model_sha256=_identity(_read_description(folder)))
    write_calibration(folder / record.NAME, bound)
    return bound


def _identity(description: dict[str, Any]) -> str:
    """Return the SHA-256 of what predicts: the hash of the weights, and how they are used.

    Of the file as it is, so that a later version, which may know of more settings, finds the same.
    """
    parts = {key: description[key] for key in ("weights_sha256", "spec")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def seen_subjects(spec: ModelSpec) -> frozenset[str]:
    """Return the subjects that a model's training saw in any way, as far as it was recorded.

    Besides those it was trained on also those of early stopping, source models and scans beside the
    target's; as salted hashes, or names in models of before: ask by ``people.seen_among``.
    """
    training = spec.training
    return frozenset([*training.get("subjects", ()), *training.get("seen_subjects", ())])


def spec_to_json(spec: ModelSpec) -> dict[str, Any]:
    """Return a description as plain JSON values."""
    plain: dict[str, Any] = TypeAdapter(ModelSpec).dump_python(spec, mode="json")
    return plain


def spec_from_json(values: dict[str, Any]) -> ModelSpec:
    """Return the description that :func:`spec_to_json` wrote.

    Raises
    ------
    ModelError
        A key that is unknown, missing or out of its limits; each is named.
    """
    try:
        return TypeAdapter(ModelSpec).validate_python(values)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'model'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ModelError(
            f"A model's description must fit this version of medseg, but {faults}.",
            hint="Load it with the version that wrote it, named in model.json.",
        ) from error


def build_network(spec: ModelSpec) -> nn.Module:
    """Return the network of a description with weights that mean nothing yet.

    Torch's global generator is left as it was.
    """
    with seeded_torch(0, "weights to be replaced"):
        return joined([_build_member(spec) for _ in range(spec.members)])


def _build_member(spec: ModelSpec) -> nn.Module:
    network: nn.Module = UNet(spec.architecture)
    if spec.variational is not None:
        network = to_variational(network, settings=spec.variational)
    if spec.swag_rank > 0:
        weights = dict(network.named_parameters())
        network = SwagNetwork(network, WeightMoments(weights, rank=spec.swag_rank))
    return network


def load_model(
    folder: Path, *, device: torch.device | str = "cpu", ignore_calibration: bool = False
) -> Model:
    """Return the model in a folder, ready to predict.

    Parameters
    ----------
    folder : Path
        As written by :meth:`Model.save`.
    device : torch.device or str
        Where the weights go.
    ignore_calibration : bool
        Load none, for example because a new one is to take its place.

    Raises
    ------
    ModelError
        A file is missing or damaged, the weights are not those of the description, or a tensor is
        missing, left over or of another shape; each is named. Nothing is loaded in part. Or there
        is a calibration, but of other weights or another description.
    """
    folder = Path(folder)
    description = _read_description(folder)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise ModelError(
            f"A model folder holds {WEIGHTS_NAME}, but {folder} does not.",
            hint="Copy the whole folder, or train the model again.",
        )
    digest = file_sha256(path)
    if digest != description.get("weights_sha256"):
        raise ModelError(
            f"The weights of {folder} must be those its {SPEC_NAME} was written for, but their "
            "hashes differ.",
            hint="One file was changed, or a save was cut short: copy or train the model again.",
        )
    spec = spec_from_json(description["spec"])
    network = build_network(spec)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ModelError(
            f"{path} must be a safetensors file, but it is damaged: {error}."
        ) from error
    _check_tensors(tensors, expected=network.state_dict(), path=path)
    network.load_state_dict(tensors)
    found = None
    if not ignore_calibration:
        names = tuple(spec.regions.names)
        found = read_calibration(
            folder / record.NAME, model_sha256=_identity(description), regions=names
        )
    log.info("loaded all %d tensors of %s (method %s)", len(tensors), folder, spec.method)
    return Model(network.to(device).eval(), spec, folder, calibration=found)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / SPEC_NAME
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"A model folder holds a readable {SPEC_NAME}, but {path} is not: {error}.",
            hint="Give the folder that `medseg train` or `medseg finetune` wrote.",
        ) from error
    if not isinstance(description, dict) or not isinstance(description.get("spec"), dict):
        raise ModelError(f"{path} must hold a model's description under 'spec', but it does not.")
    if description.get("format") != FORMAT:
        raise ModelError(
            f"{path} must be of format {FORMAT}, but it is of {description.get('format')!r}.",
            hint=f"Load it with medseg {description.get('medseg', 'of the version of then')}.",
        )
    return description


def _check_tensors(found: dict[str, Tensor], *, expected: dict[str, Tensor], path: Path) -> None:
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is not known" for name in found if name not in expected]
    faults += [
        f"{name} has shape {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
        for name, value in found.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise ModelError(
            f"{path} must hold exactly the tensors of its architecture, but {shown}.",
            hint="Weights and description are of different models.",
        )


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    # Clones, because safetensors refuses tensors that share memory or have gaps.
    return {
        name: value.detach().cpu().contiguous().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }


def _count(tensors: dict[str, Tensor]) -> int:
    return sum(value.numel() for value in tensors.values())
