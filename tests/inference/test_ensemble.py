"""Several networks as one: what a sample of them is, and that a folder gives them back."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from medseg.data.regions import RegionSettings
from medseg.inference.ensemble import Ensemble, joined, members_of
from medseg.inference.model import Model, ModelSpec, build_network, load_model
from medseg.inference.plan import predict_image
from medseg.inference.posterior import predict_prepared, sample_count, sample_probabilities
from medseg.inference.settings import PredictSettings
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.variational.settings import VariationalSettings

IMAGE = torch.randn(2, 9, 8, 10, generator=torch.Generator().manual_seed(0))
SPEC = ModelSpec(
    architecture=UNetSettings(in_channels=2, out_channels=2, widths=(3, 5), bias=True),
    channels=("flair", "t1c"),
    regions=RegionSettings(names=("core", "whole")),
    region_definition={"core": (1,), "whole": (1, 2)},
    preprocess=PreprocessSettings(),
    method="pr",
    members=3,
)
RANDOM = dataclasses.replace(SPEC, variational=VariationalSettings(relative_std=0.3))


def model(spec: ModelSpec) -> Model:
    network, generator = build_network(spec), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return Model(network.eval(), spec)


def draw(network: nn.Module, **changes: object) -> list[torch.Tensor]:
    settings = PredictSettings(**{"samples": 4, **changes})  # type: ignore[arg-type]
    return list(sample_probabilities(network, IMAGE, head=model(SPEC).head, settings=settings))


def test_ensembles_join_to_one_of_all_their_members() -> None:
    several, one = (
        members_of(model(SPEC).network),
        build_network(dataclasses.replace(SPEC, members=1)),
    )
    assert members_of(joined([joined(several), one])) == (*several, one)
    assert joined([joined([one])]) is one


def test_a_deterministic_ensemble_is_worth_its_members() -> None:
    network = model(SPEC).network
    samples = draw(network)
    assert sample_count(network, PredictSettings(samples=10)) == len(samples) == 3
    for sample, member in zip(samples, members_of(network), strict=True):
        assert torch.equal(sample, draw(member)[0])
    assert not torch.equal(samples[0], samples[1])
    found = predict_prepared(network, IMAGE, head=model(SPEC).head)
    torch.testing.assert_close(found.statistics.probability, torch.stack(samples).mean(0))
    assert found.statistics.samples == 3
    assert found.statistics.std.max() > 0


@pytest.mark.parametrize("posterior", ["full", "focused"])
def test_samples_of_random_members_go_round(posterior: str) -> None:
    network = model(RANDOM).network
    mixed = draw(network, posterior=posterior)
    alone = [draw(member, posterior=posterior) for member in members_of(network)]
    for k, sample in enumerate(mixed):
        torch.testing.assert_close(sample, alone[k % 3][k], rtol=0, atol=1e-6)
    assert len(mixed) == 4


def test_no_member_is_left_out_however_few_samples_are_asked_for() -> None:
    assert len(draw(model(RANDOM).network, samples=1)) == 3


@pytest.mark.parametrize("spec", [SPEC, RANDOM])
def test_a_folder_gives_the_members_back(tmp_path: Path, spec: ModelSpec) -> None:
    saved = model(spec)
    saved.save(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded.network, Ensemble)
    assert loaded.spec == saved.spec
    for one, other in zip(draw(saved.network), draw(loaded.network), strict=True):
        assert torch.equal(one, other)
    assert "3 members" in (tmp_path / "card.md").read_text()


def test_an_engine_for_one_network_leaves_an_ensemble_to_torch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    several = model(SPEC)
    wanted = draw(several.network, precision="float32")
    for engine in ("auto", "openvino"):
        with caplog.at_level(logging.WARNING):
            settings = PredictSettings(engine=engine, precision="float32")  # type: ignore[arg-type]
            found = list(predict_image(several, IMAGE, settings=settings))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        assert ("made for one network" in caplog.text) == (engine == "openvino")
        caplog.clear()
