"""The torch engine: emulated precisions, copies, and GPUs."""

import dataclasses

import pytest
import torch

from medseg.errors import ConfigError
from medseg.inference.engines.engine import EngineChoice, make_engine
from medseg.inference.engines.memory import EngineMemoryError
from medseg.networks.unet import UNet


@pytest.mark.parametrize("upsampling", ["nearest", "linear", "transposed"])
@pytest.mark.parametrize("skip", ["add", "concat"])
def test_bf16_is_close_and_reduces_the_products(network: UNet, upsampling, skip) -> None:
    other = dataclasses.replace(network.settings, upsampling=upsampling, skip=skip, bias=True)
    network, images = UNet(other).eval(), torch.randn(1, 2, 6, 5, 7)
    with torch.no_grad():
        wanted = network(images)
    found = make_engine(EngineChoice(precision="bf16", device="cpu"), network)(images)
    error = float((found - wanted).abs().mean() / wanted.std())
    assert found.dtype == torch.float32
    assert 1e-4 < error < 0.05


def test_float16_on_the_cpu_is_refused(network: UNet) -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        make_engine(EngineChoice(precision="float16", device="cpu"), network)


def test_weights_are_a_copy_but_those_of_eager(network: UNet) -> None:
    images = torch.randn(1, 2, 6, 5, 7)
    eager, fast = (
        make_engine(EngineChoice(name=name, device="cpu"), network) for name in ("eager", "torch")
    )
    before = fast(images)
    with torch.no_grad():
        network.head.weight *= 2
    assert torch.equal(fast(images), before)
    torch.testing.assert_close(eager(images), 2 * before, rtol=1e-3, atol=1e-4)


def test_eager_leaves_the_mode_of_the_network(network: UNet) -> None:
    engine = make_engine(EngineChoice(name="eager"), network.train())
    engine(torch.randn(1, 2, 4, 4, 4))
    assert network.training


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
class TestOnAGpu:
    @pytest.mark.parametrize(
        ("precision", "tolerance"), [("float32", 1e-2), ("bf16", 0.05), ("float16", 0.01)]
    )
    @pytest.mark.parametrize("compiled", [False, True])
    def test_logits_are_those_of_the_cpu(self, network, precision, tolerance, compiled) -> None:
        choice = EngineChoice(precision=precision, device="cuda", compiled=compiled)
        engine = make_engine(choice, network)
        for size in ((16, 16, 16), (13, 9, 11)):
            images = torch.randn(2, 2, *size)
            with torch.no_grad():
                wanted = network(images)
            found = engine(images)
            assert found.device == images.device
            assert float((found - wanted).abs().mean() / wanted.std()) < tolerance

    def test_memory_is_free_again_after_too_large_a_window(self, network) -> None:
        engine = make_engine(EngineChoice(device="cuda"), network)
        with pytest.raises(EngineMemoryError):
            engine(torch.zeros(1, 2, 2048, 1536, 1536))
        assert engine(torch.zeros(1, 2, 8, 8, 8)).isfinite().all()
