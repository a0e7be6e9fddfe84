"""Where the weights of a training start: at random, at the source, at kernels drawn from it."""

import logging

import torch
from torch import Tensor, nn

from medseg.data.regions import RegionSettings
from medseg.errors import TrainingError
from medseg.networks.unet import UNet, UNetSettings
from medseg.seeding import seeded_torch, torch_generator
from medseg.training.method import MethodSettings, Source, TrainingPlan
from medseg.variational.convert import to_variational, variational_layers

log = logging.getLogger(__name__)


def new_network(architecture: UNetSettings, *, seed: int) -> UNet:
    """Return a network with random weights that depend on the seed alone."""
    with seeded_torch(seed, "initialisation"):
        return UNet(architecture)


def load_source(network: nn.Module, source: Source, regions: RegionSettings) -> tuple[str, ...]:
    """Copy the source's weights into ``network`` by name, and the head's by region.

    Returns
    -------
    tuple of str
        Prefixes of what was not loaded and is fresh: ``("head",)`` or nothing.

    Raises
    ------
    TrainingError
        A body tensor is missing, left over, or has another shape.
    """
    given, wanted = source.network.state_dict(), network.state_dict()
    faults = [
        name
        for name in dict.fromkeys([*wanted, *given])
        if not name.startswith("head.") and _shape(given, name) != _shape(wanted, name)
    ]
    if faults:
        raise TrainingError(
            f"A source must have the architecture of the target network, but {faults[:4]} differ.",
            hint="Take architecture and channels from the source model.",
        )
    rows = {name: number for number, name in enumerate(source.regions.names)}
    same = source.regions.mode == regions.mode and all(name in rows for name in regions.names)
    first = int(regions.mode == "classes")
    order = [*range(first), *(rows[name] + first for name in regions.names)] if same else []
    loaded = {
        name: (given[name][order] if name.startswith("head.") else given[name])
        for name in wanted
        if same or not name.startswith("head.")
    }
    network.load_state_dict({**wanted, **loaded})
    fresh = () if same else ("head",)
    log.info("loaded %d tensors from the source; fresh: %s", len(loaded), fresh or "nothing")
    return fresh


def started(
    plan: TrainingPlan, method: MethodSettings, source: Source | None
) -> tuple[UNet, tuple[str, ...]]:
    """Return the network that a method starts with, and the prefixes of what is fresh in it.

    Raises
    ------
    TrainingError
        The method needs a source, or its kernels, that are not given.
    """
    network = new_network(method.architecture(plan.architecture), seed=plan.seed)
    if method.method == "ri":
        return network, ()
    if source is None:
        raise TrainingError(
            f"Method {method.method!r} transfers from a source, but none is given.",
            hint="Give a source model, or use method 'ri'.",
        )
    fresh = load_source(network, source, plan.regions)
    if method.method == "resampled":
        start_from_kernels(network, method, source, seed=plan.seed)
    return network, fresh


def _shape(state: dict[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


@torch.no_grad()
def start_from_kernels(
    network: nn.Module, method: MethodSettings, source: Source, *, seed: int
) -> None:
    """Overwrite every 3x3x3 (3x3) convolution with drawn kernels of its own layer."""
    layers = variational_layers(to_variational(network, settings=method.variational))
    modules, priors = dict(network.named_modules()), source.priors_for(method)
    for name in layers:
        weight = modules[name].weight
        if not isinstance(weight, Tensor):
            raise TrainingError(f"Layer {name!r} must have a weight tensor, but it has none.")
        shape, generator = weight.shape, torch_generator(seed, "kernel start", name)
        n = shape[0] * shape[1]
        kind = "resampled" if method.method == "resampled" else method.init
        if kind == "prior" and priors is not None:
            drawn = priors.sample(name, n, generator=generator)
        elif source.kernels is not None:
            drawn = source.kernels.resample(name, n, generator=generator)
        else:
            raise TrainingError(
                f"A start from {kind!r} needs the source's kernels or prior, but there are none.",
                hint="Harvest the source networks first.",
            )
        if method.noise > 0:
            rms = drawn.square().mean().sqrt()
            normal = torch.randn(drawn.shape, generator=generator, dtype=drawn.dtype)
            drawn = drawn + method.noise * rms * normal
        weight.copy_(drawn.view(shape))
