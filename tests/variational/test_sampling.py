import pytest
import torch
from torch import nn

from medseg.variational.convert import to_variational, variational_layers
from medseg.variational.sampling import sampled_weights, use_generator
from medseg.variational.settings import VariationalSettings

IMAGE = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class StopHereError(Exception):
    pass


def network_of(estimator="local"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 3, padding=1)
        )
    return to_variational(plain, settings=VariationalSettings(estimator=estimator)).eval()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def state(network):
    return [(layer.held_weight, layer.generator) for layer in variational_layers(network).values()]


@torch.no_grad()
def test_one_function_inside_and_the_mean_after():
    network = network_of()
    mean = network(IMAGE)
    with sampled_weights(network, generator()):
        sample = network(IMAGE)
        assert torch.equal(network(IMAGE), sample)
        torch.testing.assert_close(network(IMAGE[1:]), sample[1:])
        assert torch.equal(network.train()(IMAGE), sample)
    assert not torch.equal(sample, mean)
    assert torch.equal(network.eval()(IMAGE), mean)


@torch.no_grad()
def test_the_generator_decides_the_sample_and_nothing_else_does():
    network, before = network_of(), torch.random.get_rng_state()
    outputs = []
    for seed in (1, 1, 2):
        with sampled_weights(network, generator(seed)):
            outputs.append(network(IMAGE))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("block", [sampled_weights, use_generator])
def test_an_error_restores(block):
    network = network_of()
    inside = []

    def fail():
        inside.extend(state(network))
        raise StopHereError

    with pytest.raises(StopHereError), block(network, generator()):
        fail()
    assert len(inside) == 2
    assert (None, None) not in inside
    assert state(network) == [(None, None)] * 2


def test_an_error_while_drawing_restores():
    network = network_of()
    last = list(variational_layers(network).values())[-1]
    last.posterior.rsample = lambda generator: (_ for _ in ()).throw(StopHereError)
    with pytest.raises(StopHereError), sampled_weights(network, generator()):
        pass
    assert state(network) == [(None, None)] * 2


@torch.no_grad()
def test_blocks_nest():
    network = network_of()
    with sampled_weights(network, generator(1)):
        outer = network(IMAGE)
        with sampled_weights(network, generator(2)):
            assert not torch.equal(network(IMAGE), outer)
        assert torch.equal(network(IMAGE), outer)


def test_held_samples_are_no_parameters_and_carry_gradients():
    network = network_of()
    names = list(network.state_dict())
    with sampled_weights(network, generator()):
        assert list(network.state_dict()) == names
        network(IMAGE).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_use_generator_makes_training_noise_repeatable(estimator):
    network, before = network_of(estimator).train(), torch.random.get_rng_state()
    outputs = []
    for _ in range(2):
        with use_generator(network, generator(3)):
            outputs.append([network(IMAGE), network(IMAGE)])
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])
    assert not torch.equal(outputs[0][0], outputs[0][1])
    assert torch.equal(before, torch.random.get_rng_state())


@torch.no_grad()
def test_a_deterministic_network_is_left_alone():
    plain = nn.Conv2d(1, 1, 3)
    with sampled_weights(plain, generator()), use_generator(plain, generator()):
        assert torch.equal(plain(IMAGE), plain(IMAGE))
