"""The law of every `SegmentationNetwork`: shapes, gradients, names, determinism."""

from functools import partial

import pytest
import torch

from medseg.networks.network import SegmentationNetwork
from medseg.networks.presets import unet_2d, unet_3d, unet_short_3d
from medseg.networks.unet import UNet
from medseg.seeding import seeded_torch

#: Name, preset, and a grid that leaves the coarsest level more than one voxel.
NETWORKS = {
    "unet_short_3d": (unet_short_3d, (16, 16, 24)),
    "unet_3d": (unet_3d, (32, 32, 64)),
    "unet_2d": (unet_2d, (32, 64)),
}
every_network = pytest.mark.parametrize("name", sorted(NETWORKS))


def build(name: str, *, seed: int = 0, in_channels: int = 2, out_channels: int = 3) -> UNet:
    with seeded_torch(seed, "contract"):
        return UNet(NETWORKS[name][0](in_channels, out_channels))


@every_network
def test_fulfils_the_protocol(name):
    assert isinstance(build(name), SegmentationNetwork)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("unet_short_3d", [(1, 1, 1), (7, 9, 13), (16, 8, 8), (17, 8, 5)]),
        ("unet_3d", [(5, 33, 7)]),
        ("unet_2d", [(1, 1), (31, 33), (16, 48)]),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_logits_lie_on_the_grid_of_the_image(name, sizes, batch):
    network = build(name)
    for size in sizes:
        with torch.no_grad():
            logits = network(torch.randn(batch, 2, *size))
        assert logits.shape == (batch, 3, *size)
        assert torch.isfinite(logits).all()


@every_network
def test_a_gradient_reaches_every_parameter(name):
    network = build(name)
    with seeded_torch(1, "contract"):
        network(torch.randn(2, 2, *NETWORKS[name][1])).square().mean().backward()
    without = [
        key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert without == []


@every_network
def test_a_gradient_reaches_every_channel_of_the_image(name):
    image = torch.randn(1, 2, *NETWORKS[name][1], requires_grad=True)
    build(name)(image).square().mean().backward()
    assert image.grad is not None
    assert (image.grad.abs().flatten(2).sum(2) > 0).all()


@every_network
def test_cases_of_a_batch_do_not_mix(name):
    network = build(name).eval()
    image = torch.randn(2, 2, *NETWORKS[name][1])
    with torch.no_grad():
        together = network(image)
        alone = torch.cat([network(case[None]) for case in image])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


@every_network
def test_block_names_cover_real_and_different_parameters(name):
    network = build(name)
    names = [key for key, _ in network.named_parameters()]

    def covered(blocks: tuple[str, ...]) -> list[set[str]]:
        return [{key for key in names if key.startswith(f"{block}.")} for block in blocks]

    inputs, outputs = covered(network.input_block_names()), covered(network.output_block_names())
    assert all(inputs)
    assert all(outputs)
    ends = set().union(*inputs, *outputs)
    assert not set().union(*inputs) & set().union(*outputs)
    assert 0 < len(ends) < len(names)
    # The first and the last parameter of the network are among them.
    assert {names[0], names[-1]} <= ends


@every_network
def test_the_same_seed_makes_the_same_network_and_another_one_another(name):
    build_one = partial(build, name)
    first, again, other = build_one(seed=0), build_one(seed=0), build_one(seed=1)
    state = first.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert any(not torch.equal(value, state[key]) for key, value in other.state_dict().items())


@every_network
def test_weights_are_dense_so_that_they_can_be_saved(name):
    assert all(value.is_contiguous() for value in build(name).state_dict().values())
