from pathlib import Path

import pytest

from medseg.data.sources.brats import WORDS as BRATS_WORDS
from medseg.data.sources.layout import case_folders, role_of, subject_of
from medseg.data.sources.ms import WORDS as MS_WORDS
from medseg.errors import DataError


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("BraTS20_Training_001_flair.nii.gz", "flair"),
        ("BraTS20_Training_001_t1ce.nii", "t1c"),
        ("W39_1998.09.19_Segm.nii", "label"),
        ("BraTS-GLI-00005-100-t2f.nii.gz", "flair"),
        ("BraTS-GLI-00005-100-t1n.nii.gz", "t1"),
        ("BraTS-GLI-00005-100-t1c.nii.gz", "t1c"),
        ("BraTS-GLI-00005-100-t2w.nii.gz", "t2"),
        ("BraTS-GLI-00005-100-seg.nii.gz", "label"),
        ("VSD.Brain.XX.O.MR_Flair.54512.nii.gz", "flair"),
        ("VSD.Brain.XX.O.MR_T1.54513.nii.gz", "t1"),
        ("VSD.Brain_3more.XX.XX.OT.54517.nii.gz", "label"),
        ("flair_znorm.nii.gz", "flair"),
        ("brainmask.nii.gz", "brain"),
        ("notes.nii.gz", None),
    ],
)
def test_brats_file_names(name: str, role: str | None) -> None:
    assert role_of(Path(name), BRATS_WORDS) == role


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("P14_T1_FLAIR.nii.gz", "flair"),
        ("P14_T1_T1.nii.gz", "t1"),
        ("P14_T1_MASK.nii.gz", "label"),
        ("patient01_T1WKS.nii.gz", "t1c"),
        ("patient01_consensus_gt.nii.gz", "label"),
        ("T1_brain.nii.gz", "t1"),  # skull-stripped, not a mask
        ("T1_brain_mask.nii.gz", "brain"),
        ("CHANGE_MASK_gt.nii.gz", None),  # what changed between visits is no lesion mask
    ],
)
def test_ms_file_names(name: str, role: str | None) -> None:
    assert role_of(Path(name), MS_WORDS) == role


@pytest.mark.parametrize(
    ("identifier", "subject"),
    [
        ("P14_T1", "P14"),
        ("P14_T2", "P14"),
        ("sub-01_ses-02", "sub-01"),
        ("patient07", "patient07"),
        ("BraTS-GLI-00005-101", "BraTS-GLI-00005"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("Brats18_CBICA_AAB_1", "Brats18_CBICA_AAB"),
        ("HG_0001", "HG_0001"),
        ("T1", "T1"),
    ],
)
def test_subjects(identifier: str, subject: str) -> None:
    assert subject_of(identifier) == subject


def test_own_subject_pattern() -> None:
    assert subject_of("siteA_007_scan3", r"_(\d+)_") == "007"
    with pytest.raises(DataError, match="'x9'"):
        subject_of("x9", r"_(\d+)_")


def test_case_names_take_the_visit_and_stay_unique(tmp_path: Path) -> None:
    for name in (
        "P1/T1/a_flair.nii.gz",
        "P1/T2/a_flair.nii.gz",
        "sub-01/ses-02/anat/x_FLAIR.nii.gz",
        "HG/0001/VSD.Brain.XX.O.MR_Flair/VSD.Brain.XX.O.MR_Flair.1.nii.gz",
        "LG/0001/VSD.Brain.XX.O.MR_Flair/VSD.Brain.XX.O.MR_Flair.2.nii.gz",
        "siteA/pat/flair.nii.gz",
        "siteB/pat/flair.nii.gz",
        "siteB/pat/._flair.nii.gz",
        "single/flair.nii",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = case_folders(tmp_path)
    expected = "HG_0001 LG_0001 P1_T1 P1_T2 single siteA_pat siteB_pat sub-01_ses-02"
    assert list(found) == expected.split()
    assert all(len(paths) == 1 for paths in found.values())


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not there"):
        case_folders(tmp_path / "absent")
    (tmp_path / "a.mha").touch()
    with pytest.raises(DataError, match=r"Convert \.mha"):
        case_folders(tmp_path)


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "archive" / "p1").mkdir(parents=True)
    (tmp_path / "archive" / "p1" / "flair.nii.gz").touch()
    root = tmp_path / "data"
    root.mkdir()
    (root / "p1").symlink_to(tmp_path / "archive" / "p1")
    assert list(case_folders(root)) == ["p1"]
