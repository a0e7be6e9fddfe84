"""medseg's contenders."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from medseg.batch.cases import find_cases
from medseg.batch.run import run_batch
from medseg.data.regions import decode
from medseg.geometry import Grid
from medseg.inference import plan as prediction
from medseg.inference import predictor
from medseg.inference.engines.engine import Engine, EngineChoice, make_engine
from medseg.inference.model import Model, load_model
from medseg.inference.plan import predict_image
from medseg.inference.settings import PredictSettings
from medseg.io.nifti import write_scan
from medseg.networks.precision import native_bf16
from medseg.networks.unet import UNet
from medseg.scan import Scan
from medseg.seeding import seeded_torch
from medseg.variational.convert import to_variational
from medseg.variational.settings import VariationalSettings
from tools.benchmark.measure import (
    NotOfferedError,
    keep_mask,
    load_case,
    measured,
    memory_mib,
    seconds_of,
)
from tools.benchmark.plan import PHANTOM, REFERENCE


def settings_of(**wanted: Any) -> PredictSettings:
    """Return settings of a prediction on the CPU."""
    try:
        return PredictSettings(**wanted, device="cpu")
    except (ValueError, TypeError) as error:
        raise NotOfferedError(str(error)) from error


def compiled(*, folder: str, engine: str, precision: str) -> dict[str, Any]:
    """Convert and calibrate the network, or choose an engine, into the model's own cache."""
    image = load_case(folder, PHANTOM)["image"]

    def make() -> None:
        model = load_model(Path(folder) / "model")
        if engine == "auto":
            prediction.engine_for(model, image, settings=settings_of(engine="auto"))
        else:
            _engine(model, folder, engine, precision)

    spent, _ = seconds_of(make)
    again, _ = seconds_of(make)
    return {"seconds": [spent], "again_seconds": again, "peak_mib": memory_mib()[1]}


def _engine(model: Model, folder: str, name: str, precision: str) -> Engine:
    if name == "torch" and precision == "bf16":
        native, reason = native_bf16(torch.device("cpu"))
        if not native:
            raise NotOfferedError(reason)
    choice = EngineChoice(name=name, precision=precision, device="cpu")  # type: ignore[arg-type]
    images = load_file(Path(folder) / "calibration.safetensors")
    cache = Path(folder) / "model" / "engines"
    return make_engine(choice, model.network, cache=cache, calibration=list(images.values()))


def predict(
    *, folder: str, case: str, name: str, wanted: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """Predict a case's crop, from the prepared image to the mask of every region."""
    model, image = load_model(Path(folder) / "model"), load_case(folder, case)["image"]
    shapes: list[list[int]] = []
    run = _run(model, image, folder, wanted, shapes=shapes)
    eager = wanted["engine"] in ("eager", "torch")
    part = image[(..., *(slice(0, 64),) * 3)].contiguous()
    # What compiles nothing need not have seen the very windows before.
    warm_up = _run(model, part, folder, wanted) if eager else run
    row, mask = measured(run, repeats=repeats, warm_up=warm_up)
    if shapes:
        row["windows"] = [shapes[-1], shapes.count(shapes[-1]) // (repeats + (not eager))]
    if wanted["engine"] == "auto":
        row["chosen"] = [str(kept) for kept in model.engines.values()]
    return row | keep_mask(mask, folder=folder, case=case, name=name, reference=REFERENCE)


def _run(
    model: Model,
    image: Tensor,
    folder: str,
    wanted: dict[str, Any],
    *,
    shapes: list[list[int]] | None = None,
) -> Callable[[], Tensor]:
    """Return what predicts an image as `medseg.inference.plan.predict_image` does.

    That takes float16 and int8 only from "auto", so an engine that is named is put in its place.
    """
    name, precision = wanted["engine"], wanted["precision"]
    settings = settings_of(
        profile=wanted["profile"],
        engine="eager" if name == "eager" else "auto",
        memory_gib=wanted.get("memory_gib"),
    )
    kept: list[_Noted] = []

    def run() -> Tensor:
        if name in ("auto", "eager"):
            (found,) = predict_image(model, image, settings=settings)
            return _mask(model, found, settings)
        if not kept:
            kept.append(_Noted(_engine(model, folder, name, precision), shapes))
        with mock.patch.object(prediction, "engine_for", return_value=kept[0]):
            (found,) = predict_image(model, image, settings=settings)
        return _mask(model, found, settings)

    if name == "eager" and shapes is not None:
        noted = shapes
        model.network.register_forward_pre_hook(lambda _, x: noted.append(list(x[0].shape[2:])))
    return run


class _Noted:
    """An engine, with the windows it is given noted down."""

    def __init__(self, engine: Engine, shapes: list[list[int]] | None) -> None:
        self._engine, self._shapes = engine, shapes
        self.name, self.precision = engine.name, engine.precision

    def __call__(self, images: Tensor) -> Tensor:
        if self._shapes is not None:
            self._shapes.append(list(images.shape[2:]))
        return self._engine(images)


def _mask(model: Model, probabilities: Tensor, settings: PredictSettings) -> Tensor:
    regions = model.spec.regions
    masks = decode(probabilities, settings=regions, threshold=settings.threshold)
    return torch.stack([masks[name] for name in regions.names])


def _cube(folder: str, side: int | None) -> Tensor:
    """Return a cube of the phantom, padded with 0 where it is smaller; all of it without a side."""
    image = load_case(folder, PHANTOM)["image"]
    if side is None:
        return image
    cube = image.new_zeros(image.shape[0], side, side, side)
    part = []
    for length in image.shape[1:]:
        start = max(0, (length - side) // 2)
        part.append(slice(start, start + min(side, length)))
    inner = image[(slice(None), *part)]
    cube[(slice(None), *(slice(0, n) for n in inner.shape[1:]))] = inner
    return cube


def cubes(*, folder: str, cubes: list[int], wanted: dict[str, Any]) -> dict[str, Any]:
    """Predict cubes of several sides; each is seen twice and the second time counts."""
    model, points = load_model(Path(folder) / "model"), []
    for side in cubes:
        run = _run(model, _cube(folder, side), folder, wanted)
        run()
        points.append({"side": side, "seconds": seconds_of(run)[0]})
    return {"points": points, "peak_mib": memory_mib()[1]}


def posterior(*, folder: str, side: int | None, samples: list[int], kind: str) -> dict[str, Any]:
    """Predict with K posterior samples, and once with the network of the means, in torch."""
    model, image = load_model(Path(folder) / "model"), _cube(folder, side)
    chosen = VariationalSettings()
    with seeded_torch(0, "benchmark"):
        twin = to_variational(model.network, settings=chosen).eval()
    random = Model(twin, replace(model.spec, variational=chosen))

    def run(which: Model, **settings: Any) -> None:
        for found in predict_image(which, image, settings=settings_of(**settings)):
            _mask(which, found, settings_of())

    once = min(seconds_of(lambda: run(model, engine="torch"))[0] for _ in range(2))
    points = []
    for count in samples:
        spent, _ = seconds_of(lambda n=count: run(random, samples=n, posterior=kind))
        points.append({"samples": count, "seconds": spent, "ratio": spent / once})
    return {"points": points, "deterministic_seconds": once, "peak_mib": memory_mib()[1]}


def batch(*, folder: str, scans: list[int]) -> dict[str, Any]:
    """Predict copies of the phantom from files to files, with the engine that "auto" takes."""
    model, inputs = load_model(Path(folder) / "model"), Path(folder) / "scans"
    _write_scans(folder, inputs, max(scans), model)
    clock, points = _NetworkClock(), []
    items = find_cases(inputs, channels=model.spec.channels)
    # The first choice of an engine is paid once per model and machine.
    for count in (1, *scans):
        out = Path(folder) / "batch"
        shutil.rmtree(out, ignore_errors=True)
        clock.seconds, started = 0.0, time.perf_counter()
        summary = run_batch(
            items[:count], model=model, out=out, settings=settings_of(engine="auto")
        )
        spent = time.perf_counter() - started
        if summary.failures:
            raise RuntimeError(summary.failures[0].reason)
        share = clock.seconds / spent
        point = {"scans": count, "seconds": spent, "network_share": share}
        points.append(point | {"by_stage": getattr(summary, "seconds", None)})
    return {
        "points": points[1:],
        "first_seconds": points[0]["seconds"],
        "peak_mib": memory_mib()[1],
    }


def start_up(*, folder: str, repeats: int) -> dict[str, Any]:
    """Time ``medseg --help``, and ``medseg predict`` on a tiny scan with a tiny network."""
    root = Path(folder) / "tiny"
    model, scans = root / "model", root / "scans"
    if not model.is_dir():
        spec = load_model(Path(folder) / "model").spec
        tiny = replace(spec.architecture, widths=(8, 16))
        Model(UNet(tiny), replace(spec, architecture=tiny)).save(model)
        grid, inside = Grid((24, 24, 24), np.diag([2.0, 2.0, 2.0, 1.0])), (slice(3, 21),) * 3
        (scans / "a").mkdir(parents=True)
        for seed, name in enumerate(spec.channels):
            values = torch.zeros(grid.shape)
            generator = torch.Generator().manual_seed(seed)
            values[inside] = torch.rand(18, 18, 18, generator=generator) + 1
            write_scan(scans / "a" / f"{name}.nii.gz", Scan(values, grid))

    def seconds(*arguments: str) -> float:
        start = "from medseg.cli.main import entry; entry()"
        command = [sys.executable, "-c", start, *arguments]
        return seconds_of(lambda: subprocess.run(command, check=True, capture_output=True))[0]

    def predicted() -> float:
        out = root / "out"
        shutil.rmtree(out, ignore_errors=True)
        return seconds("predict", str(model), str(scans), str(out), "--device", "cpu")

    return {
        "help_seconds": [seconds("--help") for _ in range(repeats)],
        "predict_seconds": [predicted() for _ in range(repeats)],
    }


class _NetworkClock:
    """Seconds inside sliding windows, in whatever thread."""

    def __init__(self) -> None:
        self.seconds = 0.0
        inner = predictor.SlidingWindow.__call__

        def timed(window: predictor.SlidingWindow, image: Tensor) -> Tensor:
            started = time.perf_counter()
            try:
                return inner(window, image)
            finally:
                self.seconds += time.perf_counter() - started

        predictor.SlidingWindow.__call__ = timed  # type: ignore[method-assign]


def _write_scans(folder: str, inputs: Path, count: int, model: Model) -> None:
    """Write the uncropped phantom as NIfTI files, as a scanner's export would be."""
    whole = load_case(folder, PHANTOM)["whole"]
    spacing = model.spec.preprocess.spacing_mm or (1.0, 1.0, 1.0)
    grid = Grid(tuple(whole.shape[1:]), np.diag([*spacing, 1.0]))  # type: ignore[arg-type]
    first = inputs / "scan-0"
    for number in range(count):
        place = inputs / f"scan-{number}"
        if place.is_dir():
            continue
        if number:
            shutil.copytree(first, place)
            continue
        place.mkdir(parents=True)
        for name, channel in zip(model.spec.channels, whole, strict=True):
            # Positive and with few distinct values, like a scanner's numbers, not like a z-score.
            positive = torch.where(channel == 0, 0.0, ((channel + 8) * 100).round())
            write_scan(place / f"{name}.nii.gz", Scan(positive, grid))
