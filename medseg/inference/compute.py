"""Which engine computes a model's logits; it is made once and kept with the model."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg.inference.engines.auto import CANDIDATES, choose_engine, region_masks
from medseg.inference.engines.eager import EagerEngine
from medseg.inference.engines.engine import Engine, EngineChoice, make_engine
from medseg.inference.ensemble import Ensemble
from medseg.inference.model import Model
from medseg.inference.settings import PredictSettings
from medseg.networks.precision import native_bf16
from medseg.networks.unet import UNet
from medseg.shapes import Image

log = logging.getLogger(__name__)

#: Longest side of the part of an image that engines are compared on.
EXAMPLE_SIDE = 128
#: Slices of it, for a network of slices.
EXAMPLE_SLICES = 8
#: Multiplications for it below which files take longer than the network whatever the engine. Not
#: seconds: what is chosen must not depend on what else the machine does.
WORTH_MULTIPLICATIONS = 2e10


def with_profile(settings: PredictSettings) -> PredictSettings:
    """Return settings in which the profile has chosen what decides about exactness.

    "best" takes the reference where the engine is left open, and its float32; the engine "eager" is
    that reference.
    """
    best = settings.profile == "best"
    engine = "eager" if best and settings.engine == "auto" else settings.engine
    exact = settings.precision == "auto" and (best or engine == "eager")
    return replace(settings, engine=engine, precision="float32" if exact else settings.precision)


def engine_for(model: Model, image: Image, *, settings: PredictSettings) -> Engine | None:
    """Return what computes the logits of a model's (mean) weights, or None for the network itself.

    Parameters
    ----------
    model : Model
        Its network is on the device of the settings. The engine is kept with it and made again when
        its weights are others.
    image : Tensor, shape (c, x, y, z)
        A prepared case; where the engine is "auto", engines are compared on the middle of it. The
        members of an ensemble are computed by torch whatever is asked for.
    settings : PredictSettings

    Raises
    ------
    ConfigError
        The engine is not installed, or has no such precision.
    """
    network = model.network
    if isinstance(network, Ensemble) and settings.engine not in ("auto", "eager"):
        log.warning(
            "engine %s is made for one network: torch computes the %d members of an ensemble",
            settings.engine,
            len(network.members),
        )
    # A full sample has other weights each time; networks of other makers stay as they are.
    full = model.spec.is_random and settings.posterior == "full"
    if settings.engine == "eager" or full or not isinstance(network, UNet):
        return None
    key = (
        settings.engine,
        settings.precision,
        settings.profile == "fast",
        settings.threshold,
        model.head.windowed(settings).window,
    )
    version = _version_of(network)
    kept = model.engines.get(key)
    if kept is None or kept[0] != version:
        kept = version, _made(model, network, image, settings)
        model.engines[key] = kept
    return kept[1]


def _version_of(network: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return what changes when weights are replaced or written to."""
    return tuple((weight.data_ptr(), weight._version) for weight in network.state_dict().values())


def _made(model: Model, network: UNet, image: Image, settings: PredictSettings) -> Engine:
    device = next(network.parameters()).device
    whole = example_of(image, dims=network.settings.dims)
    # Engines agree or not on as much as they will be shown at once.
    example = middle_of(whole, model.head.windowed(settings).window)
    if settings.engine == "auto":
        if multiplications(network, whole) < WORTH_MULTIPLICATIONS:
            log.info("engine eager: the network is too small for a search to pay")
            return EagerEngine(network)
        return _fastest(model, network, example, settings)
    precision = settings.precision
    if precision == "auto":
        native = native_bf16(device)[0] and settings.engine != "onnx"
        precision = "bf16" if native else "float32"
    choice = EngineChoice(name=settings.engine, precision=precision, device=str(device))
    return make_engine(choice, network, cache=_cache(model), calibration=[example])


def _fastest(model: Model, network: UNet, example: Tensor, settings: PredictSettings) -> Engine:
    wanted = settings.precision
    return choose_engine(
        network,
        examples=[example],
        decode=region_masks(model.spec.regions, threshold=settings.threshold),
        cache=_cache(model),
        candidates=[one for one in CANDIDATES if wanted in ("auto", one.precision)],
        allow_int8=settings.profile == "fast",
    ).engine


def multiplications(network: UNet, images: Tensor) -> float:
    """Return about how many multiplications a network does for images (b, c, *s)."""
    fewer = 2**network.settings.dims
    down = [network.stem, *network.encoder]
    up = [network.head, *list(network.decoder)[::-1]]
    per_voxel = sum(_weights(block) / fewer**level for level, block in enumerate(down))
    # The head and the last stage are both on the finest grid.
    per_voxel += sum(_weights(block) / fewer ** max(0, i - 1) for i, block in enumerate(up))
    return per_voxel * images[:, 0].numel()


def _weights(block: nn.Module) -> int:
    return sum(weight.numel() for weight in block.parameters())


def _cache(model: Model) -> Path | None:
    return None if model.folder is None else model.folder / "engines"


def middle_of(images: Tensor, window: tuple[int, ...] | None) -> Tensor:
    """Return the middle of images (b, c, *s), at most a window large; all where there is none."""
    for axis, side in enumerate(window or (), start=2):
        start = max(0, images.shape[axis] - side) // 2
        images = images.narrow(axis, start, min(side, images.shape[axis]))
    return images.contiguous()


def example_of(image: Image, *, dims: int) -> Tensor:
    """Return the middle of what is not 0 in an image, as a batch for the network.

    Parameters
    ----------
    image : Tensor, shape (c, x, y, z)
    dims : 2 or 3
        Spatial axes of the network.

    Returns
    -------
    Tensor, shape (1, c, *s) or (b, c, x, y)
        At most 128 voxels along each axis; for slices, 8 of them spread evenly.
    """
    inside = image.ne(0).any(dim=0)
    part = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hits = torch.nonzero(inside.any(dim=others[1]).any(dim=others[0])).flatten()
        low, high = (int(hits[0]), int(hits[-1]) + 1) if len(hits) else (0, image.shape[axis + 1])
        trim = max(0, high - low - EXAMPLE_SIDE)
        part.append(slice(low + trim // 2, high - (trim - trim // 2)))
    middle = image[(slice(None), *part)]
    if dims == 3:
        return middle.unsqueeze(0).contiguous()
    depth = middle.shape[3]
    picked = torch.linspace(0, depth - 1, min(EXAMPLE_SLICES, depth)).round().long()
    return middle[..., picked].permute(3, 0, 1, 2).contiguous()
