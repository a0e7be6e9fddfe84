"""The law of every engine: the logits of the network in eager float32, for any images."""

from functools import cache
from typing import get_args

import pytest
import torch
from torch import Tensor

from medseg.errors import ConfigError, ShapeError
from medseg.inference.engines.engine import (
    PRECISIONS,
    Engine,
    EngineChoice,
    EngineName,
    make_engine,
)
from medseg.networks.precision import native_bf16
from medseg.networks.presets import unet_2d, unet_3d, unet_short_3d
from medseg.networks.unet import UNet, UNetSettings
from medseg.seeding import seeded_torch, torch_generator


def narrow(preset: UNetSettings, *widths: int) -> UNetSettings:
    return UNetSettings(**{**vars(preset), "widths": widths})


CHOICES = [
    EngineChoice(name=n, precision=p, device="cpu") for n, ps in PRECISIONS.items() for p in ps
]
NETWORKS = {
    "unet_short_3d": unet_short_3d(2, 3),
    "unet_3d": narrow(unet_3d(2, 3), 6, 8, 12, 8),
    "unet_2d": narrow(unet_2d(2, 3), 8, 12, 8),
}
#: One voxel, thin, odd, and whole multiples of the stride.
SIZES = [(1, 1, 1), (19, 1, 8), (13, 9, 11), (24, 16, 16)]
#: Mean error of logits in their standard deviations. Weights and images are random, the hardest for
#: int8: these tell one network from another, and the choice of an engine compares masks.
TOLERANCES = {"float32": 1e-4, "bf16": 0.05, "float16": 0.01, "int8": 0.4}


@cache
def build(name: str) -> UNet:
    with seeded_torch(0, "engines"):
        network = UNet(NETWORKS[name])
        for parameter in network.parameters():
            # Gains and shifts that are still 1 and 0 would hide that one was left out.
            parameter.data += 0.1 * parameter.data.std(correction=0) * torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return network.eval()


def images_for(name: str, size: tuple[int, ...], *, batch: int = 1, seed: int = 0) -> Tensor:
    dims = NETWORKS[name].dims
    return torch.randn(batch, 2, *size[:dims], generator=torch_generator(seed, "images"))


@cache
def made(choice: EngineChoice, name: str) -> Engine | str:
    native, reason = native_bf16(torch.device("cpu"))
    if choice.name == "torch" and choice.precision == "bf16" and not native:
        return f"bf16 is emulated here, and slow: {reason}"
    calibration = [images_for(name, (24, 16, 16), seed=seed) for seed in range(4)]
    try:
        return make_engine(choice, build(name), calibration=calibration)
    except ConfigError as error:
        return str(error)


def engine_of(choice: EngineChoice, name: str) -> Engine:
    engine = made(choice, name)
    if isinstance(engine, str):
        pytest.skip(engine)
    return engine


def expected(name: str, images: Tensor) -> Tensor:
    with torch.no_grad():
        return build(name)(images)


@cache
def scale(name: str) -> float:
    """Return the standard deviation of logits; those of single voxels are all but zero."""
    return float(expected(name, images_for(name, (16, 16, 16))).std())


def assert_agrees(found: Tensor, wanted: Tensor, choice: EngineChoice, name: str) -> None:
    assert found.dtype == torch.float32
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().mean()) <= TOLERANCES[choice.precision] * scale(name)


def test_every_engine_and_precision_is_seen() -> None:
    assert {choice.name for choice in CHOICES} == set(get_args(EngineName))
    assert set(TOLERANCES) == {choice.precision for choice in CHOICES}


def test_what_needs_no_package_is_always_here() -> None:
    for name in ("eager", "torch"):
        assert not isinstance(made(EngineChoice(name=name, device="cpu"), "unet_short_3d"), str)


every_engine = pytest.mark.parametrize("choice", CHOICES, ids=str)
every_network = pytest.mark.parametrize("name", sorted(NETWORKS))


@every_network
@every_engine
class TestEngine:
    def test_fulfils_the_protocol(self, choice, name) -> None:
        engine = engine_of(choice, name)
        assert isinstance(engine, Engine)
        assert (engine.name, engine.precision) == (choice.name, choice.precision)

    @pytest.mark.parametrize("batch", [1, 2])
    def test_logits_are_those_of_eager_float32(self, choice, name, batch) -> None:
        engine = engine_of(choice, name)
        for size in SIZES:
            images = images_for(name, size, batch=batch)
            assert_agrees(engine(images), expected(name, images), choice, name)

    def test_images_need_not_lie_densely_in_memory(self, choice, name) -> None:
        images = images_for(name, (20, 16, 16), batch=2)
        window = images[:1, :, 3:16, ::2]
        before = images.clone()
        assert_agrees(engine_of(choice, name)(window), expected(name, window), choice, name)
        assert torch.equal(images, before)

    def test_equal_images_give_equal_logits(self, choice, name) -> None:
        engine, images = engine_of(choice, name), images_for(name, (13, 9, 11))
        first = engine(images)
        engine(images_for(name, (8, 8, 8), seed=1))
        assert torch.equal(first, engine(images))

    def test_cases_of_a_batch_do_not_mix(self, choice, name) -> None:
        engine, images = engine_of(choice, name), images_for(name, (13, 9, 11), batch=2)
        alone = torch.cat([engine(case[None]) for case in images])
        assert_agrees(engine(images), alone, choice, name)

    def test_what_is_returned_stays(self, choice, name) -> None:
        engine = engine_of(choice, name)
        first = engine(images_for(name, (13, 9, 11)))
        before = first.clone()
        engine(images_for(name, (13, 9, 11), seed=1))
        assert torch.equal(first, before)
        first += 1

    def test_other_images_are_refused(self, choice, name) -> None:
        engine, good = engine_of(choice, name), images_for(name, (8, 8, 8))
        for images in (good[:, :1], good[0], good[..., None], good[..., :0]):
            with pytest.raises(ShapeError):
                engine(images)

    def test_the_network_is_left_as_it_was(self, choice, name) -> None:
        engine_of(choice, name)(images_for(name, (8, 8, 8)))
        network, again = build(name), build.__wrapped__(name)
        assert not network.training
        assert all(parameter.requires_grad for parameter in network.parameters())
        for key, value in network.state_dict().items():
            assert torch.equal(value, again.state_dict()[key])
