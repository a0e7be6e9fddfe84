from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.data.sources.brats import WORDS as BRATS_WORDS
from medseg.data.sources.layout import case_folders, doubtful_visits, role_of, subject_of
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
        ("sub-01_ses-preop", "sub-01"),
        ("sub-01_ses-1_run-2", "sub-01"),
        ("sub-01", "sub-01"),
        ("sub-MS-001", "sub-MS-001"),
        ("siteA_sub-01_ses-postop", "siteA_sub-01"),
        ("P14_baseline", "P14"),
        ("P14_followup", "P14"),
        ("P14-follow-up-2", "P14"),
        ("P14_preop", "P14"),
        ("P14_post-op", "P14"),
        ("P14_tp2_post", "P14"),
        ("P14_timepoint_3", "P14"),
        # Numbers alone are more often people's than visits'.
        ("case_1", "case_1"),
        ("P14_2019", "P14_2019"),
        ("Impost", "Impost"),
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
    assert all(len(folder.paths) == 1 for folder in found.values())
    people = "HG_0001 LG_0001 P1 P1 single siteA_pat siteB_pat sub-01"
    assert [folder.subject for folder in found.values()] == people.split()


def _people(root: Path, *folders: str) -> dict[str, str]:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        (root / folder / "flair.nii.gz").touch()
    return {name: folder.subject for name, folder in case_folders(root).items()}


NAMED = "ses-preop ses-1 ses-20190304 T1 tp2 visit_3 baseline followup follow-up follow_up_2 preop"
VISITS = st.sampled_from([*NAMED.split(), "postop", "post", "month06"])
ANY_VISIT = st.one_of(VISITS, st.sampled_from(["1", "07", "2019", "2019-03-04", "scanner_b", "x"]))
#: A folder of the first kind is known as a person's whatever it holds, of the second by its visits.
KNOWN = st.sampled_from(["P14", "patient07", "sub-01", "sub-MS-2", "case_3"])
OTHERS = st.sampled_from(["Smith", "MS0012x", "A-7"])


@given(
    cohort=st.one_of(
        st.dictionaries(KNOWN, st.sets(ANY_VISIT, min_size=1, max_size=3), min_size=1),
        st.dictionaries(OTHERS, st.sets(VISITS, min_size=1, max_size=3), min_size=1),
    ),
    above=st.sampled_from(["", "train/", "siteA/", "rawdata/"]),
    anat=st.booleans(),
)
def test_visits_in_a_persons_folder_are_his_whoever_else_is_there(
    tmp_path_factory, cohort: dict[str, set[str]], above: str, anat: bool
) -> None:
    folders = [
        f"{above}{person}/{visit}{'/anat' * anat}"
        for person, visits in cohort.items()
        for visit in visits
    ]
    found = _people(tmp_path_factory.mktemp("visits"), *folders)
    expected = {f"{person}_{visit}": person for person in cohort for visit in cohort[person]}
    assert found == expected


@pytest.mark.parametrize("visits", [("ses-preop", "ses-postop"), ("baseline", "followup")])
@pytest.mark.parametrize("person", ["P14", "sub-01", "smith"])
def test_visits_above_a_persons_folder_are_his_too(
    tmp_path: Path, visits: tuple[str, str], person: str
) -> None:
    found = _people(tmp_path, *(f"{visit}/{person}" for visit in visits))
    assert found == {f"{visit}_{person}": person for visit in visits}


def test_the_root_may_be_the_persons_folder_or_the_visits(tmp_path: Path) -> None:
    assert _people(tmp_path / "P14", "ses-a", "ses-b") == {"ses-a": "P14", "ses-b": "P14"}
    found = case_folders(tmp_path / "P14" / "ses-a")
    assert {name: folder.subject for name, folder in found.items()} == {"ses-a": "P14"}


def test_a_name_that_comes_again_is_one_person_in_each_place(tmp_path: Path) -> None:
    folders = ["siteA/sub-01/ses-1", "siteB/sub-01/ses-1", "siteB/sub-01/ses-2"]
    assert _people(tmp_path, *folders) == {
        "siteA_sub-01_ses-1": "siteA_sub-01",
        "siteB_sub-01_ses-1": "siteB_sub-01",
        "sub-01_ses-2": "siteB_sub-01",
    }


def test_derivatives_are_of_the_same_person(tmp_path: Path) -> None:
    found = _people(tmp_path, "rawdata/sub-01/ses-1", "derivatives/strip/sub-01/ses-1", "sub-02")
    assert set(found.values()) == {"sub-01", "sub-02"}
    assert len(found) == 3


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"both 'P14_1'") as caught:
        _people(tmp_path, "P14/1", "P14_1")
    assert "Rename" in caught.value.hint


@pytest.mark.parametrize(
    ("people", "doubtful"),
    [
        (["P14_1", "P14_2", "P15_1"], ("P14_1", "P14_2")),
        (["P14", "P14_2", "P15"], ("P14", "P14_2")),
        (["Smith_2019", "Smith_2021-03-04", "Jones"], ("Smith_2019", "Smith_2021-03-04")),
        (["P14-1", "P14-1", "P15"], None),  # told already
        (["case_1", "case_2", "case_10"], None),  # all share the stem
        (["HG_0001", "HG_0002", "LG_0001"], None),  # too many digits
        (["BraTS2021_00001", "BraTS2021_00002", "x"], None),
        (["P14"], None),
        ([], None),
    ],
)
def test_numbers_that_may_be_visits_are_doubtful(
    people: list[str], doubtful: tuple[str, str] | None
) -> None:
    assert doubtful_visits(people) == doubtful


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
