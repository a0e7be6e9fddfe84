"""No engine answers when it lacks the memory to compute; all say so in one way."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from medseg.errors import MedsegError
from medseg.inference.engines.engine import EngineChoice, make_engine
from medseg.inference.engines.memory import EngineMemoryError, memory_errors

# In a process of its own, whose memory is limited once all engines have run on something small.
SCRIPT = """
import json, resource, sys
from pathlib import Path
import torch
from medseg.errors import ConfigError
from medseg.inference.engines.engine import EngineChoice, make_engine
from medseg.inference.engines.memory import EngineMemoryError
from medseg.networks.unet import UNet, UNetSettings
torch.set_num_threads(1)
network = UNet(UNetSettings(in_channels=1, out_channels=2, widths=(16, 16)))
small, large = torch.randn(1, 1, 8, 8, 8), torch.randn(1, 1, 192, 192, 192)
engines, found = {}, {}
for name in ("eager", "torch", "openvino", "onnx"):
    try:
        engines[name] = make_engine(EngineChoice(name=name, device="cpu"), network)
    except ConfigError as error:
        found[name] = "not installed"
expected = {name: engine(small) for name, engine in engines.items()}
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = pages * resource.getpagesize() + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
for name, engine in engines.items():
    try:
        engine(large)
        found[name] = "answered"
    except EngineMemoryError as error:
        found[name] = "refused"
    again = torch.allclose(engine(small), expected[name], rtol=1e-3, atol=1e-4)
    found[name] += ", then right" if again else ", then wrong"
sys.stdout.write(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
def test_no_engine_answers_without_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 4
    assert found["eager"] == found["torch"] == "refused, then right"
    assert set(found.values()) <= {"refused, then right", "not installed"}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
    ids=str,
)
def test_no_memory_is_said_in_one_way(error: Exception) -> None:
    class Hungry(nn.Conv3d):
        def forward(self, input):
            raise error

    for name in ("eager", "torch"):
        engine = make_engine(EngineChoice(name=name, device="cpu"), Hungry(1, 1, 3))
        with pytest.raises(EngineMemoryError, match="smaller windows") as caught:
            engine(torch.zeros(1, 1, 4, 4, 4))
        assert isinstance(caught.value, MedsegError)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), memory_errors((1,), "the CPU"):
        raise RuntimeError("shapes differ")
