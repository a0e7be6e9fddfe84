from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medseg.data.augment import AugmentSettings, PaintSettings
from medseg.data.regions import WHOLE_TUMOUR, RegionSettings, encode
from medseg.data.training_set import Batch, PatchSampler, PatchSettings, TrainingCase
from medseg.errors import ConfigError
from medseg.synthesis.lesion_model import LesionModel
from medseg.synthesis.lesions import LabelledScan
from medseg.synthesis.painter import LesionPainter, make_painter

REGIONS = RegionSettings(names=("core", "whole"))
PATCH = PatchSettings(size=(20, 20, 20), batch_size=2, lesion_fraction=0.0)
STILL = AugmentSettings(
    flip=0, affine=0, elastic=0, intensity=0, noise=0, bias=0, resolution=0, modality_dropout=0
)
SPACING = (2.0, 2.0, 2.0)
LEARNING = {
    "side": 8,
    "shape": {"latent": 2, "channels": (4,), "fit": {"max_steps": 5}},
    "looks": {"latent": 2, "channels": (4,), "fit": {"max_steps": 5}},
}


def cases(scans: Sequence[LabelledScan], *, lesions: bool, mode: str = "regions"):
    found = []
    for scan in scans:
        label = scan.label if lesions else torch.zeros_like(scan.label)
        names = ("core", "whole") if mode == "regions" else ("core", "oedema")
        target, known = encode(label, names=names, definition=WHOLE_TUMOUR, mode=mode)  # type: ignore[arg-type]
        image = scan.image
        if not lesions:
            image = scan.image.clamp(max=1.0)
        present = torch.ones(2, dtype=torch.bool)
        found.append(
            TrainingCase(
                scan.identifier, scan.identifier, image, present, target, known, scan.brain,
                has_background=mode == "classes",
            )
        )  # fmt: skip
    return found


def painter_of(
    model: LesionModel, chosen: Sequence[TrainingCase], *, chance: float = 1.0, folder: Path
) -> LesionPainter:
    model.save(folder)
    made = make_painter(
        PaintSettings(chance=chance, lesions=folder, bank=4),
        chosen,
        regions=REGIONS,
        channels=("flair", "t1c"),
        spacing_mm=SPACING,
        patch=(20, 20, 20),
        seed=0,
    )
    assert made is not None
    return made


def sampler(
    chosen: Sequence[TrainingCase], painter: LesionPainter | None, **changes: float
) -> PatchSampler:
    return PatchSampler(
        chosen, patch=PATCH, augment=replace(STILL, **changes), seed=1, painter=painter
    )


def same(first: Batch, second: Batch) -> bool:
    return torch.equal(first.image, second.image) and torch.equal(first.target, second.target)


def test_lesions_appear_in_healthy_patches_and_are_marked(
    scans: list[LabelledScan], model: LesionModel, tmp_path: Path
) -> None:
    healthy = cases(scans[:2], lesions=False)
    plain = sampler(healthy, None)
    painted = sampler(healthy, painter_of(model, healthy, folder=tmp_path))
    marked = 0
    for step in range(4):
        before, after = plain.batch(step), painted.batch(step)
        new = after.target[:, 1] > 0
        marked += int(new.flatten(1).any(1).sum())
        assert not before.target.any()
        assert bool((after.target[:, 0] <= after.target[:, 1]).all())
        if new.any():
            gain = (after.image - before.image)[:, 0][new]
            assert float(gain.median()) > 1.0
        # Far from what is marked, nothing changed.
        far = torch.nn.functional.max_pool3d(new[:, None].float(), 7, 1, 3)[:, 0] == 0
        assert torch.equal(after.image[:, 0][far], before.image[:, 0][far])
    assert marked >= 4


def test_a_batch_is_a_function_of_its_number(
    scans: list[LabelledScan], model: LesionModel, tmp_path: Path
) -> None:
    chosen = cases(scans[:3], lesions=True)
    first = sampler(chosen, painter_of(model, chosen, folder=tmp_path), noise=1.0, affine=1.0)
    again = sampler(chosen, painter_of(model, chosen, folder=tmp_path), noise=1.0, affine=1.0)
    _ = [first.batch(step) for step in range(3)]
    assert same(first.batch(3), again.batch(3))
    assert not same(first.batch(3), first.batch(4))


def test_without_painting_the_batches_are_those_of_before(
    scans: list[LabelledScan], model: LesionModel, tmp_path: Path
) -> None:
    chosen = cases(scans[:2], lesions=True)
    never = painter_of(model, chosen, folder=tmp_path, chance=0.0001)
    assert same(sampler(chosen, never).batch(0), sampler(chosen, None).batch(0))
    no_painter = make_painter(
        PaintSettings(chance=0.0), chosen, regions=REGIONS, channels=("flair", "t1c"),
        spacing_mm=SPACING, patch=(20, 20, 20), seed=0,
    )  # fmt: skip
    assert no_painter is None


def test_lesions_that_are_there_stay_as_they_are(
    scans: list[LabelledScan], model: LesionModel, tmp_path: Path
) -> None:
    chosen = cases(scans[:2], lesions=True)
    plain, painted = (
        sampler(chosen, None),
        sampler(chosen, painter_of(model, chosen, folder=tmp_path)),
    )
    for step in range(3):
        before, after = plain.batch(step), painted.batch(step)
        old = before.target[:, 1] > 0
        assert torch.equal(after.image[:, 0][old], before.image[:, 0][old])
        assert torch.equal(after.target[:, 0][old], before.target[:, 0][old])


@pytest.mark.parametrize("mode", ["regions", "classes"])
def test_lesions_are_learned_from_the_training_cases(mode: str, scans: list[LabelledScan]) -> None:
    chosen = cases(scans[:2], lesions=True, mode=mode)
    names = ("core", "whole") if mode == "regions" else ("core", "oedema")
    regions = RegionSettings(mode=mode, names=names)  # type: ignore[arg-type]
    painter = make_painter(
        PaintSettings(chance=1.0, learning=LEARNING, bank=2), chosen, regions=regions,
        channels=("flair", "t1c"), spacing_mm=SPACING, patch=(20, 20, 20), seed=0,
    )  # fmt: skip
    healthy = cases(scans[:2], lesions=False, mode=mode)
    assert painter is not None
    target = sampler(healthy, painter).batch(0).target
    if mode == "classes":
        assert torch.equal(target.sum(1), torch.ones_like(target[:, 0]))
    else:
        assert bool((target[:, 0] <= target[:, 1]).all())


@pytest.mark.parametrize(
    "changes",
    [{"patch": (20, 20)}, {"channels": ("t1", "t2")}, {"regions": RegionSettings(names=("spot",))}],
)
def test_lesions_that_do_not_fit_are_refused(
    changes: dict[str, object], scans: list[LabelledScan], model: LesionModel, tmp_path: Path
) -> None:
    model.save(tmp_path)
    options = {
        "regions": REGIONS, "channels": ("flair", "t1c"), "spacing_mm": SPACING,
        "patch": (20, 20, 20), "seed": 0, **changes,
    }  # fmt: skip
    with pytest.raises(ConfigError):
        make_painter(PaintSettings(lesions=tmp_path), cases(scans, lesions=True), **options)  # type: ignore[arg-type]
