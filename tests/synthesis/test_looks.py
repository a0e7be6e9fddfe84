"""Scans in the looks of others: laws of the map between intensities, part by part."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medseg.data.training_set import TrainingCase
from medseg.errors import DataError
from medseg.seeding import torch_generator
from medseg.synthesis.looks import TargetLooks, looks_of, parts_of

SIDE = 16


def scan(
    seed: int,
    *,
    core: bool = True,
    known: tuple[bool, ...] = (True, True),
    present: tuple[bool, ...] = (True, True),
    scale: float = 1.0,
) -> TrainingCase:
    """Return a scan whose parts have normal intensities of their own."""
    generator = torch_generator(seed, "scan")
    place = torch.arange(SIDE).float() - SIDE / 2 + 0.5
    radius = (place[:, None, None] ** 2 + place[:, None] ** 2 + place**2).sqrt()
    brain, whole = radius < 7.5, radius < 5
    target = torch.stack([(radius < 3) & core, whole]).float()
    means = torch.rand(2, 3, generator=generator) * 4
    part = target.sum(0).long()
    image = scale * (means[:, part] + torch.randn(2, *part.shape, generator=generator)) * brain
    return TrainingCase(
        identifier=f"scan {seed}",
        subject=str(seed),
        image=image * torch.tensor(present).view(2, 1, 1, 1),
        present=torch.tensor(present),
        target=target * torch.tensor(known).view(2, 1, 1, 1),
        known=torch.tensor(known),
        brain=brain,
    )


def changed(case: TrainingCase, targets: list[TrainingCase], seed: int = 0) -> Tensor:
    """Return the whole scan in the looks of one of ``targets``; its masks must stay."""
    image, target = TargetLooks([case], targets)(
        case, case.image, case.target, case.brain, torch_generator(seed, "draw")
    )
    assert torch.equal(target, case.target)
    return image


def parts(case: TrainingCase) -> Tensor:
    return parts_of(case.target, case.known, case.brain, has_background=False)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 50))
def test_a_part_gets_the_distribution_of_the_targets_and_keeps_its_ranks(
    seed: int, scale: float
) -> None:
    case, other = scan(seed), scan(seed + 1, scale=scale)
    image = changed(case, [other])
    assert torch.equal(image[:, ~case.brain], case.image[:, ~case.brain])
    for part in (0, 2, 3):
        mine, theirs = parts(case) == part, parts(other) == part
        for channel in range(2):
            got = image[channel][mine].numpy()
            wanted = other.image[channel][theirs].numpy()
            levels = np.linspace(0, 1, 21)
            gap = np.quantile(got, levels) - np.quantile(wanted, levels)
            assert np.abs(gap).max() <= 0.05 * np.ptp(wanted)
            order = np.argsort(case.image[channel][mine].numpy(), kind="stable")
            assert bool((np.diff(got[order]) >= 0).all())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_own_looks_change_nothing_and_there_and_back_is_where_it_was(seed: int) -> None:
    case, other = scan(seed), scan(seed + 1)
    torch.testing.assert_close(changed(case, [case]), case.image, rtol=0, atol=1e-5)
    there = replace(case, image=changed(case, [other]))
    # Percentiles of what was changed lie between its voxels, hence a little off in the tails.
    gap = (changed(there, [case]) - case.image).abs()[:, case.brain]
    assert float(gap.mean()) < 0.01
    assert float(gap.quantile(0.98)) < 0.05


def test_equal_voxels_stay_equal_at_the_mean_of_their_ranks() -> None:
    case, other = scan(0), scan(1)
    flat = replace(case, image=torch.where(case.target[1] > 0.5, 3.0, case.image))
    levels = replace(case, image=case.image.round())
    for part in (2, 3):
        mine, theirs = parts(case) == part, other.image[:, parts(other) == part]
        found = changed(flat, [other])[:, mine]
        assert bool((found == found[:, :1]).all())
        torch.testing.assert_close(found[:, 0], theirs.median(1).values, rtol=0, atol=0.3)
        mean = changed(levels, [other])[:, mine].mean(1)
        torch.testing.assert_close(mean, theirs.mean(1), rtol=0, atol=0.1)


def test_a_patch_is_changed_as_its_scan_is() -> None:
    case, other = scan(0), scan(1)
    looks = TargetLooks([case], [other])
    box = (slice(2, 10), slice(3, 11), slice(5, 13))
    patch, _ = looks(
        case,
        case.image[:, *box],
        case.target[:, *box],
        case.brain[box],
        torch_generator(0, "draw"),
    )
    assert torch.equal(patch, changed(case, [other])[:, *box])


def test_every_target_lends_its_looks_and_the_generator_alone_decides() -> None:
    case, targets = scan(0), [scan(seed) for seed in (1, 2, 3)]
    single = [changed(case, [target]) for target in targets]
    drawn = [changed(case, targets, seed=seed) for seed in range(30)]
    found = [[torch.equal(image, one) for one in single].index(True) for image in drawn]
    assert set(found) == {0, 1, 2}
    assert all(torch.equal(changed(case, targets, seed=s), drawn[s]) for s in range(3))


def test_a_part_that_one_target_lacks_comes_from_another_or_stays() -> None:
    case, without = scan(0), scan(1, core=False)
    core = parts(case) == 3
    alone = changed(case, [without])
    assert torch.equal(alone[:, core], case.image[:, core])
    assert not torch.equal(alone[:, ~core], case.image[:, ~core])
    other = scan(2)
    for seed in range(5):
        both = changed(case, [without, other], seed=seed)
        assert torch.equal(both[:, core], changed(case, [other])[:, core])


def test_channels_that_either_lacks_stay() -> None:
    case, other = scan(0, present=(True, False)), scan(1)
    assert bool((changed(case, [other])[1] == 0).all())
    whole, lacking = scan(0), scan(1, present=(True, False))
    image = changed(whole, [lacking])
    assert torch.equal(image[1], whole.image[1])
    assert not torch.equal(image[0], whole.image[0])


def test_an_unknown_region_makes_no_part() -> None:
    case = scan(0, known=(False, True))
    assert set(parts(case).unique().tolist()) == {-1, 0, 2}
    assert set(looks_of(scan(1), case.known)) == {0, 2}
    other = scan(1)
    image = changed(case, [other])
    levels, inside = np.linspace(0, 1, 21), parts(case) == 2
    wanted = other.image[0][other.target[1] > 0.5]
    gap = np.quantile(image[0][inside], levels) - np.quantile(wanted, levels)
    assert np.abs(gap).max() <= 0.05 * float(wanted.max() - wanted.min())


def test_the_background_class_is_no_region() -> None:
    target = torch.zeros(3, 1, 1, 4)
    target[0, ..., :2] = target[1, ..., 2] = target[2, ..., 3] = 1
    brain = torch.tensor([False, True, True, True]).view(1, 1, 4)
    found = parts_of(target, torch.ones(3, dtype=torch.bool), brain, has_background=True)
    assert found.flatten().tolist() == [-1, 0, 1, 2]


def test_looks_need_a_target_that_knows_the_regions() -> None:
    with pytest.raises(DataError, match="there are none"):
        TargetLooks([scan(0)], [])
    with pytest.raises(DataError, match="scan 0"):
        TargetLooks([scan(0)], [scan(1, known=(False, True))])
