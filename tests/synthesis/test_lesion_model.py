from pathlib import Path

import pytest
import torch

from medseg.data.regions import WHOLE_TUMOUR
from medseg.errors import ConfigError, DataError, ModelError
from medseg.seeding import torch_generator
from medseg.synthesis.copies import check_copies
from medseg.synthesis.drawing import correlation_to_voxels, smooth_normal
from medseg.synthesis.lesion_model import TURNS, LesionModel, LesionSettings, learn_lesions
from medseg.synthesis.lesions import LabelledScan, cut_lesions
from medseg.synthesis.painting import DrawnLesion


def same(first: list[DrawnLesion], second: list[DrawnLesion]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(
        torch.equal(a.levels, b.levels)
        and torch.equal(a.image, b.image)
        and a.half_side_mm == b.half_side_mm
        for a, b in pairs
    )


def test_same_generator_same_lesions_also_after_loading(model: LesionModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    loaded = LesionModel.load(tmp_path)
    drawn = [m.draw(3, generator=torch_generator(0)) for m in (model, model, loaded)]
    assert same(drawn[0], drawn[1])
    assert same(drawn[0], drawn[2])
    assert not same(drawn[0], model.draw(3, generator=torch_generator(1)))
    assert loaded.describe() == model.describe()


def test_drawn_lesions_are_like_the_learned_ones(model: LesionModel) -> None:
    drawn = model.draw(20, generator=torch_generator(5))
    shares = torch.tensor([float((d.levels[-1] > 0).float().mean()) for d in drawn])
    # Balls fill pi / 6 / 1.2^3 = .30 of their cube.
    assert 0.2 < float(shares.median()) < 0.42
    whole = torch.cat([d.image[0][d.levels[-1] > 0] for d in drawn])
    core = torch.cat([d.image[1][d.levels[0] > 0] for d in drawn])
    assert float(whole.median()) == pytest.approx(10, abs=2.5)
    assert float(core.median()) > 8.0
    sizes = [d.half_side_mm for d in drawn]
    assert min(model.half_sides_mm) * 0.6 < min(sizes) < max(sizes) < max(model.half_sides_mm) * 1.5


def test_the_wanted_size_is_given(model: LesionModel) -> None:
    (lesion,) = model.draw(1, generator=torch_generator(0), half_side_mm=25.0)
    assert lesion.half_side_mm == 25.0


def test_neighbours_of_a_smooth_field_are_correlated_as_asked() -> None:
    field = smooth_normal((40, 1, 12, 12, 12), correlation_to_voxels(0.7), torch_generator(0))
    assert float(field.std()) == pytest.approx(1.0, abs=0.03)
    found = float((field[..., 1:] * field[..., :-1]).mean())
    assert found == pytest.approx(0.7, abs=0.04)


def test_copies_are_found_out(model: LesionModel, scans: list[LabelledScan]) -> None:
    lesions = [
        lesion
        for scan in scans
        for lesion in cut_lesions(scan, labels=(4, 2), side=8, least_voxels=5)
    ]
    copied = [
        DrawnLesion(turned.parts - 0.5, turned.image, turned.half_side_mm)
        for turned in (lesion.turned(*TURNS[17]) for lesion in lesions)
    ]
    for check in check_copies(copied, lesions, turns=TURNS):
        assert check.median_sample == pytest.approx(0.0, abs=1e-3)
        assert check.median_item > 0.01
        assert check.share_nearer == 1.0
    assert [check.of for check in model.checks] == ["shape", "looks"]
    assert model.checks[1].least_sample > 0.0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"shape_kind": "vea"}, ConfigError),
        ({"shape_kind": "pca"}, ModelError),
        ({"looks_kind": "dbn"}, ModelError),
        ({"shape": {"latnet": 3}}, ConfigError),
        ({"side": 16, "shape_kind": "gmm"}, ConfigError),
        ({"least_voxels": 10_000}, DataError),
    ],
)
def test_what_cannot_be_learned_is_refused(
    options: dict[str, object], error: type[Exception], scans: list[LabelledScan]
) -> None:
    chosen = LesionSettings(**{"side": 8, **options})  # type: ignore[arg-type]
    with pytest.raises(error):
        learn_lesions(scans[:2], chosen, channels=("flair", "t1c"), definition=WHOLE_TUMOUR, seed=0)


def test_a_dbn_and_a_gan_can_be_used(scans: list[LabelledScan]) -> None:
    options = LesionSettings(
        side=8,
        shape_kind="dbn",
        shape={"hidden": (16, 8), "sample_sweeps": 4, "contrastive": {"fit": {"max_steps": 5}}},
        looks_kind="gan",
        looks={"channels": (4,), "fit": {"max_steps": 2, "batch_size": 4}, "reference": "samples"},
        most_items=12,
    )
    made = learn_lesions(
        scans[:3], options, channels=("flair", "t1c"), definition=WHOLE_TUMOUR, seed=0, check=False
    )
    (drawn,) = made.draw(1, generator=torch_generator(0))
    assert drawn.image.shape == (2, 8, 8, 8)
    assert bool((drawn.levels[-1] > 0).any())


def test_a_folder_without_lesions_is_refused(model: LesionModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lesions\.json"):
        LesionModel.load(tmp_path)
    model.save(tmp_path)
    (tmp_path / "lesions.json").write_text('{"format": "other"}', encoding="utf-8")
    with pytest.raises(ModelError, match="other"):
        LesionModel.load(tmp_path)
