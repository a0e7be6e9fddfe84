import dataclasses
import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from medseg.data.regions import RegionSettings
from medseg.errors import ModelError
from medseg.inference.model import Model, ModelSpec, build_network, load_model
from medseg.inference.posterior import sample_probabilities
from medseg.inference.settings import PredictSettings
from medseg.io.atomic import file_sha256
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.variational.convert import variational_layers
from medseg.variational.settings import VariationalSettings

IMAGE = torch.randn(2, 7, 8, 9, generator=torch.Generator().manual_seed(0))


def spec(*, variational: bool = False, dims: int = 3) -> ModelSpec:
    return ModelSpec(
        architecture=UNetSettings(
            dims=dims, in_channels=2, out_channels=2, widths=(3, 5), bias=True
        ),  # type: ignore[arg-type]
        channels=("flair", "t1c"),
        regions=RegionSettings(names=("core", "whole")),
        region_definition={"core": (1, 3, 4), "whole": (1, 2, 3, 4)},
        preprocess=PreprocessSettings(spacing_mm=(3.0, 3.0, 3.5), normalise="minmax"),
        variational=VariationalSettings(relative_std=0.2) if variational else None,
        method="dwp" if variational else "ri",
        temperature=1.5,
        training={"seed": 7, "steps": 12, "metrics": {"dsc": 0.5}, "prior_hash": None},
    )


def model(*, variational: bool = False, dims: int = 3) -> Model:
    chosen = spec(variational=variational, dims=dims)
    network = build_network(chosen)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return Model(network.eval(), chosen)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model(variational=True).save(tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, change) -> None:
    path = folder / "model.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def replace_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    digest = file_sha256(folder / "model.safetensors")
    edit(folder, lambda description: description.update(weights_sha256=digest))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("variational", [False, True])
def test_a_loaded_model_is_the_saved_one(tmp_path: Path, variational: bool, dims: int) -> None:
    saved = model(variational=variational, dims=dims)
    saved.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.spec == saved.spec
    assert loaded.fingerprint() == saved.fingerprint()
    assert not loaded.network.training
    assert bool(variational_layers(loaded.network)) == variational
    settings = PredictSettings(samples=2)
    pairs = zip(
        sample_probabilities(saved.network, IMAGE, head=saved.head, settings=settings),
        sample_probabilities(loaded.network, IMAGE, head=loaded.head, settings=settings),
        strict=True,
    )
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_cap_on_spread_is_that_of_training_not_of_the_new_weights(tmp_path: Path) -> None:
    saved = model(variational=True)
    for layer in variational_layers(saved.network).values():
        layer.posterior.max_log_std.fill_(-1.25)  # type: ignore[union-attr]
    saved.save(tmp_path)
    for layer in variational_layers(load_model(tmp_path).network).values():
        assert layer.posterior.max_log_std == -1.25


def test_the_folder_holds_three_files_and_nothing_that_can_run(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "card.md",
        "model.json",
        "model.safetensors",
    ]
    card = (folder / "card.md").read_text()
    for words in (
        "dwp",
        "flair, t1c",
        "core",
        "Not a medical device",
        "prior_hash",
        "variational 3D",
    ):
        assert words in card
    description = json.loads((folder / "model.json").read_text())
    assert description["spec"]["channels"] == ["flair", "t1c"]
    assert description["spec"]["preprocess"]["spacing_mm"] == [3.0, 3.0, 3.5]


def test_loading_draws_nothing_from_the_global_generator(folder: Path) -> None:
    state = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(state, torch.get_rng_state())


def test_fingerprint_follows_weights_and_description() -> None:
    one, other = model(), model()
    assert one.fingerprint() == other.fingerprint()
    next(other.network.parameters()).data[0] += 1e-3
    assert one.fingerprint() != other.fingerprint()
    warm = dataclasses.replace(one.spec, temperature=2.0)
    assert Model(one.network, warm).fingerprint() != one.fingerprint()


def test_saving_again_replaces_the_model(folder: Path) -> None:
    model().save(folder)
    assert load_model(folder).spec.method == "ri"


def test_missing_left_over_and_misshapen_tensors_are_named(folder: Path) -> None:
    def change(tensors: dict) -> None:
        del tensors["head.weight"]
        tensors["tail.weight"] = torch.zeros(2)
        tensors["head.bias"] = torch.zeros(3)

    replace_weights(folder, change)
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "head.weight is missing" in message
    assert "tail.weight is not known" in message
    assert "head.bias has shape (3,) instead of (2,)" in message


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    model().save(tmp_path / "other")
    (folder / "model.safetensors").write_bytes((tmp_path / "other/model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="hashes differ"):
        load_model(folder)


def test_a_damaged_weights_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing of the kind")
    digest = file_sha256(folder / "model.safetensors")
    edit(folder, lambda description: description.update(weights_sha256=digest))
    with pytest.raises(ModelError, match="damaged"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["spec"].update(colour="red"), "colour"),
        (lambda d: d["spec"].pop("channels"), "channels"),
        (lambda d: d["spec"].update(temperature=0), "temperature"),
        (lambda d: d["spec"]["architecture"].update(dims=4), r"architecture\.dims"),
        (lambda d: d["spec"].update(channels=["flair"]), "names 1 modalities"),
        (lambda d: d.update(format=99), "99"),
        (lambda d: d.pop("spec"), "'spec'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_with_its_key(
    folder: Path, change, words
) -> None:
    edit(folder, change)
    with pytest.raises(ModelError, match=words):
        load_model(folder)


def test_a_description_must_fit_together() -> None:
    good = spec()
    with pytest.raises(ValidationError, match="regions need 3 outputs"):
        dataclasses.replace(good, regions=RegionSettings(mode="classes", names=("core", "whole")))
    with pytest.raises(ValidationError, match="region_definition"):
        dataclasses.replace(good, region_definition={"core": (1,)})


def test_a_description_knows_nothing_of_a_network_it_did_not_build(tmp_path: Path) -> None:
    Model(nn.Conv3d(2, 2, 1), spec()).save(tmp_path)
    with pytest.raises(ModelError, match=r"stem.* is missing.* more"):
        load_model(tmp_path)


def test_the_card_counts_people_and_names_none(tmp_path: Path) -> None:
    seen = {"subjects": ["anna"], "seen_subjects": ["anna", "berta"], "seed": 7}
    named = dataclasses.replace(model(), spec=dataclasses.replace(spec(), training=seen))
    named.save(tmp_path)
    card = (tmp_path / "card.md").read_text()
    assert "- subjects: 1\n- seen_subjects: 2\n- seed: 7\n" in card
    assert "anna" not in card
