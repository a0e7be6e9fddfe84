from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError

from medseg.data.sources.ms import MsSettings, MsSource
from medseg.errors import DataError, GeometryError, LabelError, ScanError

Write = Callable[..., Path]


def test_any_subset_of_modalities(tmp_path: Path, write_image: Write, write_mask: Write) -> None:
    for name in ("flair", "t1", "t1c", "t2"):
        write_image(tmp_path / "p1" / f"{name}.nii.gz")
    write_mask(tmp_path / "p1" / "lesion.nii.gz")
    write_image(tmp_path / "p2_T1" / "flair.nii.gz", seed=1)
    write_mask(tmp_path / "p2_T1" / "mask.nii.gz")
    write_image(tmp_path / "p2_T2" / "flair.nii", seed=2)
    write_mask(tmp_path / "p2_T2" / "mask.nii.gz")
    source = MsSource(MsSettings(root=tmp_path))
    assert source.identifiers == ("p1", "p2_T1", "p2_T2")
    assert source.subjects == ("p1", "p2", "p2")
    assert set(source[0].scans) == {"flair", "t1", "t1c", "t2"}
    assert set(source[1].scans) == {"flair"}
    assert source[1].brain is None
    assert not source[1].synthetic


def test_required_modality_names_the_case(
    tmp_path: Path, write_image: Write, write_mask: Write
) -> None:
    write_image(tmp_path / "p1" / "flair.nii.gz")
    write_mask(tmp_path / "p1" / "lesion.nii.gz")
    with pytest.raises(ScanError, match=r"'p1'.*\['t1c'\] is missing; it has \['flair'\]"):
        MsSource(MsSettings(root=tmp_path, required=("flair", "t1c")))


def test_mask_is_required_unless_said_otherwise(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "p1" / "flair.nii.gz")
    with pytest.raises(ScanError, match=r"'p1' must have a mask"):
        MsSource(MsSettings(root=tmp_path))
    assert MsSource(MsSettings(root=tmp_path, label_required=False))[0].label is None


def test_unexpected_and_empty_labels(tmp_path: Path, write_image: Write, write_mask: Write) -> None:
    write_image(tmp_path / "p1" / "flair.nii.gz")
    write_mask(tmp_path / "p1" / "lesion.nii.gz", (1, 2))
    with pytest.raises(LabelError, match=r"lesion\.nii\.gz also has \[2\]"):
        MsSource(MsSettings(root=tmp_path))[0]
    label = MsSource(MsSettings(root=tmp_path, lesion_labels=(1, 2)))[0].label
    assert label is not None
    assert label.data.unique().tolist() == [0, 1]
    write_mask(tmp_path / "p1" / "lesion.nii.gz", ())
    with pytest.raises(LabelError, match="none"):
        MsSource(MsSettings(root=tmp_path))[0]
    assert MsSource(MsSettings(root=tmp_path, allow_empty=True))[0].label is not None


def test_two_visits_in_one_folder_are_refused(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "p1" / "study1_FLAIR.nii.gz")
    write_image(tmp_path / "p1" / "study2_FLAIR.nii.gz")
    with pytest.raises(DataError, match=r"study1_FLAIR.* and study2_FLAIR"):
        MsSource(MsSettings(root=tmp_path, label_required=False))


def test_brain_mask_stored_as_a_fraction(
    tmp_path: Path, write_image: Write, write_mask: Write
) -> None:
    path = write_image(tmp_path / "p1" / "flair.nii.gz")
    write_mask(tmp_path / "p1" / "mask.nii.gz")
    image = nib.load(path)
    inside = np.zeros(image.shape)  # type: ignore[attr-defined]
    inside[1:4, 2:5, 1:3] = 0.99999997
    nib.save(nib.Nifti1Image(inside, image.affine), tmp_path / "p1" / "brain_mask.nii.gz")  # type: ignore[attr-defined]
    brain = MsSource(MsSettings(root=tmp_path))[0].brain
    assert brain is not None
    assert brain.data.sum() == 3 * 3 * 2
    assert brain.data.max() == 1


def test_grids_must_agree(tmp_path: Path, write_image: Write, write_mask: Write) -> None:
    path = write_image(tmp_path / "p1" / "flair.nii.gz")
    write_mask(tmp_path / "p1" / "mask.nii.gz")
    image = nib.load(path)
    moved = image.affine.copy()  # type: ignore[attr-defined]
    moved[0, 3] += 5
    data = np.random.default_rng(0).normal(size=image.shape)  # type: ignore[attr-defined]
    nib.save(nib.Nifti1Image(data, moved), tmp_path / "p1" / "t1.nii.gz")
    with pytest.raises(GeometryError, match=r"5\.00 mm away"):
        MsSource(MsSettings(root=tmp_path))[0]


def test_unknown_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="rooot"):
        MsSettings(root=tmp_path, rooot=1)  # type: ignore[call-arg]


def test_real_patients(shared_data: Path) -> None:
    ljubljana = MsSource(MsSettings(root=shared_data / "ms_ljubljana", required=("t1c",)))
    assert ljubljana.identifiers == ("patient07", "patient19")
    case = ljubljana[0]
    assert set(case.scans) == {"flair", "t1", "t1c", "t2"}
    assert case.label is not None
    assert case.label.volume_ml((1,)) == pytest.approx(1.3, abs=0.05)
    catania = MsSource(MsSettings(root=shared_data / "ms_mslesseg"))
    assert catania.subjects == ("P14", "P18")
    with pytest.raises(DataError, match="one file for 'flair'"):
        MsSource(MsSettings(root=shared_data / "ms_longitudinal_native"))
