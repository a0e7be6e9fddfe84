"""The shipped configurations of public data sets read those sets as they are unpacked."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from medseg.config.build import build_cohort
from medseg.config.load import find_config, read_yaml, validate
from medseg.config.schema import DataConfig
from medseg.data.source import CaseSource
from medseg.errors import ConfigError

Write = Callable[..., Path]
CONFIG = "experiment/public/ms_to_brats"


def source_of(part: dict[str, Any], root: Path) -> CaseSource:
    part["settings"]["root"] = str(root)
    return build_cohort(validate(DataConfig, part, where="x"), where="x").source


def shipped(name: str, root: Path) -> CaseSource:
    parts = read_yaml(find_config(CONFIG))["sources"]["ms"]
    return source_of(next(p for p in parts if p["settings"]["name"] == name), root)


@pytest.fixture
def fill(tmp_path: Path, write_image: Write, write_mask: Write) -> Callable[..., Path]:
    def write(images: Sequence[str], masks: Sequence[str]) -> Path:
        for name in images:
            write_image(tmp_path / name)
        for name in masks:
            write_mask(tmp_path / name)
        return tmp_path

    return write


def test_msseg_2016_tells_centres_with_the_same_patient_apart(fill: Callable[..., Path]) -> None:
    cases = [f"Training/Center_0{c}/Patient_0{p}" for c in (1, 7) for p in (1, 3)]
    cases.append("Testing/Center_03/Patient_01")
    kinds = ("FLAIR", "T1", "T2", "DP", "GADO")
    root = fill(
        [f"{case}/Preprocessed_Data/{kind}_preprocessed.nii.gz" for case in cases for kind in kinds]
        + [f"{case}/Raw_Data/{kind}.nii.gz" for case in cases for kind in kinds],
        [
            f"{case}/Masks/{name}.nii.gz"
            for case in cases
            for name in ("Consensus", "ManualSegmentation_1")
        ]
        + [f"{case}/Masks/Brain_Mask.nii.gz" for case in cases],
    )
    source = shipped("msseg2016", root)
    assert set(source.subjects) == {case.replace("/", "_") for case in cases}
    assert len(source) == 5
    case = source[0]
    assert set(case.scans) == {"flair", "t1c"}
    assert case.label is not None


def test_isbi_2015_keeps_the_visits_of_a_person_together(fill: Callable[..., Path]) -> None:
    visits = [f"training0{s}/{{}}/training0{s}_0{v}" for s in (1, 2) for v in (1, 2, 3, 4)]
    root = fill(
        [
            visit.format("preprocessed") + f"_{kind}_pp.nii"
            for visit in visits
            for kind in ("flair", "mprage", "pd", "t2")
        ],
        [visit.format("masks") + f"_mask{rater}.nii" for visit in visits for rater in (1, 2)],
    )
    source = shipped("isbi2015", root)
    assert len(source) == 8
    assert list(source.subjects) == ["training01"] * 4 + ["training02"] * 4
    assert source[3].identifier == "training01_04"
    assert source[3].label is not None
    # Also where one person's folder is the root's only one.
    assert set(shipped("isbi2015", root / "training02").subjects) == {"training02"}


def test_mslesseg_has_visits_in_training_and_none_in_test(fill: Callable[..., Path]) -> None:
    visits = ["train/P1/T1/P1_T1", "train/P1/T2/P1_T2", "train/P9/T1/P9_T1", "test/P54/P54"]
    root = fill(
        [f"{visit}_{kind}.nii.gz" for visit in visits for kind in ("FLAIR", "T1", "T2")],
        [f"{visit}_MASK.nii.gz" for visit in visits],
    )
    source = shipped("mslesseg", root)
    found = dict(zip(source.identifiers, source.subjects, strict=True))
    assert found == {"P1_T1": "P1", "P1_T2": "P1", "P9_T1": "P9", "P54": "P54"}
    assert all(
        set(case.scans) == {"flair", "t1", "t2"} and case.label is not None for case in source
    )


def test_the_challenge_of_2008_takes_one_rater(fill: Callable[..., Path]) -> None:
    cases = ["CHB_train_Part1/CHB_train_Case01/CHB_train_Case01"]
    cases.append("UNC_train_Part1/UNC_train_Case10/UNC_train_Case10")
    root = fill(
        [f"{case}_{kind}.nii.gz" for case in cases for kind in ("FLAIR", "T1", "T2")],
        [f"{case}_lesion.nii.gz" for case in cases]
        + ["UNC_train_lesion_byCHB/UNC_train_Case10/UNC_train_Case10_lesion_byCHB.nii.gz"],
    )
    assert list(shipped("msseg2008", root).subjects) == ["CHB_train_Case01", "UNC_train_Case10"]


@pytest.mark.parametrize(
    ("case", "words", "labels", "subject"),
    [
        ("HGG/Brats18_CBICA_AAB_1", ("flair", "t1ce"), (1, 2, 4), "Brats18_CBICA_AAB"),
        ("LGG/BraTS19_2013_0_1", ("flair", "t1ce"), (1, 2, 4), "BraTS19_2013_0"),
        ("BraTS20_Training_001", ("flair", "t1ce"), (1, 2, 4), "BraTS20_Training_001"),
        ("BraTS2021_00005", ("flair", "t1ce"), (1, 2, 4), "BraTS2021_00005"),
        ("BraTS-GLI-00005-001", ("t2f", "t1c"), (1, 2, 3), "BraTS-GLI-00005"),
    ],
)
def test_brats_of_every_year_becomes_one_convention(
    tmp_path: Path,
    write_image: Write,
    write_mask: Write,
    case: str,
    words: tuple[str, str],
    labels: tuple[int, ...],
    subject: str,
) -> None:
    glue = "-" if "GLI" in case else "_"
    stem = tmp_path / case / case.rpartition("/")[2]
    for word in words:
        write_image(Path(f"{stem}{glue}{word}.nii.gz"))
    write_mask(Path(f"{stem}{glue}seg.nii.gz"), labels)
    source = source_of(read_yaml(find_config(CONFIG))["target"], tmp_path)
    assert list(source.subjects) == [subject]
    assert set(source[0].scans) == {"flair", "t1c"}
    label = source[0].label
    assert label is not None
    assert label.data.unique().tolist() == [0, 1, 2, 4]


def test_the_published_protocol_runs_on_roots_given_by_hand(
    fill: Callable[..., Path], write_mask: Write
) -> None:
    root = fill(
        ["ms/p1/flair.nii.gz", "tumour/Brats18_A_1/Brats18_A_1_flair.nii.gz"], ["ms/p1/mask.nii.gz"]
    )
    write_mask(root / "tumour/Brats18_A_1/Brats18_A_1_seg.nii.gz", (1, 2, 4))
    given = [f"sources.ms.0.settings.root={root}/ms", f"target.settings.root={root}/tumour"]
    values = read_yaml(find_config("experiment/public/ms170_to_brats18"), given)
    for part in (values["sources"]["ms"][0], values["target"]):
        assert len(build_cohort(validate(DataConfig, part, where="x"), where="x").source) == 1


def test_patterns_must_name_a_scan_and_its_mask_alike(tmp_path: Path) -> None:
    part = {
        "kind": "folder",
        "settings": {"images": {"flair": "{centre}/{case}.nii.gz"}, "label": "{case}_m.nii.gz"},
        "regions": {"lesion": [1]},
    }
    with pytest.raises(ConfigError, match="same words"):
        source_of(part, tmp_path)
