"""The choice of device and number format, and that it is explained."""

import logging

import pytest
import torch
from jaxtyping import TypeCheckError

from medseg.errors import ConfigError
from medseg.networks import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        # AVX-512 alone: torch says bf16 is supported, but it is emulated.
        ({"avx512_bw": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
    ],
)
def test_auto_takes_bf16_only_where_the_processor_has_it(monkeypatch, features, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert precision.resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize("native", [True, False])
def test_older_torch_is_asked_another_way(monkeypatch, native):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert precision.native_bf16(CPU)[0] is native


def test_the_choice_is_explained(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with caplog.at_level(logging.DEBUG):
        precision.resolve_precision("auto", CPU)
        precision.resolve_precision("bf16", CPU)
    assert "avx512_bf16" in caplog.text
    assert [record.levelname for record in caplog.records] == ["DEBUG", "WARNING", "DEBUG"]


def test_what_is_asked_for_is_given():
    assert precision.resolve_precision("float32", CPU) == torch.float32
    assert precision.resolve_precision("bf16", CPU) == torch.bfloat16
    assert precision.resolve_device("cpu") == CPU


def test_auto_device_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert precision.resolve_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision.resolve_device("auto").type == "cpu"


@pytest.mark.parametrize("name", ["gpu please", "cuda:99"])
def test_refuses_devices_that_are_not_there(name):
    with pytest.raises(ConfigError, match=name):
        precision.resolve_device(name)


def test_refuses_other_precisions():
    with pytest.raises((ConfigError, TypeCheckError), match="float8"):
        precision.resolve_precision("float8", CPU)  # pyright: ignore[reportArgumentType]
