"""Compiled forms are kept, found again, and never used for another network."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from medseg.errors import ConfigError
from medseg.inference.engines import compiled
from medseg.inference.engines.compiled import kept, network_sha256, stem
from medseg.inference.engines.engine import EngineChoice, make_engine
from medseg.networks.unet import UNet


class Maker:
    """Builds, writes and reads a text, and counts the building."""

    def __init__(self, text: str = "made") -> None:
        self.text, self.built = text, 0

    def __call__(self, cache: Path | None, name: str = "form") -> str:
        return kept(cache, name, build=self.build, write=self.write, read=self.read)

    def build(self) -> str:
        self.built += 1
        return self.text

    def write(self, text: str, folder: Path) -> None:
        (folder / "text").write_text(text)

    def read(self, folder: Path) -> str:
        return (folder / "text").read_text()


def test_the_second_time_it_is_read(tmp_path: Path) -> None:
    maker = Maker()
    assert [maker(tmp_path / "new" / "cache") for _ in range(3)] == ["made"] * 3
    assert maker.built == 1
    assert [path.name for path in (tmp_path / "new" / "cache").iterdir()] == ["form"]


def test_another_name_is_another_form(tmp_path: Path) -> None:
    assert Maker("one")(tmp_path, "one") == "one"
    assert Maker("two")(tmp_path, "two") == "two"
    assert Maker("not used")(tmp_path, "one") == "one"


def test_without_a_folder_nothing_is_kept() -> None:
    maker = Maker()
    assert [maker(None), maker(None)] == ["made", "made"]
    assert maker.built == 2


@pytest.mark.parametrize("damage", ["changed", "gone", "no sums", "sums of another kind"])
def test_a_damaged_form_is_made_again(tmp_path: Path, damage: str, caplog) -> None:
    Maker("old")(tmp_path)
    text, sums = tmp_path / "form" / "text", tmp_path / "form" / "sha256.json"
    if damage == "changed":
        text.write_text("old with a flipped bit")
    elif damage == "gone":
        text.unlink()
    elif damage == "no sums":
        sums.unlink()
    else:
        sums.write_text("[1, 2]")
    maker = Maker("new")
    assert [maker(tmp_path), maker(tmp_path)] == ["new", "new"]
    assert maker.built == 1
    assert (damage == "no sums") == ("made again" not in caplog.text)


def test_a_folder_that_cannot_be_written_to_is_done_without(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    maker = Maker()
    with caplog.at_level(logging.WARNING):
        assert maker(tmp_path / "file" / "cache") == "made"
    assert "not kept" in caplog.text


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(text: str, folder: Path) -> None:
        (folder / "half").write_text(text[:2])
        raise OSError("no space left")

    maker = Maker()
    assert kept(tmp_path, "form", build=maker.build, write=fail, read=maker.read) == "made"
    assert list(tmp_path.iterdir()) == []


def name_of(network: nn.Module) -> str:
    return stem(network, engine="onnx", precision="float32")


def test_the_name_holds_a_hash_of_all_it_is_made_from(network: UNet, monkeypatch) -> None:
    names = [
        name_of(network),
        stem(network, engine="openvino", precision="float32"),
        stem(network, engine="openvino", precision="bf16"),
    ]
    with torch.no_grad():
        network.head.weight[0, 0] += 1e-6
    names.append(name_of(network))
    monkeypatch.setattr(compiled, "__version__", "0.0.0.other")
    names.append(name_of(network))
    assert len(set(names)) == 5
    assert len({name.rpartition("-")[2] for name in names}) == 5
    assert all(len(name.rpartition("-")[2]) == 64 for name in names)


def test_equal_networks_have_equal_names_in_any_mode(network: UNet) -> None:
    twin = UNet(network.settings).train()
    twin.load_state_dict(network.state_dict())
    assert network_sha256(twin) == network_sha256(network)


@pytest.mark.parametrize(
    "other", [{"activation": "elu"}, {"upsampling": "linear"}, {"residual": False}]
)
def test_other_architectures_with_the_same_weights_have_other_names(network: UNet, other) -> None:
    twin = UNet(dataclasses.replace(network.settings, **other))
    twin.load_state_dict(network.state_dict())
    assert network_sha256(twin) != network_sha256(network)


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_a_changed_network_never_meets_its_old_form(network, engine, tmp_path, monkeypatch) -> None:
    choice, images = EngineChoice(name=engine), torch.randn(1, 2, 6, 5, 7)
    try:
        first = make_engine(choice, network, cache=tmp_path)(images)
    except ConfigError as error:
        pytest.skip(str(error))
    # Read again, not made again.
    function = {"openvino": "_converted", "onnx": "_exported"}[engine]
    module = f"medseg.inference.engines.{engine}"
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{function}", None)
        assert torch.equal(make_engine(choice, network, cache=tmp_path)(images), first)
    with torch.no_grad():
        network.head.weight *= -1
    second = make_engine(choice, network, cache=tmp_path)(images)
    torch.testing.assert_close(second, -first)
    assert len(list(tmp_path.iterdir())) == 2
