import copy

import pytest
import torch
from torch import nn

from medseg.errors import ModelError
from medseg.networks.conv_factory import TorchConvFactory
from medseg.networks.unet import UNet, UNetSettings
from medseg.variational.conv import VariationalConv
from medseg.variational.convert import (
    VariationalConvFactory,
    to_deterministic,
    to_variational,
    variational_layers,
)
from medseg.variational.settings import VariationalSettings

SETTINGS = VariationalSettings()


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def small_net(dims: int) -> nn.Module:
    factory = TorchConvFactory(dims)
    norm = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
    return nn.Sequential(
        factory(2, 4, kernel_size=3, bias=True),
        norm(4),
        nn.Sequential(nn.ReLU(), factory(4, 4, kernel_size=3, stride=2, bias=False)),
        factory(4, 1, kernel_size=1, bias=True),
    )


def small_unet(dims: int) -> nn.Module:
    return UNet(UNetSettings(dims=dims, in_channels=2, out_channels=2, widths=(4, 4, 8)))


NETWORKS = [
    pytest.param(make, dims, id=f"{make.__name__}-{dims}d")
    for make in (small_net, small_unet)
    for dims in (2, 3)
]


def image_of(dims: int) -> torch.Tensor:
    return torch.randn(1, 2, *(5, 6, 7)[:dims], generator=torch.Generator().manual_seed(0))


def names_of_3_kernels(network: nn.Module) -> list[str]:
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d) and max(module.kernel_size) == 3
    ]


@pytest.mark.parametrize(("make", "dims"), NETWORKS)
class TestBothWays:
    def test_evaluation_is_unchanged_to_the_last_bit(self, make, dims):
        network = make(dims).eval()
        twin = to_variational(network, settings=SETTINGS)
        with torch.no_grad():
            assert torch.equal(twin(image_of(dims)), network(image_of(dims)))
            assert not torch.equal(twin.train()(image_of(dims)), network(image_of(dims)))

    def test_round_trip_is_identity(self, make, dims):
        network = make(dims)
        back = to_deterministic(to_variational(network, settings=SETTINGS))
        assert repr(back) == repr(network)
        assert list(back.state_dict()) == list(network.state_dict())
        for name, value in network.state_dict().items():
            assert torch.equal(back.state_dict()[name], value)

    def test_the_3_kernels_and_only_they_are_variational(self, make, dims):
        network = make(dims)
        names = names_of_3_kernels(network)
        twin = to_variational(network, settings=SETTINGS)
        assert list(variational_layers(twin)) == names
        assert names_of_3_kernels(twin) == []
        assert len(names) >= 2

    def test_the_original_is_untouched_and_shares_nothing(self, make, dims):
        network = make(dims)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        twin = to_variational(network, settings=SETTINGS)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
        assert variational_layers(network) == {}
        for name, value in network.state_dict().items():
            assert torch.equal(before[name], value)

    def test_state_dict_round_trip_and_deepcopy(self, make, dims):
        saved = to_variational(make(dims), settings=SETTINGS)
        with torch.no_grad():
            for layer in variational_layers(saved).values():
                layer.posterior.log_std.sub_(0.7)
        fresh = to_variational(make(dims), settings=SETTINGS)
        fresh.load_state_dict(saved.state_dict())
        for other in (fresh, copy.deepcopy(saved)):
            for name, layer in variational_layers(saved).items():
                twin = variational_layers(other)[name]
                assert torch.equal(layer.posterior.std, twin.posterior.std)
                assert torch.equal(layer.posterior.mean, twin.posterior.mean)
                assert layer.posterior.mean is not twin.posterior.mean
            with torch.no_grad():
                assert torch.equal(other.eval()(image_of(dims)), saved.eval()(image_of(dims)))

    def test_gradients_reach_every_parameter(self, make, dims):
        twin = to_variational(make(dims), settings=SETTINGS).train()
        weight = torch.randn(twin(image_of(dims)).shape)
        (twin(image_of(dims)) * weight).sum().backward()
        for name, parameter in twin.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        for layer in variational_layers(twin).values():
            assert layer.posterior.log_std.grad.abs().max() > 0


def test_a_shared_layer_stays_shared():
    conv = nn.Conv3d(2, 2, 3, padding=1)
    twin = to_variational(nn.Sequential(conv, nn.ReLU(), conv), settings=SETTINGS)
    assert twin[0] is twin[2]
    assert isinstance(to_deterministic(twin)[2], nn.Conv3d)


def test_a_single_convolution_is_a_network():
    assert isinstance(to_variational(nn.Conv2d(1, 1, 3), settings=SETTINGS), VariationalConv)


@pytest.mark.parametrize("network", [nn.Conv3d(1, 1, 1), nn.Conv2d(1, 1, (1, 3)), nn.ReLU()])
def test_refuses_a_network_without_3_kernels(network):
    with pytest.raises(ModelError, match=type(network).__name__):
        to_variational(network, settings=SETTINGS)


def test_converting_twice_is_refused():
    twin = to_variational(small_net(2), settings=SETTINGS)
    with pytest.raises(ModelError, match="kernel size 3"):
        to_variational(twin, settings=SETTINGS)


def test_factory_makes_variational_3_kernels_only():
    factory = VariationalConvFactory(3, settings=SETTINGS)
    conv = factory(2, 4, kernel_size=3, stride=2, bias=False)
    assert isinstance(conv, VariationalConv)
    assert conv(torch.randn(1, 2, 6, 6, 6)).shape == (1, 4, 3, 3, 3)
    assert isinstance(factory(2, 4, kernel_size=1, bias=True), nn.Conv3d)


def test_factory_builds_a_whole_unet():
    settings = UNetSettings(dims=2, in_channels=2, out_channels=1, widths=(4, 8))
    network = UNet(settings, VariationalConvFactory(2, settings=SETTINGS))
    plain = UNet(settings)
    assert list(variational_layers(network)) == names_of_3_kernels(plain)
    assert network(image_of(2)).shape == (1, 1, 5, 6)
