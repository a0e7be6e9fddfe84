"""A prediction by every engine and profile, on little memory, and on input that is odd."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medseg.data.regions import RegionSettings, decode
from medseg.errors import ConfigError, ScanError
from medseg.geometry import Grid
from medseg.inference import compute
from medseg.inference.compute import EXAMPLE_SIDE, engine_for, example_of
from medseg.inference.engines.auto import ChosenEngine
from medseg.inference.engines.eager import EagerEngine
from medseg.inference.engines.engine import EngineChoice
from medseg.inference.model import Model, ModelSpec, build_network, load_model
from medseg.inference.plan import plan_prediction, predict_image
from medseg.inference.predict import SourceMaps, _decided, predict_case
from medseg.inference.settings import PredictSettings
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings, prepare
from medseg.scan import Case, LabelMap, Scan
from medseg.variational.settings import VariationalSettings

IMAGE = torch.randn(2, 20, 18, 12, generator=torch.Generator().manual_seed(4))


def model(*, variational: bool = False, mode: str = "regions", dims: int = 3) -> Model:
    names = ("core", "whole") if mode == "regions" else ("whole",)
    spec = ModelSpec(
        architecture=UNetSettings(
            dims=dims, in_channels=2, out_channels=2, widths=(4, 6), bias=True
        ),  # type: ignore[arg-type]
        channels=("flair", "t1c"),
        regions=RegionSettings(mode=mode, names=names),  # type: ignore[arg-type]
        region_definition={name: (1,) for name in names},
        preprocess=PreprocessSettings(spacing_mm=None),
        variational=VariationalSettings(relative_std=0.3) if variational else None,
        method="test",
    )
    return Model(build_network(spec).eval(), spec)


def predict(chosen: Model, **settings: object) -> Tensor:
    asked = PredictSettings(**{"device": "cpu", "precision": "float32", **settings})  # type: ignore[arg-type]
    return torch.stack(list(predict_image(chosen, IMAGE, settings=asked)))


# --- engines and profiles -------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("engine", ["auto", "eager", "torch"])
def test_engines_say_what_the_network_says(engine: str, dims: int) -> None:
    chosen = model(dims=dims)
    images = IMAGE[None] if dims == 3 else IMAGE.permute(3, 0, 1, 2)
    with torch.no_grad():
        expected = chosen.network(images).sigmoid()
    expected = expected[0] if dims == 3 else expected.permute(1, 2, 3, 0)
    found = predict(chosen, engine=engine)
    assert found.shape == (1, 2, *IMAGE.shape[1:])
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("profile", ["fast", "default", "best"])
def test_an_image_that_fits_is_the_same_in_every_profile(profile: str) -> None:
    chosen = model()
    exact = predict(chosen, engine="eager", profile="best")
    torch.testing.assert_close(predict(chosen, profile=profile), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("mode", ["regions", "classes"])
@pytest.mark.parametrize("profile", ["fast", "default"])
def test_the_margin_of_the_brain_is_not_looked_at(profile: str, mode: str, samples: int) -> None:
    chosen = model(mode=mode, variational=samples > 1)
    box = (slice(None), slice(None), slice(3, 17), slice(2, 15), slice(4, 9))
    image = torch.zeros_like(IMAGE)
    image[box[1:]] = IMAGE[box[1:]]
    settings = PredictSettings(device="cpu", engine="eager", profile=profile, samples=samples)  # type: ignore[arg-type]
    found = torch.stack(list(predict_image(chosen, image, settings=settings)))
    alone = torch.stack(list(predict_image(chosen, IMAGE[box[1:]], settings=settings)))
    assert found.shape == (samples, 2, *IMAGE.shape[1:])
    assert torch.equal(found[box], alone)
    found[box] = 0
    assert found[:, 1].max() == 0
    assert set(found[:, 0].unique().tolist()) == ({0.0, 1.0} if mode == "classes" else {0.0})


def test_fast_takes_an_image_of_zeros_as_any_other() -> None:
    settings = PredictSettings(device="cpu", profile="fast")
    (found,) = predict_image(model(), torch.zeros_like(IMAGE), settings=settings)
    assert found.shape == (2, *IMAGE.shape[1:])


def test_best_takes_the_reference_unless_an_engine_is_named() -> None:
    best = compute.with_profile(PredictSettings(profile="best", engine="auto"))
    assert (best.engine, best.precision) == ("eager", "float32")
    named = compute.with_profile(PredictSettings(profile="best", engine="onnx"))
    assert (named.engine, named.precision) == ("onnx", "float32")
    plain = PredictSettings(engine="auto", precision="bf16")
    assert compute.with_profile(plain) == plain


def test_an_engine_is_made_once_and_again_for_other_weights() -> None:
    chosen, settings = model(), PredictSettings(device="cpu", precision="float32")
    first = engine_for(chosen, IMAGE, settings=settings)
    assert first is not None
    assert engine_for(chosen, IMAGE, settings=settings) is first
    with torch.no_grad():
        next(chosen.network.parameters()).mul_(2)
    assert engine_for(chosen, IMAGE, settings=settings) is not first


def test_samples_of_a_posterior_need_no_engine() -> None:
    chosen = model(variational=True)
    settings = PredictSettings(device="cpu", samples=3, engine="auto")
    assert engine_for(chosen, IMAGE, settings=settings) is None
    assert len(predict(chosen, engine="auto", samples=3)) == 3


def test_the_mean_weights_of_focused_samples_have_an_engine() -> None:
    chosen = model(variational=True)
    settings = PredictSettings(device="cpu", samples=3, posterior="focused", engine="torch")
    assert engine_for(chosen, IMAGE, settings=settings) is not None
    quick = predict(chosen, engine="torch", samples=3, posterior="focused")
    exact = predict(chosen, engine="eager", samples=3, posterior="focused")
    torch.testing.assert_close(quick, exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("profile", ["fast", "default"])
def test_auto_searches_where_it_pays_and_allows_int8_only_to_fast(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model().save(tmp_path)
    chosen, asked = load_model(tmp_path), []

    def choose(network: nn.Module, **wanted: object) -> ChosenEngine:
        asked.append(wanted)
        return ChosenEngine(EagerEngine(network), EngineChoice(name="eager"), ())

    monkeypatch.setattr(compute, "choose_engine", choose)
    predict(chosen, engine="auto", profile=profile)
    assert asked == []
    chosen.engines.clear()
    monkeypatch.setattr(compute, "WORTH_MULTIPLICATIONS", 0)
    predict(chosen, engine="auto", profile=profile, precision="auto")
    predict(chosen, engine="auto", profile=profile, precision="auto")
    (wanted,) = asked
    assert wanted["allow_int8"] == (profile == "fast")
    # Beside the model, and so never beside the scans.
    assert wanted["cache"] == tmp_path / "engines"


@pytest.mark.parametrize("dims", [2, 3])
def test_multiplications_are_counted_by_level(dims: int) -> None:
    network = model(dims=dims).network
    taps, fewer = 3**dims, 2**dims
    # Down 2-4-4 and 4-6-6, up a projection 6-4 and 4-4-4, out 4-2.
    fine = taps * (2 * 4 + 4 * 4 + 2 * 4 * 4) + 4 * 2 + 6 * 4
    coarse = taps * (4 * 6 + 6 * 6) / fewer
    images = torch.zeros(3, 2, *(8,) * dims)
    found = compute.multiplications(network, images) / (3 * 8**dims)  # type: ignore[arg-type]
    # Beside these there are gains and shifts.
    assert fine + coarse <= found <= 1.1 * (fine + coarse)


def test_engines_are_compared_on_the_middle_of_the_brain() -> None:
    image = torch.zeros(2, 150, 40, 30)
    image[1, 5:145, 10:30, 8:20] = 1.0
    assert torch.equal(
        example_of(image, dims=3),
        torch.ones(1, 2, EXAMPLE_SIDE, 20, 12) * image[:, 70:71, 15:16, 10:11],
    )
    slices = example_of(image, dims=2)
    assert slices.shape == (8, 2, EXAMPLE_SIDE, 20)
    assert (slices[:, 1] == 1).all()
    assert example_of(torch.zeros(1, 4, 5, 6), dims=3).shape == (1, 1, 4, 5, 6)


# --- memory ---------------------------------------------------------------------------------------


def test_too_little_memory_is_refused_with_the_least_that_is_enough(case: Case) -> None:
    with pytest.raises(ConfigError) as caught:
        predict_case(model(), case, settings=PredictSettings(device="cpu", memory_gib=0.1))
    least = re.search(r"Allow (\d+\.\d+) GiB", str(caught.value))
    assert least is not None
    settings = PredictSettings(device="cpu", memory_gib=float(least[1]))
    assert predict_case(model(), case, settings=settings).mask.shape[1:] == case.grid.shape


# --- to the case's own grid -----------------------------------------------------------------------


@pytest.mark.parametrize("spacing_mm", [None, (2.0, 2.0, 2.0)])
def test_maps_come_one_by_one_as_they_came_together(
    case: Case, spacing_mm: tuple[float, float, float] | None
) -> None:
    prepared = prepare(
        case, channels=("flair",), settings=PreprocessSettings(spacing_mm=spacing_mm)
    )
    values = torch.rand(3, *prepared.grid.shape)
    values[1] = 0
    maps = SourceMaps(values, prepared.grid, prepared.source_grid)
    together = prepared.to_source(values, mode="linear").clamp(0, 1)
    assert len(maps) == 3
    torch.testing.assert_close(maps.stacked(), together)
    torch.testing.assert_close(maps[2], together[2])


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")])
@pytest.mark.parametrize("mode", ["regions", "classes"])
def test_masks_decided_one_by_one_are_those_of_all_maps_at_once(
    case: Case, mode: str, names: tuple[str, ...]
) -> None:
    settings = PreprocessSettings(spacing_mm=(2.0, 2.0, 2.0))
    prepared = prepare(case, channels=("flair",), settings=settings)
    regions = RegionSettings(mode=mode, names=names)  # type: ignore[arg-type]
    values = (3 * torch.randn(regions.channels, *prepared.grid.shape)).softmax(dim=0)
    maps = SourceMaps(values, prepared.grid, prepared.source_grid)
    whole = maps.stacked()
    if mode == "classes":
        whole[0] = 1 - whole[1:].sum(0)
    expected = decode(whole, settings=regions, threshold=0.3)
    found = list(_decided(maps, regions, 0.3))
    assert len(found) == len(names)
    for name, mask in zip(names, found, strict=True):
        assert torch.equal(mask, expected[name])
        assert mask.any()


# --- odd input ------------------------------------------------------------------------------------


def slab(thickness: int) -> Case:
    shape = (40, 50, thickness)
    flair = torch.zeros(shape)
    flair[10:30, 12:40] = 100 + 9 * torch.randn(20, 28, thickness)
    grid = Grid(shape, torch.diag(torch.tensor([2.0, 2.0, 30.0, 1.0])).numpy())
    scans = {"flair": Scan(flair, grid), "t1c": Scan(flair * 0.5, grid)}
    brain = LabelMap((flair != 0).to(torch.uint8), grid)
    return Case("slab", "slab", scans, brain=brain)


@pytest.mark.parametrize("thickness", [1, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_volume_one_voxel_thick_is_predicted(dims: int, thickness: int) -> None:
    settings = PredictSettings(device="cpu", window=(64,) * dims)
    prediction = predict_case(model(dims=dims), slab(thickness), settings=settings)
    assert prediction.mask.shape == (2, 40, 50, thickness)
    assert prediction.probability.stacked().isfinite().all()


def test_a_case_without_brain_says_so() -> None:
    case = slab(3)
    assert case.brain is not None
    nothing = LabelMap(torch.zeros_like(case.brain.data), case.grid)
    with pytest.raises(ScanError, match=r"no brain found.*Hint: Give a brain mask"):
        predict_case(model(), Case("x", "x", case.scans, brain=nothing))
    speck = torch.zeros(case.grid.shape)
    speck[3, 3, 1] = 5.0
    scans = {name: Scan(speck, case.grid) for name in case.scans}
    with pytest.raises(ScanError, match="no brain found"):
        predict_case(model(), Case("x", "x", scans))


@pytest.mark.parametrize("profile", ["default", "best"])
def test_a_plan_tells_what_was_computed(profile: str) -> None:
    image = torch.zeros_like(IMAGE)
    image[:, 3:17, 2:15, 4:9] = 1.0
    settings = PredictSettings(
        device="cpu",
        engine="torch",
        precision="float32",
        profile=profile,
        window=(8, 8, 4),  # type: ignore[arg-type]
    )
    plan = plan_prediction(model(), image, settings=settings)
    whole = [[0, length] for length in image.shape[1:]]
    assert plan.describe() == {
        "engine": "torch",
        "precision": "float32",
        "profile": profile,
        "window_voxels": [8, 8, 4],
        "box_voxels": whole if profile == "best" else [[3, 17], [2, 15], [4, 9]],
    }
    (planned,) = predict_image(model(), image, plan=plan)
    (asked,) = predict_image(model(), image, settings=settings)
    assert torch.equal(planned, asked)
