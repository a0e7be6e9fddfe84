"""Optional packages: a clear word where they are missing, and silence where they are not."""

import ctypes
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medseg.errors import ConfigError
from medseg.inference.engines.engine import PRECISIONS, EngineChoice, make_engine
from medseg.inference.engines.packages import optional_package
from medseg.networks.unet import UNet

# In a fresh interpreter, since OpenVINO reports its import, and without the variables by which
# reporters know a test run. Every socket that Python opens is seen by the audit hook, one that
# compiled code opened and kept by its file descriptor, and what a reporter prepares by the files it
# leaves in the home.
SCRIPT = """
import json, os, sys
from pathlib import Path
events = []
def hook(event, args):
    if event.startswith(("socket.", "urllib.", "http.", "subprocess.", "os.system")):
        events.append(f"{event} {args}")
sys.addaudithook(hook)
if sys.argv[1] == "imported before":
    import openvino_telemetry
import torch
from medseg.inference.engines.engine import EngineChoice, make_engine
from medseg.networks.unet import UNet, UNetSettings
network = UNet(UNetSettings(dims=2, in_channels=1, out_channels=1, widths=(4, 4)))
images = torch.randn(1, 1, 8, 8)
engines = [("openvino", "float32"), ("openvino", "int8"), ("onnx", "float32")]
for name, precision in engines[:1] if "openvino_telemetry" in sys.modules else engines:
    choice = EngineChoice(name=name, precision=precision)
    engine = make_engine(choice, network, cache=Path.home() / "cache", calibration=[images])
    engine(images)
links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
         if os.path.islink(f"/proc/self/fd/{fd}")] if os.path.isdir("/proc/self/fd") else []
sockets = [link for link in links if link.startswith("socket:")]
sys.stderr.write(json.dumps(dict(events=events, sockets=sockets)))
"""


def skip_without(package: str) -> None:
    """Not `pytest.importorskip`: an import that nobody silenced is reported to its makers."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize("telemetry", ["not imported", "imported before"])
def test_no_engine_opens_a_socket_or_speaks(tmp_path: Path, telemetry: str) -> None:
    for package in ("openvino", "nncf", "onnxruntime", "onnx"):
        skip_without(package)
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, telemetry],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    found = json.loads(done.stderr.splitlines()[-1])
    assert found == {"events": [], "sockets": []}
    if telemetry == "not imported":
        assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    ("choice", "package"),
    [
        (EngineChoice(name="openvino"), "openvino"),
        (EngineChoice(name="openvino", precision="int8"), "nncf"),
        (EngineChoice(name="onnx"), "onnxruntime"),
        (EngineChoice(name="onnx"), "onnx"),
    ],
    ids=str,
)
def test_a_missing_package_is_named_with_the_way_out(
    network: UNet, choice: EngineChoice, package: str, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}.*pip install medseg\[fast\]"):
        make_engine(choice, network, calibration=[torch.zeros(1, 2, 4, 4, 4)])


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_precision_that_an_engine_lacks_is_refused(network: UNet, name) -> None:
    for precision in {"float32", "bf16", "float16", "int8"} - set(PRECISIONS[name]):
        with pytest.raises(ConfigError, match=precision):
            make_engine(EngineChoice(name=name, precision=precision), network)


def test_int8_without_images_is_refused(network: UNet) -> None:
    skip_without("nncf")
    with pytest.raises(ConfigError, match="calibrat"):
        make_engine(EngineChoice(name="openvino", precision="int8"), network)


def test_openvino_never_computes_in_another_precision_than_it_says(network: UNet) -> None:
    skip_without("openvino")
    found = optional_package("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision, capability in (("bf16", "BF16"), ("float16", "FP16")):
        choice = EngineChoice(name="openvino", precision=precision)
        if capability in found:
            assert make_engine(choice, network).precision == precision
        else:
            with pytest.raises(ConfigError, match="float32"):
                make_engine(choice, network)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no one C library to ask")
def test_compiled_code_sees_the_word_that_silences_it() -> None:
    skip_without("onnxruntime")
    optional_package("onnxruntime")
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    assert getenv(b"ORT_DISABLE_TELEMETRY") == b"1"
