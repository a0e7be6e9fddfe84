import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.data.regions import RegionSettings
from medseg.errors import ConfigError, ScanError
from medseg.inference.model import Model, ModelSpec, build_network
from medseg.inference.outputs import cohort_rows, output_paths, write_prediction
from medseg.inference.predict import Prediction, predict_case
from medseg.inference.settings import PredictSettings
from medseg.io.nifti import read_label_map, read_scan
from medseg.metrics.evaluate import evaluate_masks
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.scan import Case
from medseg.variational.settings import VariationalSettings

CPU = {"device": "cpu", "precision": "float32"}
CUT = 150.0
NATIVE = PreprocessSettings(spacing_mm=None, normalise="none")
RESAMPLED = PreprocessSettings(spacing_mm=(2.0, 2.0, 2.0), normalise="none")


class Threshold(nn.Module):
    """The second region is where FLAIR is above a cut; the first is never there."""

    def __init__(self, cut: float = CUT) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, images: Tensor) -> Tensor:
        logits = images[:, 0] - self.cut
        return torch.stack([torch.full_like(logits, -9.0), logits], dim=1)


def spec(
    preprocess: PreprocessSettings = NATIVE, *, mode: str = "regions", variational: bool = False
) -> ModelSpec:
    names = ("core", "whole") if mode == "regions" else ("whole",)
    return ModelSpec(
        architecture=UNetSettings(in_channels=2, out_channels=2, widths=(3, 4)),
        channels=("flair", "t1c"),
        regions=RegionSettings(mode=mode, names=names),  # type: ignore[arg-type]
        region_definition={name: (1, 3) if name == "core" else (1, 2, 3) for name in names},
        preprocess=preprocess,
        allow_missing=False,
        variational=VariationalSettings(relative_std=0.5, max_relative_std=None)
        if variational
        else None,
        method="test",
    )


def predict(case: Case, chosen: ModelSpec | None = None, **changes: object) -> Prediction:
    settings = PredictSettings(**{**CPU, **changes})  # type: ignore[arg-type]
    return predict_case(Model(Threshold(), chosen or spec()), case, settings=settings)


def predict_variational(case: Case, **changes: object) -> Prediction:
    chosen = spec(PreprocessSettings(spacing_mm=(3.0, 3.0, 3.0)), variational=True)
    settings = PredictSettings(**{**CPU, "samples": 5, **changes})  # type: ignore[arg-type]
    return predict_case(Model(build_network(chosen), chosen), case, settings=settings)


def test_a_voxelwise_network_gives_its_threshold_on_the_cases_own_grid(case: Case) -> None:
    prediction = predict(case)
    expected = case.scans["flair"].data > CUT
    assert expected.any()
    assert torch.equal(prediction.mask[1], expected)
    assert not prediction.mask[0].any()
    assert prediction.grid is case.grid
    assert prediction.volume_ml("whole") == pytest.approx(
        int(expected.sum()) * case.grid.voxel_volume_mm3 / 1000
    )


def test_classes_take_the_most_probable_and_leave_the_background_out(case: Case) -> None:
    prediction = predict(case, spec(mode="classes"))
    # The first logit, -9, is the background's now.
    assert prediction.regions == ("whole",)
    assert prediction.probability.stacked().shape == (1, *case.grid.shape)
    assert torch.equal(prediction.mask[0], case.scans["flair"].data > CUT - 9)


def test_resampling_there_and_back_keeps_the_lesions_in_place(case: Case) -> None:
    prediction = predict(case, spec(RESAMPLED))
    assert case.label is not None
    truth = case.label.data > 0
    found = prediction.mask[1]
    overlap = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert overlap > 0.85
    probability = prediction.probability.stacked()
    assert probability.shape == (2, *case.grid.shape)
    assert 0 <= probability.min() <= probability.max() <= 1


def test_lesions_have_place_size_and_certainty(case: Case) -> None:
    prediction = predict(case, spec(RESAMPLED))
    assert [lesion.region for lesion in prediction.lesions] == ["whole", "whole"]
    first, second = prediction.lesions
    assert first.volume_mm3 >= second.volume_mm3
    assert (first.probability, first.mean_std) == (1.0, 0.0)
    total_ml = (first.volume_mm3 + second.volume_mm3) / 1000
    assert total_ml == pytest.approx(prediction.volume_ml("whole"))
    centres = case.grid.to_world([(11, 13, 10), (6, 9, 12)])
    for lesion in prediction.lesions:
        place = np.array([lesion.x_mm, lesion.y_mm, lesion.z_mm])
        assert np.linalg.norm(centres - place, axis=1).min() < 1.5


def test_small_lesions_leave_the_table_but_not_the_mask(case: Case) -> None:
    prediction = predict(case, lesions={"min_volume_mm3": 1e6})
    assert prediction.lesions == ()
    assert prediction.mask[1].any()


def test_posterior_samples_give_uncertainty_and_an_interval(case: Case) -> None:
    prediction = predict_variational(case)
    assert prediction.samples == 5
    assert prediction.volumes_ml.shape == (5, 2)
    assert prediction.std.stacked().max() > 0
    information = prediction.mutual_information_nats.stacked()
    assert information.min() >= 0
    assert (information <= prediction.entropy_nats.stacked() + 1e-5).all()
    interval = prediction.volume_interval("whole")
    assert interval.low_ml <= interval.median_ml <= interval.high_ml
    assert interval.low_ml < interval.high_ml


def test_same_seed_gives_the_same_prediction(case: Case) -> None:
    one, same, other = (predict_variational(case, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.probability.stacked(), same.probability.stacked())
    assert (one.volumes_ml == same.volumes_ml).all()
    assert not torch.equal(one.probability.stacked(), other.probability.stacked())


def test_a_missing_modality_is_refused_by_name(case: Case) -> None:
    alone = Case("sub-02", "02", {"flair": case.scans["flair"]}, brain=case.brain)
    with pytest.raises(ScanError, match="t1c"):
        predict(alone)


def test_files_lie_on_the_scans_grid_and_hold_the_prediction(case: Case, tmp_path: Path) -> None:
    prediction = predict(case, spec(RESAMPLED))
    paths = write_prediction(prediction, tmp_path, provenance={"input_sha256": "abc"})
    assert set(paths) == {
        "mask",
        "json",
        *(f"{r}/{k}" for r in ("core", "whole") for k in ("mask", "prob", "uncertainty")),
    }
    assert paths["mask"] == tmp_path / "sub-01" / "sub-01_mask.nii.gz"
    assert paths["whole/prob"].name == "sub-01_whole_prob.nii.gz"
    assert {p.name for p in (tmp_path / "sub-01").iterdir()} == {p.name for p in paths.values()}
    for kind, path in paths.items():
        if kind != "json":
            image = nib.load(path)
            assert image.shape == case.grid.shape
            np.testing.assert_allclose(image.affine, case.grid.affine, atol=1e-4)
    labels = np.asarray(nib.load(paths["mask"]).dataobj)  # type: ignore[union-attr]
    assert (labels == np.where(prediction.mask[1], 2, 0)).all()
    written = json.loads(paths["json"].read_text())
    assert written["label_map"] == {
        "values": {"core": 1, "whole": 2},
        "painted_in_order": ["whole", "core"],
    }
    assert written["provenance"] == {"input_sha256": "abc"}
    assert written["computed"] == prediction.computed
    region = written["regions"][1]
    assert region["volume_ml"] == pytest.approx(prediction.volume_ml("whole"))
    assert [lesion["lesion"] for lesion in region["lesions"]] == [1, 2]


def test_one_region_has_the_short_names_and_samples_add_their_spread(tmp_path: Path) -> None:
    paths = output_paths(tmp_path, "a", regions=("whole",), samples=3)
    assert {path.name for path in paths.values()} == {
        "a_mask.nii.gz",
        "a_prob.nii.gz",
        "a_uncertainty.nii.gz",
        "a_mutual_information.nii.gz",
        "a_std.nii.gz",
        "a.json",
    }


@pytest.mark.parametrize("identifier", ["", "..", "a/b", "a\\b", "a:b"])
def test_identifiers_that_lead_elsewhere_are_refused(tmp_path: Path, identifier: str) -> None:
    with pytest.raises(ConfigError, match="names files"):
        output_paths(tmp_path, identifier, regions=("whole",), samples=1)


def test_cohort_rows_say_what_the_files_say(case: Case) -> None:
    core, whole = cohort_rows(predict(case))
    assert (core["region"], core["volume_ml"], core["lesions"], core["mean_std"]) == (
        "core",
        0,
        0,
        None,
    )
    assert whole["volume_low_ml"] == whole["volume_high_ml"] == whole["volume_ml"]


def test_real_tumour_comes_back_on_its_own_grid(shared_data: Path) -> None:
    folder = shared_data / "tumour_brats2013" / "pat0001"
    flair, truth = read_scan(folder / "flair_znorm.nii.gz"), read_label_map(folder / "seg.nii.gz")
    case = Case("pat0001", "pat0001", {"flair": flair, "t1c": flair}, label=truth)
    settings = PreprocessSettings(spacing_mm=(3.0, 3.0, 3.0))
    prediction = predict_case(
        Model(Threshold(cut=1.2), spec(settings)),
        case,
        settings=PredictSettings(device="cpu", precision="float32"),
    )
    assert prediction.mask.shape[1:] == flair.data.shape
    scores = evaluate_masks(prediction.mask[1], truth.data > 0, spacing_mm=case.grid.spacing_mm)
    assert scores["dsc"] > 0.4
    assert prediction.lesions[0].volume_mm3 / 1000 > 0.5 * prediction.volume_ml("whole")
