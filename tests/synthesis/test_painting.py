import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.data.phantom.cohort import PhantomSettings, PhantomSource
from medseg.preprocess.brain import brain_mask
from medseg.seeding import torch_generator
from medseg.synthesis.painting import DrawnLesion, paint_lesion
from medseg.synthesis.placing import draw_place, white_matter_weight

NORMAL = (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0]))


def ball(radius: float = 0.8) -> DrawnLesion:
    axes = [torch.linspace(-15 / 16, 15 / 16, 16)] * 3
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
    levels = torch.stack([radius / 2 - distance, radius - distance])
    return DrawnLesion(levels, torch.full((2, 16, 16, 16), 3.0), half_side_mm=8.0)


def paint(**changes: object):
    options = {
        "labels": (4, 2),
        "centre": torch.tensor([10.0, 11.0, 9.0]),
        "allowed": torch.ones(20, 20, 20, dtype=torch.bool),
        "normal": NORMAL,
        "spacing_mm": (1.0, 1.0, 1.0),
        **changes,
    }
    return paint_lesion(torch.zeros(2, 20, 20, 20), ball(), **options)  # type: ignore[arg-type]


def test_a_painted_ball_has_its_volume_place_and_grey_value() -> None:
    painted = paint()
    expected = 4 / 3 * torch.pi * (0.8 * 8) ** 3
    assert float((painted.label > 0).sum()) == pytest.approx(expected, rel=0.05)
    places = torch.nonzero(painted.label).float()
    assert places.mean(0).tolist() == pytest.approx([10, 11, 9], abs=0.2)
    assert painted.image[:, 10, 11, 9].tolist() == pytest.approx([3 * 2 + 1, 3 * 1 + 2], abs=1e-4)
    assert int(painted.label[10, 11, 9]) == 4
    assert int(painted.label[10, 11, 4]) == 2
    assert painted.share == 1.0


def test_voxels_of_another_size_hold_the_same_millimetres() -> None:
    coarse = paint(spacing_mm=(2.0, 1.0, 1.0))
    ratio = float((paint().label > 0).sum()) / float((coarse.label > 0).sum())
    assert ratio == pytest.approx(2.0, rel=0.1)


@given(st.integers(0, 500))
def test_nothing_changes_where_it_may_not(seed: int) -> None:
    generator = torch_generator(seed)
    allowed = torch.rand(20, 20, 20, generator=generator) > 0.4
    centre = torch.rand(3, generator=generator) * 19
    painted = paint(allowed=allowed, centre=centre)
    assert not painted.label[~allowed].any()
    assert not painted.image[:, ~allowed].any()
    assert bool((painted.image[0][painted.label > 0] > 0).all())


def test_the_border_is_blended() -> None:
    line = paint().image[0, 10, :, 9]
    values = line[line > 1e-3]
    partial = (values > 0.02) & (values < 0.95 * float(values.max()))
    assert int(partial.sum()) >= 2


def test_places_follow_the_weight() -> None:
    weight = torch.zeros(4, 4, 4)
    assert draw_place(weight, torch_generator(0)) is None
    weight[1, 2, 3], weight[0, 0, 0] = 3.0, 1.0
    generator = torch_generator(0)
    drawn = [draw_place(weight, generator) for _ in range(400)]
    hits = sum(place is not None and place.tolist() == [1, 2, 3] for place in drawn)
    assert hits / 400 == pytest.approx(0.75, abs=0.07)


def test_white_matter_is_preferred_without_a_label_map() -> None:
    settings = PhantomSettings(disease="healthy", preset="target", spacing_mm=4.0, n_subjects=1)
    source = PhantomSource(settings)
    case, white = source[0], source.white_matter(0)
    brain = brain_mask(case).data > 0
    image = torch.stack([scan.data for scan in case.scans.values()])
    weight = white_matter_weight(image, brain, brain, (4.0, 4.0, 4.0))
    assert not weight[~brain].any()
    chosen = float((weight * white).sum() / weight.sum())
    everywhere = float(white[brain].mean())
    assert chosen > 1.5 * everywhere
    nowhere = torch.zeros_like(brain)
    assert not white_matter_weight(image, brain, nowhere, (4.0, 4.0, 4.0)).any()
