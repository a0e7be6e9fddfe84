"""What the cases of an input path are called."""

from pathlib import Path

import pytest

from medseg.batch.cases import find_cases


@pytest.mark.parametrize(
    ("file", "given", "name"),
    [
        ("A/P01/flair.nii.gz", "A/P01", "P01"),
        ("A/P01/flair.nii.gz", "A", "P01"),
        ("A/0001/flair.nii.gz", "A/0001", "0001"),
        ("A/ses-01/flair.nii.gz", "A/ses-01", "A_ses-01"),
        ("A/ses-01/flair.nii.gz", "A", "A_ses-01"),
        ("A/ses-01/anat/flair.nii.gz", "A/ses-01/anat", "A_ses-01"),
        ("A/anat/flair.nii.gz", "A/anat", "A"),
        ("P14/T1/flair.nii.gz", "P14/T1", "P14_T1"),
        ("P14/T1/flair.nii.gz", "P14/T1/flair.nii.gz", "P14_T1_flair"),
        ("A/anat/FLAIR.nii", "A/anat/FLAIR.nii", "A_FLAIR"),
        ("A/t1.nii.gz", "A/t1.nii.gz", "A_t1"),
        ("A/P01_flair.nii.gz", "A/P01_flair.nii.gz", "P01_flair"),
    ],
)
def test_a_visit_or_a_bare_modality_takes_the_name_above_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, given: str, name: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.touch()
    ((identifier, load),) = find_cases(tmp_path / given, channels=("flair",))
    assert identifier == name
    assert load.source == (path if path.name in given else path.parent).resolve()
    if (tmp_path / given).is_dir():
        monkeypatch.chdir(tmp_path / given)
        assert [item[0] for item in find_cases(Path(), channels=("flair",))] == [name]


def test_a_longer_name_that_is_taken_is_not_given(tmp_path: Path) -> None:
    for folder in ("T1", "P14_T1"):
        (tmp_path / "P14" / folder).mkdir(parents=True)
        (tmp_path / "P14" / folder / "flair.nii.gz").touch()
    names = [item[0] for item in find_cases(tmp_path / "P14", channels=("flair",))]
    assert sorted(names) == ["P14_T1", "T1"]
