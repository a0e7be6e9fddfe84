"""Seconds, memory and overlap, measured in one way for every contender."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


class NotOfferedError(Exception):
    """Raised for what a version or machine cannot do: its row says so and the run goes on."""


def memory_mib() -> tuple[float, float]:
    """Return what this process holds now and the most it ever held, resident, in MiB.

    Linux carries ``ru_maxrss`` over from the parent when a program is started, so the kernel's
    count for this program alone (VmHWM) is taken where it is offered.
    """
    if STATUS.is_file():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        return tuple(int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    unit = 1024**2 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return most, most


def forget_peak() -> bool:
    """Start the kernel's count of the peak anew; return whether that was possible."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


class Clock:
    """What seconds are: of the wall, or of this process's processors on a shared machine."""

    now: Callable[[], float] = staticmethod(time.perf_counter)


def seconds_of(run: Callable[[], Any]) -> tuple[float, Any]:
    started = Clock.now()
    result = run()
    return Clock.now() - started, result


def measured(
    run: Callable[[], Any], *, repeats: int, warm_up: Callable[[], Any] | None = None
) -> tuple[dict[str, Any], Any]:
    """Return times and memory of a call, and what it returned.

    Parameters
    ----------
    run : callable
    repeats : int
        Timed calls.
    warm_up : callable, optional
        Called and timed once before; by default ``run`` itself, which is what a compiled engine
        needs. A contender that compiles nothing is warmed up on less.

    Returns
    -------
    dict
        ``seconds`` of each call, ``warm_up_seconds``, and resident memory in MiB: ``idle_mib``
        before the warm-up (imports, weights, image), ``peak_mib`` of the whole process,
        ``steady_peak_mib`` after the warm-up.
    """
    gc.collect()
    idle = memory_mib()[0]
    warm, _ = seconds_of(warm_up or run)
    peak = memory_mib()[1]
    reset = forget_peak()
    times, result = [], None
    for _ in range(repeats):
        result = None
        gc.collect()
        spent, result = seconds_of(run)
        times.append(spent)
    steady = memory_mib()[1]
    row = {
        "seconds": times,
        "warm_up_seconds": warm,
        "idle_mib": idle,
        "peak_mib": max(peak, steady),
        "steady_peak_mib": steady if reset else None,
    }
    return row, result


def dice(mask: Any, reference: Any) -> list[float]:
    """Return the Dice coefficient of each region of two masks (n, *s); 1 where both are empty."""
    both = (mask & reference).flatten(1).sum(1)
    total = mask.flatten(1).sum(1) + reference.flatten(1).sum(1)
    return [1.0 if t == 0 else 2.0 * b / t for b, t in zip(both.tolist(), total.tolist())]  # noqa: B905


def case_file(folder: str, case: str) -> Path:
    return Path(folder) / "cases" / f"{case}.safetensors"


def load_case(folder: str, case: str) -> dict[str, Any]:
    """Return image and truth of the crop, the uncropped image where kept, and the crop's start."""
    from safetensors.torch import load_file

    return load_file(case_file(folder, case))


def keep_mask(mask: Any, *, folder: str, case: str, name: str, reference: str) -> dict[str, Any]:
    """Write a mask (n, *crop) and return its overlap with the truth and the reference's mask."""
    import torch
    from safetensors.torch import load_file, save_file

    place = Path(folder) / "masks"
    place.mkdir(exist_ok=True)
    save_file({"mask": mask.to(torch.uint8).contiguous()}, place / f"{case} {name}.safetensors")
    truth = load_case(folder, case)["truth"].bool()
    row = {"dice_truth": dice(mask, truth)}
    other = place / f"{case} {reference}.safetensors"
    if other.is_file():
        row["dice_reference"] = dice(mask, load_file(other)["mask"].bool())
    return row
