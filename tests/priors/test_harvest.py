from collections.abc import Callable

import pytest
import torch
from torch import nn

from medseg.errors import PriorError
from medseg.priors.harvest import DEPTH_GROUPS, HarvestSettings, harvest, layer_kernels

LAYERS = ("down.0", "down.1", "up.first", "up.second")
COUNTS = {"down.0": 16, "down.1": 64, "up.first": 64, "up.second": 32}
Make = Callable[..., nn.Module]


@pytest.mark.parametrize("dims", [2, 3])
def test_takes_every_slice_of_kernel_size_three_and_nothing_else(
    make_network: Make, dims: int
) -> None:
    networks = [make_network(dims=dims, seed=s) for s in range(3)]
    kernels = harvest(networks)
    assert kernels.layer_names == LAYERS
    assert kernels.kernel_shape == (3,) * dims
    assert kernels.networks == (0, 1, 2)
    assert len(kernels) == 3 * sum(COUNTS.values())
    assert {name: len(kernels.of_layer(name)) for name in LAYERS} == {
        name: 3 * n for name, n in COUNTS.items()
    }


def test_every_slice_is_found_again_in_its_network(make_network: Make) -> None:
    networks = [make_network(seed=s) for s in range(2)]
    kernels = harvest(networks, settings=HarvestSettings(prune_quantile=0.3))
    modules = [dict(network.named_modules()) for network in networks]
    for i in range(0, len(kernels), 7):
        module = modules[int(kernels.network[i])][LAYERS[int(kernels.layer[i])]]
        output, channel = kernels.channels[i].tolist()
        assert torch.equal(kernels.kernels[i], module.weight[output, channel].detach())  # type: ignore[index]


def test_layers_fall_into_thirds_by_depth(make_network: Make) -> None:
    layers = harvest([make_network()]).layers
    assert [info.depth for info in layers] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [info.group for info in layers] == [
        DEPTH_GROUPS[0],
        DEPTH_GROUPS[0],
        DEPTH_GROUPS[1],
        DEPTH_GROUPS[2],
    ]


@pytest.mark.parametrize("quantile", [0.0, 0.25, 0.5, 0.99])
def test_pruning_drops_the_smallest_of_each_layer(make_network: Make, quantile: float) -> None:
    network = make_network()
    everything = harvest([network])
    kept = harvest([network], settings=HarvestSettings(prune_quantile=quantile))
    for name, count in COUNTS.items():
        norms = everything.of_layer(name).flatten(1).norm(dim=1).sort().values
        left = kept.of_layer(name).flatten(1).norm(dim=1)
        assert len(left) == max(count - int(quantile * count), 1)
        torch.testing.assert_close(left.sort().values, norms[-len(left) :])


def test_pruning_everything_is_refused_by_the_settings() -> None:
    with pytest.raises(ValueError, match="less than 1"):
        HarvestSettings(prune_quantile=1.0)


def test_harvest_does_not_share_memory_with_the_network(make_network: Make) -> None:
    network = make_network()
    kernels = harvest([network])
    before = kernels.kernels.clone()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(kernels.kernels, before)


def test_layer_kernels_are_in_the_order_of_the_weights(make_network: Make) -> None:
    network = make_network()
    weight = network.get_submodule("down.1").weight
    assert torch.equal(layer_kernels(network)["down.1"].reshape(weight.shape), weight)  # type: ignore[arg-type]


def test_networks_of_two_architectures_are_refused(make_network: Make) -> None:
    with pytest.raises(PriorError, match=r"'down.0' has weights of shape \(8, 2, 3, 3, 3\)"):
        harvest([make_network(), make_network(width=6)])


def test_no_network_or_no_kernel_is_refused() -> None:
    with pytest.raises(PriorError, match="there are 0 networks"):
        harvest([])
    with pytest.raises(PriorError, match="1 networks with none"):
        harvest([nn.Conv3d(1, 1, 1)])


def test_two_dimensions_in_one_network_are_refused() -> None:
    with pytest.raises(PriorError, match="mixes 2D and 3D"):
        harvest([nn.ModuleList([nn.Conv2d(1, 2, 3), nn.Conv3d(1, 2, 3)])])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(make_network: Make, value: float) -> None:
    bad = make_network(seed=1)
    with torch.no_grad():
        bad.get_submodule("up.first").weight[2, 3, 0, 0, 0] = value  # type: ignore[index]
    with pytest.raises(PriorError, match=r"1 of 352 are not.*'up.first' of network 1"):
        harvest([make_network(), bad])
