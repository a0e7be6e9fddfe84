from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medseg.data.regions import MS_LESION, WHOLE_TUMOUR, RegionSettings
from medseg.data.sources.brats import BratsSettings, BratsSource
from medseg.data.training_set import (
    AugmentSettings,
    Batch,
    PatchSampler,
    PatchSettings,
    TrainingCase,
    cases_sha256,
    make_training_case,
)
from medseg.errors import DataError, ShapeError
from medseg.geometry import Grid
from medseg.preprocess.prepare import PreparedCase, PreprocessSettings, prepare
from medseg.seeding import torch_generator

PLAIN = AugmentSettings(enabled=False)
STRONG = AugmentSettings(
    affine=1, elastic=1, intensity=1, noise=1, bias=1, resolution=1, modality_dropout=0.3
)


def make_case(
    name: str,
    *,
    shape: tuple[int, int, int] = (20, 22, 18),
    present: tuple[bool, bool] = (True, True),
    known: tuple[bool, bool] = (True, True),
) -> TrainingCase:
    brain = torch.zeros(shape, dtype=torch.bool)
    brain[2:-2, 2:-2, 2:-2] = True
    target = torch.zeros(2, *shape)
    target[0, 4:6, 4:6, 4:6] = 1
    target[1, 3:9, 3:9, 3:9] = 1
    image = torch.randn(2, *shape, generator=torch_generator(0, name)) * brain
    image = image * torch.tensor(present).view(2, 1, 1, 1)
    target = target * torch.tensor(known).view(2, 1, 1, 1)
    return TrainingCase(
        name, name, image, torch.tensor(present), target, torch.tensor(known), brain
    )


def sampler(
    cases: list[TrainingCase],
    *,
    size: tuple[int, ...] = (12, 12, 12),
    batch_size: int = 2,
    lesion_fraction: float = 0.5,
    augment: AugmentSettings = PLAIN,
    seed: int = 0,
) -> PatchSampler:
    patch = PatchSettings(size=size, batch_size=batch_size, lesion_fraction=lesion_fraction)
    return PatchSampler(cases, patch=patch, augment=augment, seed=seed)


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.image, other.image)
        and torch.equal(one.target, other.target)
        and torch.equal(one.known, other.known)
    )


def test_the_hash_of_cases_is_of_all_that_a_training_sees() -> None:
    a, b = make_case("a"), make_case("b")
    assert cases_sha256([a, b]) == cases_sha256([make_case("a"), make_case("b")])
    brain, target, image = a.brain.clone(), a.target.clone(), a.image.clone()
    brain[5, 5, 5] = False
    target[0, 7, 7, 7] = 1
    image[1, 9, 9, 9] += 1e-3
    others = [
        replace(a, **change)
        for change in (
            {"identifier": "c"},
            {"subject": "c"},
            {"brain": brain},
            {"target": target},
            {"image": image},
            {"known": torch.tensor([True, False])},
            {"present": torch.tensor([True, False])},
        )
    ]
    found = {cases_sha256(some) for some in ([a, b], [b, a], [a], *([one, b] for one in others))}
    assert len(found) == 3 + len(others)


def test_batch_depends_on_seed_and_step_alone() -> None:
    cases = [make_case("a"), make_case("b"), make_case("c")]
    first = sampler(cases, augment=STRONG)
    in_order = [first.batch(step) for step in range(6)]
    state = torch.get_rng_state()
    resumed = sampler(cases, augment=STRONG)
    for step in (4, 1, 5):
        assert same(resumed.batch(step), in_order[step])
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(in_order[0], in_order[3])
    assert not same(sampler(cases, augment=STRONG, seed=1).batch(0), in_order[0])


@pytest.mark.parametrize("size", [(12, 10, 8), (12, 10), (40, 10, 30), (40, 30)])
@pytest.mark.parametrize("augment", [PLAIN, STRONG])
def test_shapes(size: tuple[int, ...], augment: AugmentSettings) -> None:
    batch = sampler([make_case("a")], size=size, batch_size=3, augment=augment).batch(0)
    assert batch.image.shape == (3, 2, *size)
    assert batch.target.shape == (3, 2, *size)
    assert batch.known.shape == (3, 2)
    assert batch.image.dtype == batch.target.dtype == torch.float32
    assert batch.known.dtype == torch.bool
    assert set(batch.target.unique().tolist()) <= {0.0, 1.0}


def test_patch_larger_than_the_volume_holds_all_of_it() -> None:
    case = make_case("a", shape=(9, 10, 11))
    batch = sampler([case], size=(16, 16, 16), batch_size=1).batch(0)
    assert torch.equal(batch.image[0, :, 3:12, 3:13, 2:13], case.image)
    assert float(batch.image.abs().sum()) == pytest.approx(float(case.image.abs().sum()), rel=1e-5)
    assert float(batch.target.sum()) == float(case.target.sum())


def test_slices_are_axial() -> None:
    case = make_case("a")
    batch = sampler([case], size=(20, 22), batch_size=4, lesion_fraction=1).batch(0)
    planes = case.image.movedim(3, 0)
    for image, target in zip(batch.image, batch.target, strict=True):
        matches = [z for z in range(18) if torch.equal(planes[z], image)]
        assert len(matches) == 1
        assert torch.equal(target, case.target[..., matches[0]])
        assert target.any()


def test_lesion_fraction() -> None:
    cases = [make_case("a", shape=(60, 60, 60))]
    for fraction in (0.0, 0.5, 1.0):
        patches = sampler(cases, size=(8, 8, 8), batch_size=200, lesion_fraction=fraction)
        found = patches.batch(0).target.flatten(1).any(1).float().mean().item()
        assert found == pytest.approx(fraction, abs=0.12)


def test_each_case_once_per_round() -> None:
    patches = sampler([make_case(name) for name in "abcde"], batch_size=2)
    turns = [index for step in range(10) for index in patches.case_indices(step)]
    for start in range(0, 20, 5):
        assert sorted(turns[start : start + 5]) == [0, 1, 2, 3, 4]
    assert turns[:5] != turns[5:10] or turns[5:10] != turns[10:15]


def test_outside_the_brain_and_absent_channels_stay_zero() -> None:
    case = make_case("a", present=(True, False))
    batch = sampler([case], size=(40, 40, 40), batch_size=4, augment=STRONG).batch(0)
    assert batch.image[:, 0].any()
    assert not batch.image[:, 1].any()
    assert not batch.image[:, :, :4].any()


def test_unknown_regions_stay_unknown() -> None:
    cases = [make_case("a", known=(False, True))]
    batch = sampler(cases, augment=STRONG, lesion_fraction=1).batch(0)
    assert batch.known.tolist() == [[False, True]] * 2
    assert not batch.target[:, 0].any()
    assert batch.target[:, 1].any()


def test_modality_dropout_keeps_one_channel() -> None:
    augment = AugmentSettings(
        flip=0, affine=0, elastic=0, intensity=0, noise=0, bias=0, resolution=0,
        modality_dropout=0.5,
    )  # fmt: skip
    batch = sampler([make_case("a")], batch_size=60, lesion_fraction=1, augment=augment).batch(0)
    present = batch.image.flatten(2).any(2)
    assert present.any(1).all()
    assert (~present).any(1).float().mean().item() == pytest.approx(0.75, abs=0.15)


def test_case_is_not_changed_by_sampling() -> None:
    case = make_case("a")
    before = (case.image.clone(), case.target.clone())
    patches = sampler([case], size=(20, 22, 18), augment=STRONG)
    for step in range(4):
        patches.batch(step).image.zero_()
    assert torch.equal(case.image, before[0])
    assert torch.equal(case.target, before[1])


def test_background_of_classes_is_no_lesion() -> None:
    prepared = _prepared(torch.zeros(20, 20, 20, dtype=torch.uint8))
    prepared.label[3, 3, 3] = 1  # type: ignore[index]
    regions = RegionSettings(mode="classes", names=("lesion",))
    case = make_training_case(prepared, regions=regions, definition=MS_LESION)
    assert case.has_background
    batch = sampler([case], size=(6, 6, 6), batch_size=30, lesion_fraction=1).batch(0)
    assert batch.target[:, 1].flatten(1).any(1).all()


def _prepared(label: torch.Tensor | None) -> PreparedCase:
    grid = Grid((20, 20, 20), np.eye(4))
    brain = torch.ones(20, 20, 20, dtype=torch.bool)
    return PreparedCase(
        identifier="p1",
        subject="p",
        image=torch.randn(1, 20, 20, 20, generator=torch_generator(0)),
        present=torch.tensor([True]),
        label=label,
        brain=brain,
        grid=grid,
        source_grid=grid,
    )


def test_refusals() -> None:
    regions = RegionSettings(names=("lesion",))
    with pytest.raises(DataError, match="'p1' has none"):
        make_training_case(_prepared(None), regions=regions, definition=MS_LESION)
    with pytest.raises(DataError, match="0 cases"):
        sampler([])
    one_region = make_training_case(
        _prepared(torch.ones(20, 20, 20, dtype=torch.uint8)), regions=regions, definition=MS_LESION
    )
    with pytest.raises(DataError, match=r"\(1, 1\), \(2, 2\)"):
        sampler([make_case("a"), one_region])
    good = make_case("a")
    with pytest.raises(ShapeError, match="image of case 'x'"):
        TrainingCase("x", "x", good.image[:1], good.present, good.target, good.known, good.brain)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        PatchSettings(size=(0, 4))
    with pytest.raises(ValidationError):
        PatchSettings(size=(4,))
    with pytest.raises(ValidationError):
        AugmentSettings(flip=1.5)


def test_real_tumour_becomes_patches(shared_data: Path) -> None:
    case = BratsSource(
        BratsSettings(root=shared_data / "tumour_brats2013", label_convention="1234")
    )[0]
    prepared = prepare(
        case, channels=("flair", "t1c"), settings=PreprocessSettings(spacing_mm=(4.0, 4.0, 4.0))
    )
    regions = RegionSettings(names=("core", "whole"))
    trained = make_training_case(prepared, regions=regions, definition=WHOLE_TUMOUR)
    core, whole = trained.target
    assert bool((core <= whole).all())
    assert 0 < core.sum() < whole.sum()
    batch = sampler([trained], size=(16, 16, 16), batch_size=8, lesion_fraction=1).batch(0)
    assert batch.target[:, 1].flatten(1).any(1).all()
    assert batch.image.std() > 0.3
