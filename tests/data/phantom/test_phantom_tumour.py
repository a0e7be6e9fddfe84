from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.data.phantom.anatomy import mni_anatomy
from medseg.data.phantom.cohort import PhantomSettings, PhantomSource, plan_tumour
from medseg.data.phantom.deformation import draw_deformation
from medseg.data.phantom.presets import PRESETS
from medseg.data.phantom.subject import Subject, grow_subject
from medseg.data.phantom.tumour import ENHANCING, TumourPlan, paint_tumour
from medseg.scan import Case

SPACING_MM = 4.0


def grow(seed: int, preset: str = "source") -> tuple[Subject, TumourPlan]:
    anatomy, rng = mni_anatomy((SPACING_MM,) * 3), np.random.default_rng(seed)
    numbers = PRESETS[preset]
    drawn = draw_deformation(anatomy, numbers.anatomy, rng)
    plan, drawn = plan_tumour(anatomy, drawn, numbers, rng)
    return grow_subject(anatomy, drawn, numbers.anatomy, rng), plan


@pytest.fixture(scope="module")
def cohort() -> list[Case]:
    settings = PhantomSettings(disease="tumour", n_subjects=12, spacing_mm=SPACING_MM)
    return list(PhantomSource(settings))


def test_enhancement_shows_on_t1c_alone() -> None:
    subject, plan = grow(1)
    bare = replace(plan, enhancing_share=0.0)
    lesions = PRESETS["source"].lesions
    bright, dull = (
        paint_tumour(subject, chosen, lesions, np.random.default_rng(5))
        for chosen in (replace(plan, enhancing_share=0.9, high_grade=True), bare)
    )
    assert int((bright.label == ENHANCING).sum()) > 10
    assert int((dull.label == ENHANCING).sum()) == 0
    enhancing = bright.layers[-1]
    assert set(enhancing.add) == {"t1c"}
    assert not enhancing.replace
    assert float(enhancing.share[bright.label == ENHANCING].mean()) > 0.4


def test_t1c_tells_the_rim_apart_and_t1_does_not() -> None:
    settings = PhantomSettings(
        disease="tumour", n_subjects=6, spacing_mm=SPACING_MM, modalities=("t1", "t1c", "flair")
    )
    difference = []
    for case in PhantomSource(settings):
        assert case.label is not None
        rim = case.label.data == 4
        if int(rim.sum()) < 15:
            continue
        t1, t1c = case.scans["t1"].data, case.scans["t1c"].data
        difference.append(float(t1c[rim].mean() - t1[rim].mean()))
    assert len(difference) >= 3
    assert min(difference) > 0.1


def test_oedema_prefers_white_matter() -> None:
    preference = []
    for seed in range(4):
        subject, plan = grow(seed)
        lesions = PRESETS["source"].lesions
        label = paint_tumour(subject, plan, lesions, np.random.default_rng(seed)).label
        wet = label == 2
        white, cortex = subject.tissue("white"), subject.tissue("cortex")
        preference.append(float(white[wet].mean() / cortex[wet].mean()))
    overall = float(white[subject.brain].mean() / cortex[subject.brain].mean())
    assert float(np.median(preference)) > 2.0 * overall


def test_some_tumours_do_not_enhance_and_some_have_two_foci() -> None:
    anatomy, numbers = mni_anatomy((6.0, 6.0, 6.0)), PRESETS["source"]
    drawn = draw_deformation(anatomy, numbers.anatomy, np.random.default_rng(0))
    plans = [
        plan_tumour(anatomy, drawn, numbers, np.random.default_rng(seed))[0] for seed in range(60)
    ]
    assert 0.02 < np.mean([plan.enhancing_share == 0.0 for plan in plans]) < 0.3
    assert 0.04 < np.mean([len(plan.foci) == 2 for plan in plans]) < 0.35
    assert all(0.0 < push.strength < 1.0 for plan in plans for push in plan.pushes())


def test_volumes_are_those_of_gliomas(cohort: list[Case]) -> None:
    cores = [case.label.volume_ml((1, 3, 4)) for case in cohort if case.label]
    wholes = [case.label.volume_ml((1, 2, 3, 4)) for case in cohort if case.label]
    assert len(cores) == 12
    assert 12 < np.median(cores) < 80
    assert 30 < np.median(wholes) < 180
    assert min(wholes) > 3
    assert max(wholes) < 420


def dice(found: torch.Tensor, truth: torch.Tensor) -> float:
    return 2.0 * float((found & truth).sum()) / max(float(found.sum() + truth.sum()), 1.0)


def best_threshold_dice(cases: list[Case], labels: tuple[int, ...]) -> float:
    """Return the mean DSC of the one threshold on z-scored FLAIR that suits the cohort best."""
    thresholds = torch.arange(-1.0, 4.0, 0.1)
    scores = torch.zeros(len(cases), len(thresholds))
    for row, case in enumerate(cases):
        assert case.label is not None
        assert case.brain is not None
        brain = case.brain.data > 0
        flair = case.scans["flair"].data
        flair = (flair - flair[brain].mean()) / flair[brain].std()
        truth = torch.isin(case.label.data, torch.tensor(labels, dtype=torch.uint8))
        for column, threshold in enumerate(thresholds):
            scores[row, column] = dice((flair > threshold) & brain, truth)
    return float(scores.mean(dim=0).max())


def test_one_flair_threshold_finds_the_tumour_but_not_its_core(cohort: list[Case]) -> None:
    whole = best_threshold_dice(cohort, (1, 2, 3, 4))
    core = best_threshold_dice(cohort, (1, 3, 4))
    assert whole > 0.55
    assert core < 0.65
    assert core < whole - 0.1
