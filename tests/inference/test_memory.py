"""What is known about memory before a prediction, and that it is true."""

import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.errors import ConfigError
from medseg.geometry import Grid
from medseg.inference import memory
from medseg.inference.memory import (
    GIB,
    Job,
    check_reading,
    fitted,
    free_bytes,
    numbers_per_voxel,
)
from medseg.inference.settings import PredictSettings, parse_memory
from medseg.inference.splitter import choose_window, plan_windows
from medseg.networks.presets import unet_2d, unet_3d, unet_short_3d
from medseg.networks.unet import UNetSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BRAIN = (4, 152, 188, 152)
#: A volume of 5 GB in float32.
HUGE = (1, 1077, 1077, 1077)


def job(
    image_shape: tuple[int, int, int, int] = BRAIN,
    *,
    architecture: UNetSettings | None = None,
    engine: str = "eager",
) -> Job:
    return Job(
        architecture=architecture or unet_3d(image_shape[0], 3),
        weight_bytes=120 * 2**20,
        image_shape=image_shape,
        source_voxels=int(np.prod(image_shape[1:])),
        regions=3,
        engine=engine,
    )


def fit(chosen: Job, device: torch.device = CPU, **settings: object) -> PredictSettings:
    return fitted(PredictSettings(**settings), job=chosen, device=device)  # type: ignore[arg-type]


def windows_bytes(settings: PredictSettings, chosen: Job) -> int:
    assert settings.window is not None
    return chosen.window_bytes(math.prod(settings.window))


# --- amounts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gib"), [("4G", 4), ("4GiB", 4), ("4 gib", 4), ("512M", 0.5), ("2T", 2048)]
)
def test_amounts_of_memory_are_read(text: str, gib: float) -> None:
    assert parse_memory(text) == gib


def test_decimal_units_are_decimal() -> None:
    assert parse_memory("4GB") == pytest.approx(4e9 / 2**30)


@pytest.mark.parametrize("text", ["", "4", "G", "4X", "-4G", "4G8M", "1e3M", "0G", "four"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="4G"):
        parse_memory(text)


# --- the estimate ---------------------------------------------------------------------------------

MEASURE = """
import torch
torch.set_num_threads(1)
from medseg.inference.engines.engine import EngineChoice, make_engine
from medseg.networks.unet import UNet, UNetSettings

def status(key):  # ru_maxrss would count what the parent process had when it started this one
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

engine = make_engine(EngineChoice(name="{engine}"), UNet(UNetSettings(**{architecture})))
images = torch.rand(1, 2, *{shape})
engine(images[..., :16, :16, :16])
before = status("VmRSS")
engine(images)
print(status("VmHWM") - before)
"""

ADDED = {"widths": (16, 32, 32), "residual": True, "skip": "add", "decoder_convs": 1}
JOINED = {"widths": (16, 32, 64), "skip": "concat", "upsampling": "transposed", "bias": True}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("engine", ["eager", "torch"])
@pytest.mark.parametrize("architecture", [ADDED, JOINED], ids=["added", "joined"])
def test_a_window_takes_no_more_than_was_said_and_not_much_less(
    architecture: dict[str, object], engine: str
) -> None:
    architecture = {"in_channels": 2, "out_channels": 2, **architecture}
    # Odd lengths, as those of brains are: they cost one more map where skips are added.
    shape = (121, 111, 127) if architecture["skip"] == "add" else (81, 81, 81)
    code = MEASURE.format(engine=engine, architecture=architecture, shape=shape)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout)
    chosen = job((2, *shape), architecture=UNetSettings(**architecture), engine=engine)  # type: ignore[arg-type]
    assert measured <= chosen.window_bytes(math.prod(shape)) <= 1.6 * measured


def test_numbers_of_a_network_counted_by_hand() -> None:
    # Up to the finest level: skip, upsampled, their sum, a convolution's result and the normalised
    # one, 16 each, and the coarser map, 32 / 8.
    peak, coarser = numbers_per_voxel(unet_short_3d(2, 2))
    assert peak == 5 * 16 + 32 / 8
    # Down to the second level: its entry 16, and three maps of 32 / 8.
    assert coarser == 16 + 3 * 32 / 8
    # In place the normalised one is the convolution's.
    assert numbers_per_voxel(unet_short_3d(2, 2), in_place=True)[0] == 4 * 16 + 32 / 8
    # Skip, upsampled, both joined, and three in the second of two convolutions.
    assert numbers_per_voxel(unet_3d(4, 3))[0] == (1 + 1 + 2 + 3) * 32 + 64 / 8
    assert numbers_per_voxel(unet_2d(4, 3))[0] == (1 + 1 + 2 + 3) * 32 + 64 / 4


@given(st.integers(0, 64 * GIB), st.sampled_from(["eager", "torch", "openvino", "onnx"]))
def test_the_largest_window_fits_and_a_larger_one_does_not(room: int, engine: str) -> None:
    chosen = job(engine=engine)
    voxels = chosen.most_voxels(room)
    assert voxels == 0 or chosen.window_bytes(voxels) <= room
    assert chosen.window_bytes(voxels + 1000) > room


def test_a_smaller_number_takes_less() -> None:
    assert replace(job(), number_bytes=2).window_bytes(10**7) < job().window_bytes(10**7)


# --- windows --------------------------------------------------------------------------------------


def test_a_brain_is_one_window_where_memory_allows() -> None:
    for profile in ("fast", "default"):
        assert fit(job(), memory_gib=12, profile=profile).window == BRAIN[1:]


@pytest.mark.parametrize("memory_gib", [3.0, 4.0, 6.0])
@pytest.mark.parametrize("profile", ["fast", "default", "best"])
def test_windows_fit_into_the_memory_given(profile: str, memory_gib: float) -> None:
    chosen = fit(job(), memory_gib=memory_gib, profile=profile)
    assert windows_bytes(chosen, job()) + job().fixed_bytes <= memory_gib * GIB
    assert chosen.overlap is not None
    lowest, highest = {"fast": (0, 0.125), "default": (0.25, 0.5), "best": (0.5, 0.5)}[profile]
    assert lowest <= chosen.overlap <= highest


def test_fast_makes_the_least_work_and_best_the_most() -> None:
    def work(profile: str) -> int:
        chosen = fit(job(), memory_gib=3.5, profile=profile)
        assert chosen.window is not None
        assert chosen.overlap is not None
        windows = plan_windows(BRAIN[1:], chosen.window, overlap=chosen.overlap)
        return len(windows) * math.prod(chosen.window)

    assert work("fast") <= work("default") < work("best")


def test_best_keeps_windows_of_a_usual_size() -> None:
    chosen = fit(job(), memory_gib=30, profile="best")
    assert chosen.window is not None
    assert math.prod(chosen.window) <= 128**3


def test_an_own_bound_stays_as_it_is_where_it_fits() -> None:
    own = choose_window(BRAIN[1:], max_voxels=10**6, overlap=0.5)
    assert fit(job(), memory_gib=12, max_window_voxels=10**6, overlap=0.5).window == own
    chosen = fit(job(), memory_gib=3, max_window_voxels=10**9)
    assert windows_bytes(chosen, job()) + job().fixed_bytes <= 3 * GIB


def test_an_own_window_is_left_alone_or_refused() -> None:
    settings = PredictSettings(window=(96, 96, 96), memory_gib=12)
    assert fitted(settings, job=job(), device=CPU) == settings
    with pytest.raises(ConfigError, match="needs"):
        fit(job(), memory_gib=2, window=(152, 188, 152))


def test_windows_of_the_training_are_taken_where_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    chosen = job()
    asked = PredictSettings(memory_gib=8.0)
    trained = replace(asked, window=(96, 96, 96), overlap=0.25)
    assert fitted(asked, job=chosen, device=CPU, trained=trained) == trained
    assert not caplog.records
    tight = replace(asked, memory_gib=2.0)
    trained = replace(tight, window=(128, 128, 128), overlap=0.25)
    found = fitted(tight, job=chosen, device=CPU, trained=trained)
    assert found == fitted(tight, job=chosen, device=CPU)
    assert windows_bytes(found, chosen) + chosen.fixed_bytes <= 2.0 * GIB
    assert "do not fit into 2.00 GiB" in caplog.text


@pytest.mark.parametrize("named", [True, False])
def test_slices_of_a_window_are_as_many_as_fit(named: bool) -> None:
    chosen = job(architecture=unet_2d(4, 3))
    room = chosen.fixed_bytes + chosen.window_bytes(5 * 128 * 128)
    window = PredictSettings(window=(128, 128), memory_gib=room / GIB)
    asked = window if named else replace(window, window=None)
    found = fitted(asked, job=chosen, device=CPU, trained=None if named else window)
    assert found.window == (128, 128)
    assert found.slices_per_batch in (4, 5)


def test_too_little_memory_names_the_least_that_is_enough() -> None:
    with pytest.raises(ConfigError) as caught:
        fit(job(), memory_gib=0.5)
    least = re.search(r"Allow (\d+\.\d+) GiB", str(caught.value))
    assert least is not None
    window = fit(job(), memory_gib=float(least[1])).window
    assert window is not None
    assert math.prod(window) >= 0.5 * 64**3


def test_slices_are_fewer_at_once_before_they_are_cut() -> None:
    slices = job((4, 512, 512, 100), architecture=unet_2d(4, 3))
    fixed_gib = slices.fixed_bytes / GIB
    many, few, cut = (fit(slices, memory_gib=fixed_gib + extra) for extra in (9, 1.5, 0.2))
    assert (many.window, many.slices_per_batch) == (None, 16)
    assert few.window is None
    assert 1 <= few.slices_per_batch < 16
    assert cut.slices_per_batch == 1
    assert cut.window is not None
    assert cut.window[0] * cut.window[1] < 512 * 512


def test_a_volume_of_5_gb_is_planned_or_refused_without_making_it() -> None:
    # The GPU holds windows only; the volume stays beside it.
    huge = job(HUGE)
    chosen = fit(huge, GPU, memory_gib=4)
    assert windows_bytes(chosen, huge) + huge.weights_held <= 4 * GIB
    assert chosen.window is not None
    assert plan_windows(HUGE[1:], chosen.window, overlap=0.25)
    with pytest.raises(ConfigError) as caught:
        fit(huge, memory_gib=4)
    least = re.search(r"Allow (\d+\.\d+) GiB", str(caught.value))
    assert least is not None
    assert fit(huge, memory_gib=float(least[1])).window is not None


def test_scans_that_do_not_fit_are_not_read() -> None:
    grid = Grid(HUGE[1:], np.eye(4))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"1 of up to 1,249,243,533 voxels need 2\d\.\d\d GiB"):
        check_reading([grid], memory_gib=4)
    check_reading([grid], memory_gib=64)
    check_reading([Grid((240, 240, 155), np.eye(4))] * 4, memory_gib=1)


# --- what the machine has -------------------------------------------------------------------------


def machine(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    monkeypatch.setattr(memory, "_lines", lambda path: files.get(path, "").splitlines())


def test_free_memory_is_a_share_of_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, {"/proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {2**20 * 10} kB"})
    assert free_bytes(CPU) == 8 * GIB


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": f"MemAvailable: {2**20 * 10} kB",
        "/sys/fs/cgroup/memory.max": str(6 * GIB),
        "/sys/fs/cgroup/memory.current": str(GIB),
    }
    machine(monkeypatch, files)
    assert free_bytes(CPU) == 4 * GIB
    machine(monkeypatch, {**files, "/sys/fs/cgroup/memory.max": "max"})
    assert free_bytes(CPU) == 8 * GIB


def test_a_system_that_says_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, {})
    assert free_bytes(CPU) > 0


def test_memory_of_this_machine_is_read() -> None:
    assert 0 < free_bytes(CPU) < 2**50


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
def test_memory_of_the_gpu_is_read() -> None:
    assert 0 < free_bytes(torch.device("cuda")) <= torch.cuda.mem_get_info()[1]
