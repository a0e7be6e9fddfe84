from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.data.phantom.anatomy import (
    INDEX,
    TISSUES,
    Anatomy,
    label_map_anatomy,
    mni_anatomy,
)
from medseg.data.phantom.lesion_masks import lesion_share
from medseg.errors import LabelError, ScanFileError

SPACING = (5.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def average() -> Anatomy:
    return mni_anatomy(SPACING)


def volume_ml(anatomy: Anatomy, tissue: str) -> float:
    share = anatomy.fractions[INDEX[tissue]] * (anatomy.depth_mm > 0)
    return float(share.sum()) * anatomy.grid.voxel_volume_mm3 / 1000.0


def test_shares_add_up_to_one_everywhere(average: Anatomy) -> None:
    total = average.fractions.sum(dim=0)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert float(average.fractions.min()) >= 0.0


@pytest.mark.parametrize(
    ("tissue", "low_ml", "high_ml"),
    [
        ("ventricle", 8, 45),
        ("cortex", 500, 950),
        ("white", 400, 800),
        ("deep_grey", 20, 70),
        ("brain_stem", 15, 45),
        ("cerebellar_cortex", 80, 200),
        ("cerebellar_white", 10, 60),
    ],
)
def test_the_average_head_has_human_volumes(
    average: Anatomy, tissue: str, low_ml: float, high_ml: float
) -> None:
    assert low_ml < volume_ml(average, tissue) < high_ml


def test_tissue_volumes_do_not_depend_on_the_spacing(average: Anatomy) -> None:
    finer = mni_anatomy((3.0, 3.0, 3.0))
    for tissue in TISSUES[1:]:
        # Small structures lose a little to averaging with what surrounds them.
        assert volume_ml(finer, tissue) == pytest.approx(volume_ml(average, tissue), rel=0.12)


def test_mirroring_twice_is_the_same_head(average: Anatomy) -> None:
    assert not torch.equal(average.mirrored().fractions, average.fractions)
    assert torch.equal(average.mirrored().mirrored().fractions, average.fractions)


def test_the_ventricles_are_deep_and_the_cortex_is_not(average: Anatomy) -> None:
    depth = {
        name: float((average.fractions[INDEX[name]] * average.depth_mm).sum())
        / float(average.fractions[INDEX[name]].sum())
        for name in ("ventricle", "cortex", "white")
    }
    assert depth["cortex"] < depth["white"] < depth["ventricle"]


def test_real_label_maps_give_whole_brains_that_lie_as_in_mni_space(
    shared_data: Path, average: Anatomy
) -> None:
    paths = sorted((shared_data / "label_maps").glob("*.nii.gz"))
    for path in paths[:2]:
        anatomy = label_map_anatomy(path, SPACING)
        total = anatomy.fractions.sum(dim=0)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0)
        assert volume_ml(anatomy, "white") > 250
        assert volume_ml(anatomy, "ventricle") > 4
        slope = [cerebellum_below_ventricles(head) for head in (anatomy, average)]
        assert slope[0] == pytest.approx(slope[1], abs=0.2)


def cerebellum_below_ventricles(anatomy: Anatomy) -> float:
    """Return the angle in the sagittal plane, radians, from ventricles to cerebellum."""
    centres = []
    for name in ("ventricle", "cerebellar_cortex"):
        share = anatomy.fractions[INDEX[name]] * (anatomy.depth_mm > 0)
        place = torch.nonzero(share >= 0).float().reshape(*share.shape, 3)
        centres.append((share[..., None] * place).sum(dim=(0, 1, 2)) / share.sum())
    away = centres[1] - centres[0]
    return float(torch.atan2(away[2], away[1]))


def write_labels(path: Path, labels: np.ndarray) -> Path:
    nib.Nifti1Image(labels.astype(np.uint8), np.diag([4.0, 4.0, 4.0, 1.0])).to_filename(path)
    return path


def test_a_label_map_without_white_matter_is_refused(tmp_path: Path) -> None:
    labels = np.zeros((20, 20, 20))
    labels[5:15, 5:15, 5:15] = 3
    path = write_labels(tmp_path / "head.nii.gz", labels)
    with pytest.raises(LabelError, match="needs white"):
        label_map_anatomy(path, SPACING)


def test_a_missing_label_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanFileError, match=r"none\.nii\.gz"):
        label_map_anatomy(tmp_path / "none.nii.gz", SPACING)


def test_real_masks_land_in_the_brain(shared_data: Path, average: Anatomy) -> None:
    path = sorted((shared_data / "ms_lesion_masks").glob("*.nii.gz"))[0]
    share = lesion_share(path, average)
    truth = float(np.asarray(nib.Nifti1Image.from_filename(path).dataobj).sum()) / 1000.0
    carried = float(share.sum()) * average.grid.voxel_volume_mm3 / 1000.0
    assert carried == pytest.approx(truth, rel=0.1)
    white = average.fractions[INDEX["white"]]
    assert float((share * white).sum() / share.sum()) > 0.6
