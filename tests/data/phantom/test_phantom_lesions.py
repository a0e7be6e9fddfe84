import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.data.phantom.anatomy import mni_anatomy
from medseg.data.phantom.blobs import Density, draw_blob
from medseg.data.phantom.contrast import rician
from medseg.data.phantom.deformation import draw_deformation
from medseg.data.phantom.fields import axis_grid, voxel_points
from medseg.data.phantom.ms_lesions import draw_lesions, make_disease, paint_lesions
from medseg.data.phantom.presets import PRESETS
from medseg.data.phantom.subject import Subject, grow_subject


@pytest.fixture(scope="module")
def subject() -> Subject:
    anatomy, rng = mni_anatomy((4.0, 4.0, 4.0)), np.random.default_rng(0)
    numbers = PRESETS["source"].anatomy
    return grow_subject(anatomy, draw_deformation(anatomy, numbers, rng), numbers, rng)


def test_a_subject_keeps_shares_that_add_up(subject: Subject) -> None:
    total = subject.tissues.sum(dim=0)
    torch.testing.assert_close(total, torch.ones_like(total))
    brain_ml = float(subject.brain.sum()) * subject.grid.voxel_volume_mm3 / 1000.0
    assert 900 < brain_ml < 2300


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_subjects_have_5_to_60_lesions_of_every_kind(subject: Subject, preset: str) -> None:
    numbers, seen = PRESETS[preset].lesions, set()
    counts = []
    for seed in range(12):
        lesions = draw_lesions(subject, numbers, np.random.default_rng(seed))
        counts.append(len(lesions))
        seen |= {lesion.place for lesion in lesions}
    assert min(counts) >= 5
    assert max(counts) <= 60
    assert max(counts) - min(counts) > 20
    assert seen == {"periventricular", "deep", "cortical", "infratentorial"}


def test_lesions_lie_in_tissue_and_are_not_more_than_drawn(subject: Subject) -> None:
    rng = np.random.default_rng(3)
    lesions = draw_lesions(subject, PRESETS["source"].lesions, rng)
    share = paint_lesions(subject, lesions, rng)
    disease = make_disease(subject, share, PRESETS["source"].lesions, rng)
    inside = disease.label > 0
    assert 0 < ndimage.label(inside.numpy(), structure=np.ones((3, 3, 3)))[1] <= len(lesions)
    assert float(subject.fluid()[inside].mean()) < 0.3
    assert bool(subject.brain[inside].all())


def test_a_faint_share_still_gives_a_label(subject: Subject) -> None:
    share = torch.zeros(subject.grid.shape)
    middle = tuple(length // 2 for length in subject.grid.shape)
    share[middle] = 0.2
    disease = make_disease(subject, share, PRESETS["source"].lesions, np.random.default_rng(0))
    assert int(disease.label.sum()) == 1


@pytest.mark.parametrize("family", ["noise", "metaballs"])
def test_a_blob_has_about_the_volume_of_its_ball(family: str) -> None:
    grid = axis_grid(np.full(3, -40.0), np.full(3, 40.0), (2.0, 2.0, 2.0))
    points, ratios = voxel_points(grid), []
    for seed in range(10):
        blob = draw_blob(
            centre_mm=(0.0, 0.0, 0.0),
            radius_mm=14.0,
            family=family,  # type: ignore[arg-type]
            elongation=0.2,
            rng=np.random.default_rng(seed),
        )
        volume = float((blob.level_mm(points, torch.zeros(grid.shape)) < 0).sum()) * 8.0
        ratios.append(volume / (4.0 / 3.0 * np.pi * 14.0**3))
    assert 0.5 < float(np.mean(ratios)) < 1.6


def test_places_follow_the_density() -> None:
    grid = axis_grid(np.zeros(3), np.full(3, 4.0), (1.0, 1.0, 1.0))
    weight = torch.zeros(grid.shape)
    weight[0, 0, 0], weight[3, 3, 3] = 1.0, 3.0
    density, rng = Density(weight, grid), np.random.default_rng(0)
    high = [place[0] > 2.0 for place in (density.draw(rng) for _ in range(400)) if place]
    assert np.mean(high) == pytest.approx(0.75, abs=0.08)
    assert Density(torch.zeros(grid.shape), grid).draw(rng) is None


def test_rician_noise_has_the_second_moment_of_theory() -> None:
    signal = torch.full((40, 40, 40), 0.5)
    noisy = rician(signal, std=0.2, rng=np.random.default_rng(0))
    # E[m^2] = a^2 + 2 s^2 for signal a and standard deviation s.
    assert float(noisy.square().mean()) == pytest.approx(0.25 + 2 * 0.04, rel=0.02)
    assert float(noisy.min()) >= 0.0
