import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from medseg.errors import ModelError, PriorError
from medseg.priors.harvest import harvest
from medseg.priors.kernel_set import KernelSet
from medseg.seeding import torch_generator


@pytest.fixture(scope="module")
def kernels(make_network: Callable[..., nn.Module]) -> KernelSet:
    return harvest([make_network(seed=s) for s in range(3)])


def test_layers_and_networks_partition_the_set(kernels: KernelSet) -> None:
    by_layer = torch.cat([kernels.of_layer(name) for name in kernels.layer_names])
    by_group = torch.cat([kernels.of_group(name) for name in kernels.group_names])
    assert len(by_layer) == len(by_group) == len(kernels)
    parts = [kernels.of_networks([number]) for number in kernels.networks]
    assert torch.equal(torch.cat([part.kernels for part in parts]), kernels.kernels)
    assert parts[1].networks == (1,)


def test_scale_is_the_root_mean_square(kernels: KernelSet) -> None:
    rms = {n: float(kernels.of_layer(n).square().mean().sqrt()) for n in kernels.layer_names}
    for name, value in rms.items():
        assert kernels.layer_scale(name) == pytest.approx(value, rel=1e-5)
    assert min(rms.values()) < kernels.group_scale("encoder") < max(rms.values())


def test_resampled_kernels_are_kernels_of_that_layer(kernels: KernelSet) -> None:
    drawn = kernels.resample("up.first", 50, generator=torch_generator(0))
    known = {tuple(kernel.flatten().tolist()) for kernel in kernels.of_layer("up.first")}
    assert drawn.shape == (50, 3, 3, 3)
    assert all(tuple(kernel.flatten().tolist()) in known for kernel in drawn)
    assert torch.equal(drawn, kernels.resample("up.first", 50, generator=torch_generator(0)))
    assert not torch.equal(drawn, kernels.resample("up.first", 50, generator=torch_generator(1)))


def test_save_then_load_changes_nothing(kernels: KernelSet, tmp_path: Path) -> None:
    kernels.save(tmp_path / "set")
    loaded = KernelSet.load(tmp_path / "set")
    assert torch.equal(loaded.kernels, kernels.kernels)
    assert torch.equal(loaded.channels, kernels.channels)
    assert loaded.layers == kernels.layers
    assert loaded.hash == kernels.hash
    assert loaded.of_networks([0, 1]).hash != kernels.hash
    stored = json.loads((tmp_path / "set" / "kernels.json").read_text())
    assert stored["group_scale"].keys() == set(kernels.group_names)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"kernels.safetensors"):
        KernelSet.load(tmp_path / "nowhere")


def test_unknown_layer_and_group_are_refused(kernels: KernelSet) -> None:
    with pytest.raises(PriorError, match=r"down.0, down.1, .*but it is 'middle'"):
        kernels.of_layer("middle")
    with pytest.raises(PriorError, match=r"encoder, bottleneck, decoder, but it is 'middle'"):
        kernels.of_group("middle")


def test_layer_without_kernels_has_no_scale_and_nothing_to_draw(kernels: KernelSet) -> None:
    empty = kernels.select(kernels.layer != 0)
    with pytest.raises(PriorError, match="0"):
        empty.layer_scale("down.0")
    with pytest.raises(PriorError, match=r"'down.0' must have a kernel"):
        empty.resample("down.0", 3, generator=torch_generator(0))
