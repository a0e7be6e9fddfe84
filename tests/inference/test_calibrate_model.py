"""A calibration of a network whose mistakes are known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.calibration.record import NAME, Calibration
from medseg.calibration.settings import CalibrationSettings
from medseg.data.regions import RegionSettings
from medseg.errors import (
    ConfigError,
    DataError,
    MedsegError,
    ModelError,
    ScanError,
    ScanFileError,
)
from medseg.geometry import Grid
from medseg.inference import calibrate as calibrating
from medseg.inference import temperatures
from medseg.inference.calibrate import HeldOut, calibrate
from medseg.inference.conditions import conditions, differing, joined
from medseg.inference.decide import decide
from medseg.inference.evidence import shape_features
from medseg.inference.intensity_prior import IntensityPrior
from medseg.inference.model import Model, ModelSpec, load_model, save_calibration
from medseg.inference.outputs import cohort_rows, write_prediction
from medseg.inference.predict import Prediction, predict_case
from medseg.inference.settings import PredictSettings
from medseg.inference.temperatures import strata_of, temperatures_left_out
from medseg.inference.words import describe_decision
from medseg.metrics.calibration import (
    calibration_error,
    negative_log_likelihood_nats,
    reliability_bins,
)
from medseg.networks.unet import UNet, UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.scan import Case, LabelMap, Scan

SHAPE = (12, 14, 11)
GRID = Grid(SHAPE, np.diag([-3.0, 2.0, 2.5, 1.0]))
PREDICT = PredictSettings(device="cpu", precision="float32", engine="eager")
SHARE_TRUE = CalibrationSettings(coverage=0.75)


class Bold(nn.Module):
    """Logits are the scan, which is the log odds of the truth, three times over or more."""

    def __init__(self, factor: float = 3.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * images[:, :1]


class BoldClasses(Bold):
    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(images), super().forward(images)], dim=1)


def spec(mode: str = "regions") -> ModelSpec:
    outputs = 1 if mode == "regions" else 2
    return ModelSpec(
        architecture=UNetSettings(in_channels=1, out_channels=outputs, widths=(3, 4)),
        channels=("flair",),
        regions=RegionSettings(mode=mode, names=("lesion",)),  # type: ignore[arg-type]
        region_definition={"lesion": (1,)},
        preprocess=PreprocessSettings(spacing_mm=None, normalise="none"),
        method="test",
    )


def case(number: int, *, empty: bool = False, shift: float = 0.0) -> Case:
    """Return a scan of log odds around a blob, and a truth drawn from them."""
    rng = np.random.default_rng(number)
    places = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    radius = rng.uniform(2.0, 4.0)
    odds = 2.0 * (radius - np.linalg.norm(places - np.array(SHAPE) / 2, axis=-1))
    odds = odds.clip(-6, 6) + rng.normal(scale=0.3, size=SHAPE) + shift
    truth = (rng.random(SHAPE) < 1 / (1 + np.exp(-odds))) & (not empty)
    return Case(
        identifier=f"c{number}",
        subject=f"s{number}",
        scans={"flair": Scan(torch.from_numpy(odds).float(), GRID)},
        label=LabelMap(torch.from_numpy(truth.astype(np.uint8)), GRID),
        brain=LabelMap(torch.ones(SHAPE, dtype=torch.uint8), GRID),
    )


def held_out(cases: list[Case], model: Model | None = None) -> list[HeldOut]:
    return [
        HeldOut(
            identifier=one.identifier,
            subject=one.subject,
            model=model or Model(Bold(), spec()),
            load=lambda one=one: one,
            definition={"lesion": (1,)},
        )
        for one in cases
    ]


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    cases = [case(number) for number in range(8)] + [case(8, empty=True)]
    return calibrate(held_out(cases), predict=PREDICT, settings=SHARE_TRUE)


def predicted(one: Case, calibration: Calibration | None) -> Prediction:
    return predict_case(Model(Bold(), spec(), calibration=calibration), one, settings=PREDICT)


def test_the_temperature_that_makes_up_for_boldness_is_found(fitted: Calibration) -> None:
    lesion = fitted.regions["lesion"]
    assert lesion.temperature == pytest.approx(3.0, rel=0.1)
    assert lesion.nll_after_nats < lesion.nll_before_nats
    assert lesion.ece_after < lesion.ece_before


@pytest.mark.parametrize("factor", [0.3, 9.0])
@pytest.mark.parametrize("mode", ["regions", "classes"])
def test_any_boldness_is_made_up_for(factor: float, mode: str) -> None:
    # Nine times the log odds reaches 60, where a float32 sigmoid has long been 1.
    network = Bold(factor) if mode == "regions" else BoldClasses(factor)
    cases = held_out([case(number) for number in range(6)], Model(network, spec(mode)))
    lesion = calibrate(cases, predict=PREDICT, settings=SHARE_TRUE).regions["lesion"]
    assert lesion.temperature == pytest.approx(factor, rel=0.06)


def test_a_model_with_a_temperature_of_its_own_gets_the_same(fitted: Calibration) -> None:
    cases = [case(number) for number in range(8)] + [case(8, empty=True)]
    told = Model(Bold(), replace(spec(), temperature=2.0))
    found = calibrate(held_out(cases, told), predict=PREDICT, settings=SHARE_TRUE)
    assert found.temperatures == pytest.approx(fitted.temperatures, rel=1e-3)
    assert found.regions["lesion"].nll_before_nats < fitted.regions["lesion"].nll_before_nats
    assert found.regions["lesion"].missed_share == pytest.approx(
        fitted.regions["lesion"].missed_share, abs=1e-3
    )


def test_folds_that_are_bold_in_their_own_ways_are_put_on_one_scale(fitted: Calibration) -> None:
    """Each network of a fold is told its temperature; the model's is on top of it."""
    cases = [case(number) for number in range(8)] + [case(8, empty=True)]
    folds = [
        HeldOut(
            one.identifier, one.subject, Model(Bold(b), replace(spec(), temperature=b / 3)), *rest
        )
        for one, b in zip(cases, (1.5, 3.0, 6.0) * 3, strict=True)
        for rest in [(lambda one=one: one, {"lesion": (1,)})]
    ]
    model = Model(Bold(6.0), replace(spec(), temperature=2.0))
    found = calibrate(folds, predict=PREDICT, settings=SHARE_TRUE, model=model)
    assert found.temperatures == pytest.approx([2 * fitted.temperatures[0]], rel=1e-3)


LOOKS = IntensityPrior(
    regions=("lesion",),
    tissues=(0, 1),
    weights=(1.0, 1.0),
    means=((-4.0,), (3.0,)),
    covariances=(((4.0,),), ((4.0,),)),
)


@pytest.mark.parametrize("refine", [True, False])
def test_the_errors_are_those_of_what_a_prediction_gives(refine: bool) -> None:
    cases = held_out([case(number) for number in range(4)])
    model = Model(Bold(), replace(spec(), temperature=1.5, intensities=LOOKS))
    cases = [replace(one, model=model) for one in cases]
    asked = replace(PREDICT, refine=refine)
    lesion = calibrate(cases, predict=asked, settings=SHARE_TRUE).regions["lesion"]
    strata = {one.subject: strata_of(one, asked, SHARE_TRUE, i)[0] for i, one in enumerate(cases)}
    others = temperatures_left_out(strata, model)
    for nll, ece, factors in (
        (lesion.nll_before_nats, lesion.ece_before, dict.fromkeys(others, (1.0,))),
        (lesion.nll_after_nats, lesion.ece_after, others),
    ):
        chances, truths = [], []
        for one in cases:
            told = replace(model, temperatures=(1.5 * factors[one.subject][0],))
            found, label = one.load(), one.load().label
            assert label is not None
            values = predict_case(told, found, settings=asked).probability[0]
            chances.append(values.numpy().ravel())
            truths.append(label.data.numpy().ravel() > 0)
        chance, truth = np.concatenate(chances), np.concatenate(truths)
        assert nll == pytest.approx(negative_log_likelihood_nats(chance, truth), rel=1e-4)
        assert ece == pytest.approx(calibration_error(reliability_bins(chance, truth)), rel=1e-2)


def test_lesions_are_compared_with_the_reference(fitted: Calibration) -> None:
    # One network is one sample, so that each lesion is in all of them; that of the empty case is
    # none.
    check = fitted.regions["lesion"].lesions
    assert check.lesions >= 9
    assert check.mean_probability == 1.0
    assert check.true_share == pytest.approx((check.lesions - 1) / check.lesions)
    assert check.brier == pytest.approx(1 / check.lesions)
    assert check.ece == pytest.approx(1 / check.lesions)


def test_a_prediction_is_made_with_the_temperature(fitted: Calibration) -> None:
    bold, calm = (predicted(case(20), known) for known in (None, fitted))
    ratio = torch.logit(bold.probability[0].double()) / torch.logit(calm.probability[0].double())
    middle = (bold.probability[0] - 0.5).abs() < 0.49
    torch.testing.assert_close(
        ratio[middle],
        torch.full_like(ratio[middle], fitted.temperatures[0]),
        rtol=1e-3,
        atol=0,
    )
    assert torch.equal(bold.mask, calm.mask)


def test_masks_are_nested_and_volumes_inside_their_interval(fitted: Calibration) -> None:
    prediction = predicted(case(21), fitted)
    (lesion,) = decide(prediction, fitted).regions
    assert lesion.inner is not None
    assert lesion.outer is not None
    assert lesion.low_ml is not None
    assert lesion.high_ml is not None
    mask = prediction.mask[0]
    assert not (lesion.inner & ~mask).any()
    assert not (mask & ~lesion.outer).any()
    assert lesion.outer.sum() > mask.sum()
    assert lesion.low_ml < prediction.volume_ml("lesion") < lesion.high_ml


def test_what_is_promised_of_new_cases_is_kept(fitted: Calibration) -> None:
    inside, missed, false = [], [], []
    for number in range(100, 160):
        one = case(number)
        assert one.label is not None
        truth = one.label.data > 0
        (lesion,) = decide(predicted(one, fitted), fitted).regions
        assert lesion.inner is not None
        assert lesion.outer is not None
        assert lesion.low_ml is not None
        assert lesion.high_ml is not None
        inside.append(lesion.low_ml <= one.label.volume_ml((1,)) <= lesion.high_ml)
        missed.append(float((truth & ~lesion.outer).sum() / truth.sum()))
        false.append(float((lesion.inner & ~truth).sum() / lesion.inner.sum().clamp(min=1)))
    # One calibration of nine cases: its own coverage is a draw from a beta distribution.
    assert np.mean(inside) > 0.6
    assert np.mean(missed) < 0.25
    assert np.mean(false) < 0.25


def test_a_strange_case_is_for_a_human_and_says_why(fitted: Calibration) -> None:
    strange = decide(predicted(case(22, shift=2.5), fitted), fitted)
    assert strange.needs_review
    assert strange.doubt_percentile == 100
    assert strange.reasons[0].score == strange.doubt == max(one.score for one in strange.signs)
    (sign,) = [one for one in strange.signs if one.sign == "intensity"]
    assert sign in strange.reasons
    assert sign.percentile == 100
    usual = [decide(predicted(case(number), fitted), fitted) for number in range(30, 50)]
    assert strange.doubt > np.mean([one.doubt for one in usual])
    for one in usual:
        assert one.needs_review == bool(one.reasons)


def test_as_many_usual_cases_are_for_a_human_as_may_be() -> None:
    many = calibrate(held_out([case(n) for n in range(19)]), predict=PREDICT)
    usual = [decide(predicted(case(number), many), many) for number in range(200, 260)]
    flagged = np.mean([one.needs_review for one in usual])
    # A fifth, give or take three deviations of what 19 and 60 cases can tell.
    assert 0 < flagged <= 0.2 + 3 * np.hypot(*np.sqrt([0.16 / 20, 0.16 / 60]))


def test_too_few_people_cannot_tell_who_is_for_a_human() -> None:
    few = calibrate(held_out([case(n) for n in range(3)]), predict=PREDICT)
    strange = decide(predicted(case(22, shift=2.5), few), few)
    assert strange.needs_review is None
    told = describe_decision(strange)
    assert told["review"]["needed"] is None  # type: ignore[index]
    assert "that takes 4 people, but there were 3" in " ".join(told["meaning"])  # type: ignore[arg-type]


def test_a_shape_has_no_place_and_a_thread_is_no_ball() -> None:
    ball, moved, thread = (np.zeros((20, 20, 20), dtype=bool) for _ in range(3))
    ball[4:10, 4:10, 4:10] = True
    moved[11:17, 12:18, 3:9] = True
    thread[2:18, 4:8, 4:8] = True
    grid = Grid((20, 20, 20), np.diag([1.0, 1.0, 1.0, 1.0]))
    shapes = [shape_features(mask, grid, 1) for mask in (ball, moved, thread)]
    np.testing.assert_array_equal(shapes[0], shapes[1])
    assert shapes[2][3] > shapes[0][3] == 0, "longer"
    assert shapes[2][4] > shapes[0][4], "more of it is surface"
    assert shape_features(np.zeros_like(ball), grid, 0).shape == shapes[0].shape


def test_files_and_tables_hold_what_was_decided(fitted: Calibration, tmp_path: Path) -> None:
    one = case(23)
    prediction = predicted(one, fitted)
    decision = decide(prediction, fitted)
    paths = write_prediction(prediction, tmp_path, decision=decision)
    assert paths["lesion/inner"].name == "c23_inner.nii.gz"
    assert paths["lesion/outer"].name == "c23_outer.nii.gz"
    for kind in ("inner", "outer"):
        image = nib.load(paths[f"lesion/{kind}"])
        np.testing.assert_allclose(image.affine, one.grid.affine, atol=1e-5)
        expected = getattr(decision.regions[0], kind).numpy()
        assert (np.asarray(image.dataobj) == expected).all()  # type: ignore[union-attr]
    written = json.loads(paths["json"].read_text())
    assert written["calibrated"] is True
    assert written["calibration"]["subjects"] == 9
    assert written["calibration"]["coverage"] == 0.75
    assert "75 of 100" in " ".join(written["meaning"])
    (region,) = written["regions"]
    assert region["volume_conformal_ml"]["coverage"] == 0.75
    assert region["volume_conformal_ml"]["low"] == decision.regions[0].low_ml
    assert region["volume_samples_ml"]["median"] == pytest.approx(prediction.volume_ml("lesion"))
    assert region["conformal_masks"]["inner_volume_ml"] <= region["volume_ml"]
    (row,) = cohort_rows(prediction, decision)
    assert row["calibrated"] is True
    assert row["review"] == decision.needs_review == written["review"]["needed"]
    assert row["conformal_high_ml"] == decision.regions[0].high_ml


def test_files_of_an_earlier_prediction_do_not_outlive_it(
    fitted: Calibration, tmp_path: Path
) -> None:
    one = case(23)
    first = write_prediction(
        predicted(one, fitted), tmp_path, decision=decide(predicted(one, fitted), fitted)
    )
    place = first["json"].parent
    for name in ("c23_std.nii.gz", "c23_notes.txt", "c23_mine.nii.gz", "other_std.nii.gz"):
        (place / name).write_bytes(b"x")
    second = write_prediction(predicted(one, None), tmp_path)
    kept = {"c23_notes.txt", "c23_mine.nii.gz", "other_std.nii.gz"}
    assert {path.name for path in place.iterdir()} == {p.name for p in second.values()} | kept
    assert not first["lesion/outer"].exists()


def test_files_of_other_regions_go_and_no_path_is_followed(tmp_path: Path) -> None:
    victim = tmp_path / "c23_core_mask.nii.gz"
    place = tmp_path / "out" / "c23"
    place.mkdir(parents=True)
    for path in (victim, place / victim.name):
        path.write_bytes(b"x")
    files = {"a": victim.name, "b": f"../../{victim.name}", "c": str(victim), "d": 3}
    (place / "c23.json").write_text(json.dumps({"files": files}))
    write_prediction(predicted(case(23), None), tmp_path / "out")
    assert victim.exists()
    assert not (place / victim.name).exists()


def test_without_a_calibration_it_says_so(tmp_path: Path) -> None:
    prediction = predicted(case(24), None)
    paths = write_prediction(prediction, tmp_path)
    assert "lesion/outer" not in paths
    assert json.loads(paths["json"].read_text())["calibrated"] is False
    assert cohort_rows(prediction)[0]["calibrated"] is False


def test_too_few_cases_give_no_masks_and_an_open_interval(tmp_path: Path) -> None:
    few = calibrate(held_out([case(n) for n in range(5)]), predict=PREDICT)
    lesion = few.regions["lesion"]
    assert (lesion.outer_cut, lesion.inner_cut, lesion.volume_factor) == (None, None, None)
    prediction = predicted(case(25), few)
    decision = decide(prediction, few)
    paths = write_prediction(prediction, tmp_path, decision=decision)
    assert "lesion/outer" not in paths
    written = json.loads(paths["json"].read_text())
    assert "takes 9 people, but there were 5" in " ".join(written["meaning"])
    interval = written["regions"][0]["volume_conformal_ml"]
    assert (interval["low"], interval["high"], interval["is_finite"]) == (0.0, None, False)
    assert cohort_rows(prediction, decision)[0]["conformal_high_ml"] is None


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"threshold": 0.4}, ("threshold",)),
        ({"profile": "best"}, ("profile",)),
        ({"posterior": "focused"}, ("posterior",)),
        ({"overlap": 0.4}, ("overlap",)),
        ({"precision": "bf16"}, ("precision",)),
        ({"window": (8, 20, 20)}, ("window", "window_voxels")),
        # What changes nothing: another draw, and more samples of a network that has one.
        ({"seed": 9, "samples": 3, "slices_per_batch": 2}, ()),
        # Windows that hold all of the image.
        ({"memory_gib": 3.0}, ()),
    ],
)
def test_a_promise_is_withdrawn_where_a_prediction_is_made_in_another_way(
    other: dict[str, Any], named: tuple[str, ...], fitted: Calibration, tmp_path: Path
) -> None:
    model = Model(Bold(), spec(), calibration=fitted)
    prediction = predict_case(model, case(26), settings=replace(PREDICT, **other))
    decision = decide(prediction, fitted)
    assert decision.differing == named
    paths = write_prediction(prediction, tmp_path, decision=decision)
    written = json.loads(paths["json"].read_text())
    (row,) = cohort_rows(prediction, decision)
    assert written["calibration"]["settings_that_differ"] == list(named)
    is_kept = not named
    assert ("lesion/inner" in paths) == ("lesion/outer" in paths) == is_kept
    promised = [
        written["calibration"]["coverage"],
        written["review"]["needed"],
        row["coverage"],
        row["review"],
        row["conformal_low_ml"],
        row["conformal_high_ml"],
        *(written["regions"][0]["volume_conformal_ml"][key] for key in ("coverage", "low", "high")),
        written["regions"][0]["conformal_masks"]["outer_volume_ml"],
    ]
    assert [one is not None for one in promised] == [is_kept] * len(promised)
    assert ("no inner and outer mask" in " ".join(written["meaning"])) == (not is_kept)


def test_fewer_samples_and_int8_are_another_way() -> None:
    prediction = predicted(case(26), None)
    known = joined([conditions(prediction)])
    rounded = replace(prediction, computed={**prediction.computed, "precision": "int8"})
    assert differing(rounded, known) == ("int8",)
    assert differing(prediction, joined([conditions(rounded)])) == ()
    two = replace(prediction, volumes_ml=np.repeat(prediction.volumes_ml, 2, axis=0))
    assert differing(two, known) == ("samples",)


def test_memory_that_cuts_an_image_is_another_way() -> None:
    prediction = predicted(case(26), None)
    known = joined([conditions(prediction)])
    cut = {**prediction.computed, "window_voxels": [12, 14, 8]}
    assert differing(replace(prediction, computed=cut), known) == ("window_voxels",)
    small = {**cut, "box_voxels": [[0, 12], [0, 14], [0, 8]]}
    assert differing(replace(prediction, computed=small), known) == ()


def test_no_case_is_judged_by_a_temperature_that_its_own_masks_were_fitted_to() -> None:
    cases = held_out([case(number) for number in range(5)])
    look = CalibrationSettings()
    strata = {one.subject: strata_of(one, PREDICT, look, 0)[0] for one in cases}
    before = temperatures_left_out(strata, cases[0].model)
    wrong = [replace(part, truth=~part.truth) for part in strata["s2"]]
    after = temperatures_left_out({**strata, "s2": wrong}, cases[0].model)
    assert after["s2"] == before["s2"]
    assert all(after[subject] != before[subject] for subject in strata if subject != "s2")
    nothing = {
        s: [replace(p, truth=p.truth & (s == "s2")) for p in own] for s, own in strata.items()
    }
    assert temperatures_left_out(nothing, cases[0].model)["s2"] == (1.0,)


def test_two_visits_of_a_subject_count_once() -> None:
    cases = [case(number) for number in range(4)]
    again = [replace(case(number), identifier=f"again{number}", subject="s0") for number in (7, 9)]
    both = calibrate(held_out([*cases, *again]), predict=PREDICT)
    assert (both.n, both.cases) == (4, 6)
    assert len(both.regions["lesion"].volume_residuals) == 4
    assert len(both.intensity_distances) == 4


def test_classes_share_one_temperature() -> None:
    model = Model(BoldClasses(), spec("classes"))
    two = calibrate(held_out([case(n) for n in range(6)], model), predict=PREDICT)
    assert two.regions["lesion"].temperature == pytest.approx(3.0, rel=0.1)
    assert replace(model, calibration=two).head.temperature == two.temperatures[0]


def test_a_students_shares_of_variance_are_left_as_they_are(fitted: Calibration) -> None:
    plain = spec()
    student = replace(
        plain, has_share=True, architecture=replace(plain.architecture, out_channels=2)
    )
    model = Model(Bold(), student, calibration=fitted)
    assert model.head.temperature == (fitted.temperatures[0], 1.0)
    assert replace(model, temperatures=(2.0,)).head.temperature == (2.0, 1.0)


# --- interrupted ----------------------------------------------------------------------------------


class Interrupted(BaseException):
    """Somebody stops the calibration."""


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by every prediction; the last one of a run is at ``runs[0]``."""
    done = [1_000]

    def counted(real: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            if len(done) == done[0]:
                raise Interrupted
            done.append(1)
            return real(*args, **more)

        return call

    for module, name in ((temperatures, "predict_image"), (calibrating, "predict_prepared_case")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return done


@pytest.mark.parametrize("after", [0, 2, 5])
def test_an_interrupted_calibration_goes_on(after: int, runs: list[int], tmp_path: Path) -> None:
    cases = held_out([case(number) for number in range(3)])
    whole = calibrate(cases, predict=PREDICT)
    assert len(runs) == 7, "each case twice"
    del runs[1:]
    runs[0] = 1 + after
    with pytest.raises(Interrupted):
        calibrate(cases, predict=PREDICT, state=tmp_path)
    runs[0] = 1_000
    assert calibrate(cases, predict=PREDICT, state=tmp_path) == whole
    assert len(runs) == 7, "nothing is predicted again"
    again = calibrate(cases, predict=PREDICT, state=tmp_path)
    assert (again, len(runs)) == (whole, 7)
    # Other masks, settings or models are predicted anew.
    calibrate(cases, predict=replace(PREDICT, threshold=0.4), state=tmp_path)
    assert len(runs) == 13
    told = replace(cases[0].model, spec=replace(spec(), temperature=2.0))
    calibrate([replace(one, model=told) for one in cases], predict=PREDICT, state=tmp_path)
    assert len(runs) == 19
    other = held_out([replace(case(0), label=case(5).label)])[0]
    changed = calibrate([other, *cases[1:]], predict=PREDICT, state=tmp_path)
    assert 20 < len(runs) <= 23, "of the others what hangs on the temperature of this one"
    assert changed == calibrate([other, *cases[1:]], predict=PREDICT)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ScanFileError("x.nii could not be read: truncated."),
            r"Case 'bad' cannot be used: x\.nii",
        ),
        (ScanError("Case 'bad': nothing."), "^Case 'bad': nothing"),
    ],
)
def test_a_bad_case_is_named_before_the_first_prediction(
    error: MedsegError, words: str, runs: list[int]
) -> None:
    def load() -> Case:
        raise error

    good = held_out([case(0), case(1)])
    bad = replace(good[0], identifier="bad", subject="bad", load=load)
    with pytest.raises(type(error), match=words):
        calibrate([*good, bad], predict=PREDICT)
    nothing = held_out([case(2, empty=True), case(3, empty=True)])
    with pytest.raises(DataError, match="no reference has a voxel"):
        calibrate(nothing, predict=PREDICT)
    assert len(runs) == 1


# --- bad input ------------------------------------------------------------------------------------


def test_no_case_and_one_case_are_refused() -> None:
    for cases in ([], [case(0)], [case(0), replace(case(1), subject="s0")]):
        with pytest.raises(DataError, match="at least two subjects"):
            calibrate(held_out(cases), predict=PREDICT)


def test_references_must_be_there_and_hold_the_region() -> None:
    with pytest.raises(DataError, match="no reference has a voxel"):
        calibrate(held_out([case(n, empty=True) for n in range(3)]), predict=PREDICT)
    with pytest.raises(ScanError, match="case 'c1' has none"):
        calibrate(held_out([case(0), replace(case(1), label=None)]), predict=PREDICT)
    unknown = [replace(one, definition={"whole": (1,)}) for one in held_out([case(0), case(1)])]
    with pytest.raises(ConfigError, match="'lesion'"):
        calibrate(unknown, predict=PREDICT)


# --- the model's folder ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Model(UNet(spec().architecture), spec()).save(tmp_path / "model")
    return tmp_path / "model"


def test_a_calibration_comes_back_with_its_model(folder: Path, fitted: Calibration) -> None:
    before = load_model(folder).fingerprint()
    save_calibration(load_model(folder), folder, fitted)
    model = load_model(folder)
    assert model.calibration is not None
    assert replace(model.calibration, model_sha256="") == fitted
    assert model.head.temperature == fitted.temperatures
    assert model.fingerprint() != before, "files made without it are not up to date"
    assert load_model(folder, ignore_calibration=True).fingerprint() == before


def test_a_calibration_of_other_weights_is_refused(folder: Path, fitted: Calibration) -> None:
    save_calibration(load_model(folder), folder, fitted)
    stale = (folder / NAME).read_bytes()
    torch.manual_seed(1)
    Model(UNet(spec().architecture), spec()).save(folder)
    assert not (folder / NAME).exists(), "new weights drop what was fitted to the old ones"
    (folder / NAME).write_bytes(stale)
    with pytest.raises(ModelError, match="fitted to another model"):
        load_model(folder)


def test_a_calibration_of_other_settings_of_the_model_is_refused(
    folder: Path, fitted: Calibration
) -> None:
    save_calibration(load_model(folder), folder, fitted)
    path = folder / "model.json"
    written = json.loads(path.read_text())
    written["spec"]["preprocess"]["normalise"] = "zscore"
    path.write_text(json.dumps(written))
    with pytest.raises(ModelError, match="fitted to another model"):
        load_model(folder)


def test_a_calibration_is_not_put_beside_another_model(folder: Path, fitted: Calibration) -> None:
    model = load_model(folder)
    torch.manual_seed(1)
    Model(UNet(spec().architecture), spec()).save(folder)
    with pytest.raises(ModelError, match="holds another"):
        save_calibration(model, folder, fitted)
    assert not (folder / NAME).exists()


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 99}', '{"format": 1, "n": 1}'])
def test_a_damaged_calibration_is_refused(folder: Path, damage: str) -> None:
    (folder / NAME).write_text(damage)
    with pytest.raises(ModelError, match="must be one that medseg wrote"):
        load_model(folder)
