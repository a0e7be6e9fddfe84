"""Dropout at prediction: draws of one function over all windows, from a generator."""

import dataclasses
from pathlib import Path

import pytest
import torch

from medseg.data.regions import RegionSettings
from medseg.inference.ensemble import members_of
from medseg.inference.model import Model, ModelSpec, build_network, load_model
from medseg.inference.posterior import sample_probabilities
from medseg.inference.settings import PredictSettings
from medseg.networks.dropout import ChannelDropout
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.variational.sampling import sampled_weights

IMAGE = torch.randn(2, 9, 8, 10, generator=torch.Generator().manual_seed(0))
SPEC = ModelSpec(
    architecture=UNetSettings(in_channels=2, out_channels=1, widths=(6, 8), bias=True, dropout=0.3),
    channels=("flair", "t1c"),
    regions=RegionSettings(names=("core",)),
    region_definition={"core": (1,)},
    preprocess=PreprocessSettings(),
    method="mc_dropout",
)


def draw(model: Model, **changes: object) -> list[torch.Tensor]:
    settings = PredictSettings(**{"samples": 4, **changes})  # type: ignore[arg-type]
    return list(sample_probabilities(model.network, IMAGE, head=model.head, settings=settings))


def test_samples_differ_by_the_generator_alone(tmp_path: Path) -> None:
    model = Model(build_network(SPEC).eval(), SPEC)
    first, again, other = draw(model), draw(model), draw(model, seed=1)
    assert len(first) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    for fast, exact in zip(first, draw(model, engine="eager"), strict=True):
        torch.testing.assert_close(fast, exact, atol=1e-5, rtol=0)
    model.save(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(load_model(tmp_path)), strict=True))
    assert "dropout 3D" in (tmp_path / "card.md").read_text()


def test_a_swag_posterior_comes_back_from_its_folder(tmp_path: Path) -> None:
    plain = dataclasses.replace(SPEC.architecture, dropout=0.0)
    spec = dataclasses.replace(SPEC, architecture=plain, swag_rank=3, members=2)
    model, generator = Model(build_network(spec).eval(), spec), torch.Generator().manual_seed(1)
    for member in members_of(model.network):
        weights = dict(member.network.named_parameters())
        for _ in range(5):
            noise = {k: 0.1 * torch.randn(v.shape, generator=generator) for k, v in weights.items()}
            member.moments.add({k: v + noise[k] for k, v in weights.items()})
    model.save(tmp_path)
    first, again = draw(model), draw(load_model(tmp_path))
    assert len(first) == 4
    assert not torch.equal(first[0], first[2])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_without_a_held_draw_the_network_is_the_plain_one() -> None:
    plain = dataclasses.replace(SPEC.architecture, dropout=0.0)
    one, other = build_network(SPEC), build_network(dataclasses.replace(SPEC, architecture=plain))
    assert one.state_dict().keys() == other.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(one.eval()(IMAGE[None]), other.eval()(IMAGE[None]))


def test_a_held_draw_is_the_same_for_every_image_and_keeps_the_mean() -> None:
    layer, ones = ChannelDropout(4000, 0.25).eval(), torch.ones(1, 4000, 2, 2, 2)
    with sampled_weights(layer, torch.Generator().manual_seed(0)):
        small, large = layer(ones), layer(torch.ones(3, 4000, 5, 5, 5))
    assert torch.equal(small[0, :, 0, 0, 0], large[2, :, 4, 4, 4])
    torch.testing.assert_close(small.unique(), torch.tensor([0.0, 4 / 3]))
    # Four standard errors of the share kept.
    assert float(small.mean()) == pytest.approx(1.0, abs=4 * (0.25 / 0.75 / 4000) ** 0.5)
    assert layer.held_weight is None
    trained = layer.train()(torch.ones(2, 4000, 1, 1, 1))
    assert not torch.equal(trained[0], trained[1])
