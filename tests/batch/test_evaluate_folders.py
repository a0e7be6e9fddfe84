"""Masks against references: which belong together, what is scored, and what one bad file costs."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.batch.evaluate import evaluate_folders
from medseg.batch.run import run_batch
from medseg.cli.main import main
from medseg.data.regions import RegionSettings
from medseg.errors import ConfigError, DataError
from medseg.geometry import Grid
from medseg.inference.model import Model, ModelSpec
from medseg.inference.settings import PredictSettings
from medseg.io.atomic import read_table
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.scan import Case, LabelMap, Scan

GRID = Grid((14, 16, 12), np.diag([3.0, 3.0, 3.0, 1.0]))
TRUTH = np.zeros(GRID.shape, dtype=np.uint8)
TRUTH[4:9, 4:9, 4:9] = 2
TRUTH[5:7, 5:7, 5:7] = 3
#: What each region is in the labels of the reference.
REGIONS = {"core": (3,), "whole": (2, 3)}


class Perfect(nn.Module):
    """Finds core and whole, or core alone, in an image of the reference's labels."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.cuts = nn.Parameter(torch.tensor([2.5, 1.0][:count]).view(-1, 1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return 30 * (images - self.cuts)


def predict(out: Path, *names: str, count: int = 2) -> Path:
    regions = dict(list(REGIONS.items())[:count])
    spec = ModelSpec(
        architecture=UNetSettings(in_channels=1, out_channels=count),
        channels=("flair",),
        regions=RegionSettings(names=tuple(regions)),
        region_definition=regions,
        preprocess=PreprocessSettings(spacing_mm=None, normalise="none"),
        method="test",
    )
    brain = torch.zeros(GRID.shape, dtype=torch.uint8)
    brain[2:12, 2:14, 2:10] = 1
    flair = torch.from_numpy(TRUTH) + brain * 0.1
    cases = [
        Case(name, name, {"flair": Scan(flair, GRID)}, brain=LabelMap(brain, GRID))
        for name in names
    ]
    summary = run_batch(
        [(case.identifier, lambda case=case: case) for case in cases],
        model=Model(Perfect(count), spec),
        out=out,
        settings=PredictSettings(device="cpu", precision="float32"),
    )
    assert summary.failures == []
    return out


def write(path: Path, data: np.ndarray = TRUTH) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, GRID.affine), path)
    return path


def dice(predictions: Path, references: Path, **options) -> dict[str, float]:
    found = evaluate_folders(predictions, references, **options)
    assert found.failures == []
    return {str(row["case"]): float(row["dsc"]) for row in found.cases}  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predict(tmp_path_factory.mktemp("predicted"), "P01", "P02")


@pytest.mark.parametrize("region", REGIONS)
def test_a_perfect_prediction_has_the_best_scores_in_every_region(
    predicted: Path, tmp_path: Path, region: str
) -> None:
    write(tmp_path / "P01.nii.gz")
    found = evaluate_folders(predicted, tmp_path, region=region, labels=REGIONS[region])
    (row,) = found.cases
    assert (row["dsc"], row["volume_error_percent"], row["missing"]) == (1, 0, 0)


def test_the_one_region_of_a_model_is_found_too(tmp_path: Path) -> None:
    out = predict(tmp_path / "out", "P01", count=1)
    reference = write(tmp_path / "truth" / "P01.nii.gz")
    assert dice(out, reference.parent, region="core", labels=(3,)) == {"P01": 1}


def test_a_region_is_found_by_its_files_name_where_no_record_is(
    predicted: Path, tmp_path: Path
) -> None:
    reference = write(tmp_path / "truth" / "P01.nii.gz")
    for name in ("P01_mask.nii.gz", "P01_core_mask.nii.gz"):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(predicted / "P01" / name, tmp_path / "flat")
    for predictions in (tmp_path / "flat", tmp_path / "flat" / "P01_core_mask.nii.gz"):
        # A file is scored against a file.
        references = reference.parent if predictions.is_dir() else reference
        assert dice(predictions, references, region="core", labels=(3,)) == {"P01": 1}
    (tmp_path / "flat" / "P01_mask.nii.gz").unlink()
    assert dice(tmp_path / "flat", reference, region="core", labels=(3,)) == {"P01": 1}


def test_labels_that_number_regions_are_not_compared_with_those_of_the_reference(
    predicted: Path, tmp_path: Path
) -> None:
    reference = write(tmp_path / "P01.nii.gz")
    for place in (predicted, predicted / "P01" / "P01_core_mask.nii.gz"):
        with pytest.raises(ConfigError, match="Add --region"):
            evaluate_folders(place, reference, labels=(3,))
    with pytest.raises(ConfigError, match="one of \\['core', 'whole'\\]"):
        evaluate_folders(predicted, reference, region="edema")
    assert dice(predicted, reference) == {"P01": 1}
    other = write(tmp_path / "other" / "P01.nii.gz")
    assert dice(other.parent, reference, labels=(3,)) == {"P01": 1}


@pytest.mark.parametrize(
    "name",
    ["P01.nii.gz", "P01.nii", "P01_mask.nii.gz", "P01_seg.nii.gz", "P01-lesion_Mask.nii.gz"],
)
def test_a_reference_finds_its_prediction_whatever_it_calls_itself(
    predicted: Path, tmp_path: Path, name: str
) -> None:
    reference = write(tmp_path / "truth" / name)
    assert dice(predicted, reference.parent) == {"P01": 1}
    assert dice(predicted, reference) == {"P01": 1}
    flat = write(tmp_path / "flat" / "P01.nii.gz")
    assert list(dice(flat.parent, reference.parent).values()) == [1]
    assert list(dice(flat, reference).values()) == [1]


@pytest.mark.parametrize("name", ["mask.nii.gz", "P01_seg.nii.gz", "whatever.nii.gz"])
def test_references_may_lie_in_a_folder_per_case(
    predicted: Path, tmp_path: Path, name: str
) -> None:
    write(tmp_path / "P01" / name)
    if name != "whatever.nii.gz":
        write(tmp_path / "P01" / "flair.nii.gz")
    write(tmp_path / "P02" / "seg.nii.gz")
    write(tmp_path / "unlabelled" / "flair.nii.gz")
    assert dice(predicted, tmp_path) == {"P01": 1, "P02": 1}


def test_a_case_with_two_references_costs_that_case(predicted: Path, tmp_path: Path) -> None:
    for name in ("P01/mask.nii.gz", "P01/seg.nii.gz", "P02/mask.nii.gz"):
        write(tmp_path / name)
    found = evaluate_folders(predicted, tmp_path)
    assert [row["case"] for row in found.cases] == ["P02"]
    assert [row["scan"] for row in found.failures] == ["P01"]


def test_scans_beside_references_are_no_references(predicted: Path, tmp_path: Path) -> None:
    for name in ("P01_flair.nii.gz", "P01_mask.nii.gz", "._P01_mask.nii.gz"):
        write(tmp_path / name)
    assert dice(predicted, tmp_path) == {"P01": 1}


def test_references_without_any_prediction_are_refused(predicted: Path, tmp_path: Path) -> None:
    reference = write(tmp_path / "someone.nii.gz")
    other = write(tmp_path / "flat" / "someone.nii.gz")
    for references in (tmp_path, reference):
        with pytest.raises(DataError, match="none of 1 in"):
            evaluate_folders(predicted, references)
    with pytest.raises(DataError, match="region 'core'"):
        evaluate_folders(other.parent, tmp_path, region="core")
    with pytest.raises(DataError, match="none of 1"):
        evaluate_folders(predicted / "P01" / "P01_mask.nii.gz", tmp_path)
    write(tmp_path / "scans" / "P01" / "flair.nii.gz")
    with pytest.raises(DataError, match="no file name says"):
        evaluate_folders(predicted, tmp_path / "scans")


def test_one_bad_file_costs_its_case_and_not_the_table(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write(tmp_path / "truth" / f"{name}.nii.gz")
        write(tmp_path / "found" / f"{name}.nii.gz")
    write(tmp_path / "found" / "b.nii.gz", TRUTH[1:])
    (tmp_path / "found" / "c.nii.gz").write_bytes(b"not a mask")
    (tmp_path / "truth" / "d.nii.gz").write_bytes(b"not a mask")
    (tmp_path / "truth" / "._a.nii.gz").write_bytes(b"of another system")
    table = tmp_path / "scores.tsv"
    argv = ["evaluate", str(tmp_path / "found"), str(tmp_path / "truth"), "--out", str(table)]
    assert main(argv) == 3
    rows = {row["case"]: row for row in read_table(table)}
    assert {name: float(row["dsc"]) for name, row in rows.items()} == {"a": 1, "b": 0, "c": 0}
    assert {name: float(row["missing"]) for name, row in rows.items()} == {"a": 0, "b": 1, "c": 1}
    failures = read_table(tmp_path / "scores_failures.tsv")
    assert [row["scan"] for row in failures] == ["b", "c", "d"]
    assert "reference's grid" in failures[0]["reason"]
    (tmp_path / "truth" / "d.nii.gz").unlink()
    for name in "bc":
        write(tmp_path / "found" / f"{name}.nii.gz")
    assert main(argv) == 0
    assert read_table(tmp_path / "scores_failures.tsv") == []
