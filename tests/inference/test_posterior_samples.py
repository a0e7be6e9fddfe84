import numpy as np
import pytest
import torch
from torch import nn

from medseg.data.regions import RegionSettings, decode
from medseg.inference.posterior import (
    Head,
    VolumeInterval,
    predict_prepared,
    sample_probabilities,
)
from medseg.inference.settings import PredictSettings
from medseg.networks.unet import UNet, UNetSettings
from medseg.seeding import seeded_torch
from medseg.variational.convert import to_variational, variational_layers
from medseg.variational.settings import VariationalSettings

IMAGE = torch.randn(2, 9, 8, 7, generator=torch.Generator().manual_seed(3))
REGIONS = Head(RegionSettings(names=("core", "whole")))
CLASSES = Head(RegionSettings(mode="classes", names=("core",)))


def network(dims: int = 3) -> nn.Module:
    with seeded_torch(0, "test network"):
        return UNet(
            UNetSettings(dims=dims, in_channels=2, out_channels=2, widths=(4, 6))  # type: ignore[arg-type]
        )


def variational(dims: int = 3) -> nn.Module:
    settings = VariationalSettings(relative_std=0.3, max_relative_std=None)
    return to_variational(network(dims), settings=settings)


def draw(net: nn.Module, head: Head = REGIONS, **changes: object) -> list[torch.Tensor]:
    settings = PredictSettings(**{"samples": 4, **changes})  # type: ignore[arg-type]
    return list(sample_probabilities(net, IMAGE, head=head, settings=settings))


def test_deterministic_network_is_asked_once() -> None:
    samples = draw(network())
    assert len(samples) == 1
    result = predict_prepared(network(), IMAGE, head=REGIONS)
    assert result.statistics.samples == 1
    assert result.statistics.std.max() == 0
    assert result.statistics.mutual_information_nats.max() < 1e-6
    torch.testing.assert_close(result.statistics.probability, samples[0])


def test_same_seed_gives_the_same_samples_and_another_seed_others() -> None:
    first, again, other = draw(variational()), draw(variational()), draw(variational(), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("dims", [2, 3])
def test_fast_samples_are_those_of_the_network_itself(dims: int) -> None:
    head = Head(REGIONS.regions, dims=dims)  # type: ignore[arg-type]
    fast = draw(variational(dims), head)
    exact = draw(variational(dims), head, engine="eager")
    for one, other in zip(fast, exact, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_sample_does_not_depend_on_how_many_there_are() -> None:
    few, many = draw(variational(), samples=2), draw(variational(), samples=5)
    assert torch.equal(few[1], many[1])


def test_a_sample_is_one_function_over_all_windows() -> None:
    # A network of single voxels, so that windows differ from the whole by their weights alone.
    flat = to_variational(
        nn.Conv3d(2, 2, 3, padding=1),
        settings=VariationalSettings(relative_std=1.0, max_relative_std=None),
    )
    with torch.no_grad():
        for layer in variational_layers(flat).values():
            edge = torch.ones(3, 3, 3, dtype=torch.bool)
            edge[1, 1, 1] = False
            layer.posterior.mean[:, :, edge] = 0
            layer.posterior.log_std[:, :, edge] = -30
    whole, cut = draw(flat), draw(flat, window=(5, 4, 4))
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_global_generator_weights_and_mode_are_left_alone() -> None:
    net = variational().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    samples = sample_probabilities(net, IMAGE, head=REGIONS, settings=PredictSettings(samples=3))
    next(samples)
    assert net.training
    assert all(layer.held_weight is None for layer in variational_layers(net).values())
    list(samples)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_weights_are_let_go_when_the_network_fails() -> None:
    net = variational()
    wrong = torch.rand(5, 8, 8, 8)
    with pytest.raises(ValueError, match="5"):
        list(sample_probabilities(net, wrong, head=REGIONS, settings=PredictSettings()))
    assert all(layer.held_weight is None for layer in variational_layers(net).values())


@pytest.mark.parametrize("dims", [2, 3])
def test_statistics_are_those_of_the_samples(dims: int) -> None:
    head = Head(REGIONS.regions, dims=dims)
    net = variational(dims)
    samples = torch.stack(draw(net, head))
    result = predict_prepared(net, IMAGE, head=head, settings=PredictSettings(samples=4))
    torch.testing.assert_close(result.statistics.probability, samples.mean(0))
    torch.testing.assert_close(
        result.statistics.std, samples.std(0, correction=0), atol=1e-5, rtol=1e-3
    )
    assert torch.equal(result.mask, samples.mean(0) > 0.5)
    counts = (samples > 0.5).sum(dim=(2, 3, 4))
    assert torch.equal(result.sample_voxels, counts)
    interval = result.volume("whole", voxel_volume_mm3=500.0)
    assert interval.low_ml <= interval.median_ml <= interval.high_ml
    assert interval.median_ml == pytest.approx(counts[:, 1].double().quantile(0.5).item() / 2)


@pytest.mark.parametrize("head", [REGIONS, CLASSES], ids=["regions", "classes"])
def test_what_lies_outside_counts_in_no_mask_and_no_volume(head: Head) -> None:
    net, chosen = variational(), PredictSettings(samples=4)
    inside = torch.rand(IMAGE.shape[1:], generator=torch.Generator().manual_seed(0)) < 0.5
    whole = predict_prepared(net, IMAGE, head=head, settings=chosen)
    result = predict_prepared(net, IMAGE, head=head, settings=chosen, inside=inside)
    assert torch.equal(result.mask, whole.mask & inside)
    assert bool((whole.mask & ~inside).any())
    for number, sample in enumerate(draw(net, head)):
        found = decode(sample, settings=head.regions)
        counts = [int((found[name] & inside).sum()) for name in head.regions.names]
        assert result.sample_voxels[number].tolist() == counts
    assert torch.equal(result.statistics.probability, whole.statistics.probability)


def test_background_of_classes_is_used_and_left_out_of_the_result() -> None:
    result = predict_prepared(network(), IMAGE, head=CLASSES)
    (probabilities,) = draw(network(), CLASSES)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(IMAGE.shape[1:]))
    assert result.names == ("core",)
    torch.testing.assert_close(result.statistics.probability, probabilities[1:])
    assert torch.equal(result.mask[0], probabilities[1] > probabilities[0])


def test_interval_of_one_sample_is_that_sample() -> None:
    assert VolumeInterval.of(np.array([3.0])) == VolumeInterval(3.0, 3.0, 3.0)
    assert VolumeInterval.of(np.arange(101.0)) == VolumeInterval(5.0, 50.0, 95.0)
