"""Weights and cases, made once and kept in the benchmark's folder; the chip's peak."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medseg.data.phantom.cohort import PhantomSettings, PhantomSource
from medseg.data.regions import WHOLE_TUMOUR, RegionSettings, encode
from medseg.data.sources.brats import BratsSettings, BratsSource
from medseg.data.training_set import (
    AugmentSettings,
    PatchSampler,
    PatchSettings,
    TrainingCase,
    make_training_case,
)
from medseg.inference.compute import example_of
from medseg.inference.model import Model, ModelSpec, load_model
from medseg.losses.segmentation import LossSettings
from medseg.networks.presets import unet_3d
from medseg.networks.unet import UNet, UNetSettings
from medseg.preprocess.prepare import PreparedCase, PreprocessSettings, prepare
from medseg.scan import Case, LabelMap, Scan
from medseg.seeding import seeded_torch
from medseg.training.loop import TrainingSettings, train
from medseg.training.objective import SegmentationObjective
from tools.benchmark.measure import case_file, seconds_of
from tools.benchmark.plain import gigaflop, plain_weights
from tools.benchmark.plan import PHANTOM, Scale

CHANNELS = ("flair", "t1", "t1c", "t2")
REGIONS = RegionSettings(mode="regions", names=("whole", "core", "enhancing"))
DEFINITION = {name: tuple(WHOLE_TUMOUR[name]) for name in REGIONS.names}
TRAIN_SEED, TEST_SEED = 11, 12
#: Of the phantom's cohort: its brain is as large as most.
TEST_SUBJECT = 3


def make(
    *, folder: str, scale: dict[str, Any], weights: str | None, real: str, n_real: int
) -> dict[str, Any]:
    """Make what is missing in ``folder`` and return what is there.

    Parameters
    ----------
    folder : str
        Gets ``model`` (medseg's), ``plain.safetensors`` (nnU-Net's names), ``probe.safetensors``
        and ``cases``.
    scale : dict
        Fields of `tools.benchmark.plan.Scale`.
    weights : str, optional
        A model folder to take instead of training one.
    real : str
        Folder of real tumours under BraTS names; skipped where it is absent.
    n_real : int
        How many of them.
    """
    root, sizes = Path(folder), Scale(**scale)
    (root / "cases").mkdir(parents=True, exist_ok=True)
    architecture = dataclasses.replace(
        unet_3d(len(CHANNELS), REGIONS.channels), widths=tuple(sizes.widths)
    )
    training = _model(root, sizes, architecture, weights)
    model = load_model(root / "model")
    _share(root, model, sizes.probe)
    _calibration(root, sizes)
    cases = [_phantom(root, sizes), *_real(root, Path(real), sizes, n_real)]
    numbers = {
        "widths": model.spec.architecture.widths,
        "in_channels": len(CHANNELS),
        "out_channels": REGIONS.channels,
    }
    for case in cases:
        case["gigaflop"] = gigaflop(case["box"], **numbers)
    return {
        "cases": cases,
        "training": training,
        "model_sha256": model.fingerprint(),
        "roi_gigaflop": gigaflop((sizes.roi,) * 3, **numbers),
        "cube_gigaflop": {side: gigaflop((side,) * 3, **numbers) for side in sizes.cubes},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _model(
    root: Path, sizes: Scale, architecture: UNetSettings, weights: str | None
) -> dict[str, Any]:
    folder, wanted = root / "model", [list(sizes.widths), [list(s) for s in sizes.train_stages]]
    if weights is not None:
        given = load_model(Path(weights))
        if dataclasses.replace(given.spec.architecture, widths=architecture.widths) != architecture:
            raise ValueError(f"{weights} must be a plain unet_3d of {CHANNELS} and {REGIONS.names}")
        given.save(folder)
        return {"from": weights}
    if folder.is_dir():
        known = load_model(folder).spec.training
        if known.get("benchmark") == wanted:
            return known
    prepared = [
        _prepared(_phantom_case(sizes, TRAIN_SEED, i), sizes) for i in range(sizes.train_subjects)
    ]
    cases = [make_training_case(p, regions=REGIONS, definition=DEFINITION) for p in prepared]
    with seeded_torch(0, "benchmark"):
        network = UNet(architecture)
    stages = [train_stage(network, cases, *stage) for stage in sizes.train_stages]
    record = {"benchmark": wanted, "stages": stages}
    spec = ModelSpec(
        architecture=architecture,
        channels=CHANNELS,
        regions=REGIONS,
        region_definition=DEFINITION,
        preprocess=_preprocess(sizes),
        allow_missing=True,
        method="benchmark",
        training=record,
    )
    Model(network, spec).save(folder)
    return record


def train_stage(
    network: UNet, cases: list[TrainingCase], side: int, steps: int, rate: float
) -> dict[str, Any]:
    """Train a network in place on patches of one size and return how it went."""
    # The real scans have two of the four modalities.
    augment = AugmentSettings(modality_dropout=0.25)
    patch = PatchSettings(size=(side, side, side), batch_size=1, lesion_fraction=0.7)
    objective = SegmentationObjective(mode="regions", settings=LossSettings(), network=network)
    settings = TrainingSettings(
        steps=steps,
        learning_rate=rate,
        warm_up_steps=steps // 10,
        ema_decay=0.9,
        device="cpu",
    )
    sampler = PatchSampler(cases, patch=patch, augment=augment, seed=side)
    spent, result = seconds_of(lambda: train(network, objective, sampler, settings=settings))
    return {"side": side, "steps": steps, "seconds": spent, "last": result.history[-1]}


def _share(root: Path, model: Model, side: int) -> None:
    """Write the peers' weights, and a patch with medseg's logits to prove them equal."""
    save_file(plain_weights(model.network.state_dict()), root / "plain.safetensors")
    generator = torch.Generator().manual_seed(0)
    patch = torch.randn(1, len(CHANNELS), side, side, side, generator=generator)
    with torch.inference_mode():
        logits = model.network.eval()(patch)
    save_file({"patch": patch, "logits": logits.contiguous()}, root / "probe.safetensors")


def _calibration(root: Path, sizes: Scale) -> None:
    """Write the middles of the training subjects: int8 must not see what it is tested on."""
    path = root / "calibration.safetensors"
    if path.is_file():
        return
    images = [
        example_of(_prepared(_phantom_case(sizes, TRAIN_SEED, i), sizes).image, dims=3)
        for i in range(sizes.train_subjects)
    ]
    save_file({str(i): image.contiguous() for i, image in enumerate(images)}, path)


def _preprocess(sizes: Scale, *, crop: bool = True) -> PreprocessSettings:
    return PreprocessSettings(
        spacing_mm=(sizes.spacing_mm, sizes.spacing_mm, sizes.spacing_mm),
        crop_to_brain=crop,
        margin_mm=0.0,
        normalise="zscore",
    )


def _prepared(case: Case, sizes: Scale, *, crop: bool = True) -> PreparedCase:
    settings = _preprocess(sizes, crop=crop)
    return prepare(case, channels=CHANNELS, settings=settings, allow_missing=True)


def _phantom_case(sizes: Scale, seed: int, index: int) -> Case:
    source = PhantomSource(
        PhantomSettings(
            disease="tumour",
            n_subjects=index + 1,
            spacing_mm=sizes.spacing_mm,
            modalities=CHANNELS,
            seed=seed,
        )
    )
    return source[index]


def framed(case: Case, shape: tuple[int, ...]) -> Case:
    """Return the case in the middle of a field of view of ``shape`` voxels, 0 around it."""
    old = case.grid.shape
    start = [(n - wanted) // 2 for n, wanted in zip(old, shape, strict=True)]
    stop = [a + wanted for a, wanted in zip(start, shape, strict=True)]
    grid = case.grid.crop(start, stop)

    def moved(data: Tensor) -> Tensor:
        new = data.new_zeros(shape)
        source = [slice(max(a, 0), min(b, n)) for a, b, n in zip(start, stop, old, strict=True)]
        place = [slice(s.start - a, s.stop - a) for s, a in zip(source, start, strict=True)]
        new[tuple(place)] = data[tuple(source)]
        return new

    label, brain = case.label, case.brain
    return dataclasses.replace(
        case,
        scans={name: Scan(moved(scan.data), grid) for name, scan in case.scans.items()},
        label=None if label is None else LabelMap(moved(label.data), grid),
        brain=None if brain is None else LabelMap(moved(brain.data), grid),
    )


def _phantom(root: Path, sizes: Scale) -> dict[str, Any]:
    def read() -> Case:
        # Without the end of the brain stem, whose box would be longer than that of real scans.
        case = framed(_phantom_case(sizes, TEST_SEED, TEST_SUBJECT), sizes.view)
        return framed(case, sizes.volume)

    return _keep(root, PHANTOM, read, sizes, whole=True)


def _real(root: Path, folder: Path, sizes: Scale, count: int) -> list[dict[str, Any]]:
    if count == 0 or not folder.is_dir():
        return []
    source = BratsSource(BratsSettings(root=folder))
    return [
        _keep(root, f"real tumour {name}", lambda i=i: source[i], sizes, whole=False)
        for i, name in enumerate(source.identifiers[:count])
    ]


def _keep(root: Path, name: str, read: Any, sizes: Scale, *, whole: bool) -> dict[str, Any]:
    path = case_file(str(root), name)
    if not path.is_file():
        case = read()
        crop = _prepared(case, sizes)
        if crop.label is None:
            raise ValueError(f"case {name} has no label")
        truth, _ = encode(crop.label, names=REGIONS.names, definition=DEFINITION)
        kept = {"image": crop.image, "truth": truth.to(torch.uint8)}
        if whole:
            full = _prepared(case, sizes, crop=False)
            corner = full.grid.to_voxel(crop.grid.affine[:3, 3]).round()
            kept |= {"whole": full.image, "start": torch.tensor(corner, dtype=torch.int64)}
        save_file({key: value.contiguous() for key, value in kept.items()}, path)
    kept = load_file(path)
    truth = kept["truth"].bool()
    return {
        "name": name,
        "box": list(kept["image"].shape[1:]),
        "volume": list(kept["whole"].shape[1:]) if "whole" in kept else None,
        "truth_voxels": truth.flatten(1).sum(1).tolist(),
    }
