import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.data.phantom.anatomy import mni_anatomy
from medseg.data.phantom.cohort import PhantomSettings, PhantomSource, plan_shape
from medseg.data.phantom.deformation import draw_deformation
from medseg.data.phantom.presets import TARGET
from medseg.data.phantom.subject import grow_subject
from medseg.data.phantom.tumour_shapes import (
    PARTS,
    paint_shape,
    read_tumour_shape,
    tumour_files,
)
from medseg.errors import DataError, LabelError

SPACING_MM = 4.0


def tumour() -> np.ndarray:
    """Return a ball of necrosis, with a rim, a cap of solid tumour, and oedema on one side."""
    x, y, z = np.meshgrid(*(np.arange(60.0) - 30.0,) * 3, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    labels = np.zeros((60, 60, 60), dtype=np.uint8)
    labels[(radius < 24) & (x > 0)] = 2
    labels[radius < 15] = 4
    labels[(radius < 15) & (y > 8)] = 3
    labels[radius < 10] = 1
    return labels


def write(path: Path, labels: np.ndarray, step_mm: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-step_mm[0], step_mm[1], step_mm[2], 1.0])
    affine[:3, 3] = (70.0, -80.0, 11.0)
    nib.Nifti1Image(labels, affine).to_filename(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tumours")
    write(root / "a" / "seg.nii.gz", tumour())
    return root


def source(**changes: object) -> PhantomSource:
    chosen = {"disease": "tumour", "preset": "target", "spacing_mm": SPACING_MM, "n_subjects": 4}
    return PhantomSource(PhantomSettings(**(chosen | changes)))  # type: ignore[arg-type]


def test_label_maps_are_found_at_any_depth_and_brain_masks_are_not(tmp_path: Path) -> None:
    wanted = [
        write(tmp_path / name, tumour())
        for name in ("p1/visit/BraTS_001_Seg.nii.gz", "p2/tumour_mask.nii", "seg_3.nii.gz")
    ]
    for name in ("p1/brainmask.nii.gz", "p1/flair.nii.gz", "p2/Brain_Mask.nii"):
        write(tmp_path / name, tumour())
    assert tumour_files(tmp_path) == tuple(sorted(wanted))


def test_a_folder_without_a_tumour_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "flair.nii.gz", tumour())
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="tumour_masks"):
            source(tumour_masks=folder)


def test_an_empty_mask_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "seg.nii.gz", np.zeros((8, 8, 8), dtype=np.uint8))
    with pytest.raises(LabelError, match=r"seg\.nii\.gz"):
        _ = source(tumour_masks=path.parent)[0]


def test_unknown_labels_are_refused_by_value(tmp_path: Path) -> None:
    labels = tumour()
    labels[0, 0, 0], labels[0, 0, 1] = 5, 77
    path = write(tmp_path / "seg.nii.gz", labels)
    with pytest.raises(LabelError, match=r"\[5, 77\]"):
        read_tumour_shape(path, (SPACING_MM,) * 3)


def as_of_2023(labels: np.ndarray) -> np.ndarray:
    """Return labels of 2017 on as those of 2023 on, with a resection cavity, 4."""
    recent = np.where(labels == 4, 3, labels)
    recent[55:, 55:, 55:] = 4
    return recent


def of_2017(labels: np.ndarray) -> np.ndarray:
    return np.where(labels == 3, 1, labels)


def test_the_same_tumour_is_read_from_every_convention(tmp_path: Path) -> None:
    old = of_2017(tumour())
    recent = as_of_2023(old)
    without_cavity = np.where(recent == 4, 0, recent)
    spacing = (SPACING_MM,) * 3
    wanted = read_tumour_shape(write(tmp_path / "BraTS2021_00000_seg.nii.gz", old), spacing)
    for name, labels, convention in (
        ("BraTS-GLI-00005-101-seg.nii.gz", recent, "auto"),
        ("BraTS-GLI-00006-000-seg.nii.gz", without_cavity, "auto"),
        ("seg_a.nii.gz", without_cavity, "123"),
        ("seg_b.nii.gz", recent, "123rc"),
    ):
        found = read_tumour_shape(write(tmp_path / name, labels), spacing, convention=convention)
        torch.testing.assert_close(found.shares, wanted.shares)
        assert found.radius_mm == wanted.radius_mm


def test_label_3_without_4_is_asked_about_where_no_name_tells(tmp_path: Path) -> None:
    labels = np.where(tumour() == 4, 3, tumour())
    path = write(tmp_path / "seg.nii.gz", labels)
    with pytest.raises(LabelError, match="label 3 without any 4") as caught:
        _ = source(tumour_masks=tmp_path)[0]
    assert "tumour_labels" in str(caught.value)
    parts = {}
    for convention in ("1234", "123"):
        shape = read_tumour_shape(path, (SPACING_MM,) * 3, convention=convention)
        parts[convention] = [bool(share.any()) for share in shape.shares]
    assert parts == {"1234": [True, True, True, False], "123": [True, True, False, True]}
    assert source(tumour_masks=tmp_path, tumour_labels=123)[0].label is not None


def test_a_cavity_alone_is_no_tumour(tmp_path: Path) -> None:
    labels = np.where(tumour() == 4, 4, 0).astype(np.uint8)
    path = write(tmp_path / "BraTS-GLI-00005-101-seg.nii.gz", labels)
    with pytest.raises(LabelError, match="none of them"):
        read_tumour_shape(path, (SPACING_MM,) * 3)


@pytest.mark.parametrize("step_mm", [(1.0, 1.0, 1.0), (0.8, 1.1, 2.0)])
def test_a_shape_keeps_the_volume_of_every_part(tmp_path: Path, step_mm: tuple[float, ...]) -> None:
    labels = tumour()
    path = write(tmp_path / "seg.nii.gz", labels, step_mm)
    shape = read_tumour_shape(path, (SPACING_MM,) * 3)
    voxel_mm3 = float(np.prod(shape.grid.spacing_mm))
    for part, share in zip(PARTS, shape.shares, strict=True):
        expected = float((labels == part).sum() * np.prod(step_mm))
        assert float(share.sum()) * voxel_mm3 == pytest.approx(expected, rel=1e-4)
    core_mm3 = float(np.isin(labels, [1, 3, 4]).sum() * np.prod(step_mm))
    assert 4.0 / 3.0 * np.pi * shape.radius_mm**3 == pytest.approx(core_mm3)
    # Beyond the border the nearest value is taken: it must be nothing.
    for axis in (1, 2, 3):
        ends = shape.shares.select(axis, 0), shape.shares.select(axis, -1)
        assert all(float(end.abs().max()) == 0.0 for end in ends)


def test_the_origin_of_a_shape_is_the_centre_of_its_core(folder: Path) -> None:
    shape = read_tumour_shape(folder / "a" / "seg.nii.gz", (2.0, 2.0, 2.0))
    core = shape.shares[[0, 2, 3]].sum(dim=0)
    weights = torch.stack(torch.meshgrid(*map(torch.arange, core.shape), indexing="ij")).double()
    centre = (weights * core).flatten(1).sum(dim=1) / core.sum()
    assert np.abs(shape.grid.to_world(centre.numpy())).max() < 0.1


def test_poses_turn_mirror_and_scale_and_lie_in_white_matter(folder: Path) -> None:
    shape = read_tumour_shape(folder / "a" / "seg.nii.gz", (SPACING_MM,) * 3)
    anatomy = mni_anatomy((SPACING_MM,) * 3)
    handed, turns, growth = set(), [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        drawn = draw_deformation(anatomy, TARGET.anatomy, rng)
        placed, pushed = plan_shape(shape, anatomy, drawn, rng)
        scale = abs(np.linalg.det(placed.matrix)) ** (1.0 / 3.0)
        assert 0.74 < scale < 1.36
        turn = placed.matrix / scale
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
        handed.add(np.sign(np.linalg.det(turn)))
        turns.append(turn)
        assert placed.pushes()[0].reach_mm == pytest.approx(1.8 * shape.radius_mm / scale)
        assert float((pushed.offset_mm - drawn.offset_mm).abs().max()) > 0.5
        subject = grow_subject(anatomy, pushed, TARGET.anatomy, rng)
        painted = paint_shape(subject, placed, TARGET.lesions, rng)
        core = sum(int((painted.label == part).sum()) for part in (1, 3, 4))
        expected = 4.0 / 3.0 * np.pi * (shape.radius_mm / scale / SPACING_MM) ** 3
        growth.append(core / expected)
        assert float(subject.depth_mm[painted.label > 0].min()) > -SPACING_MM
    assert handed == {-1.0, 1.0}
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(turns)) > 0.1
    # Bending swells some and shrinks others; nothing of the core is cut off by a bad place.
    assert np.mean(growth) == pytest.approx(1.0, abs=0.15)
    assert min(growth) > 0.7


def test_a_case_has_the_parts_of_the_mask_and_only_t1c_shows_the_rim(folder: Path) -> None:
    cohort = source(tumour_masks=folder, modalities=("flair", "t1", "t1c"))
    assert cohort.name == "semireal-tumour-target"
    assert cohort.provenance(1)["parents"] == [str(folder / "a" / "seg.nii.gz")]
    assert "Menze" in cohort.citation
    case, again = cohort[1], source(tumour_masks=folder, n_subjects=9)[1]
    assert case.label is not None
    assert again.label is not None
    labels = case.label.data
    assert torch.equal(labels, again.label.data)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4}
    rim = labels == 4
    assert case.scans["t1c"].data[rim].mean() > case.scans["t1"].data[rim].mean() + 0.05
    assert not torch.equal(case.scans["flair"].data, source()[1].scans["flair"].data)


def test_real_tumours_come_into_heads_that_no_source_has(shared_data: Path) -> None:
    chosen = {
        "label_maps": shared_data / "label_maps",
        "tumour_masks": shared_data / "tumour_brats2013",
    }
    cohort = source(**chosen)
    generated = source(label_maps=shared_data / "label_maps", preset="source")
    assert not set(cohort.heads) & set(generated.heads)
    masks = {str(cohort.provenance(index)["parents"][1]) for index in range(4)}  # type: ignore[index]
    assert len(masks) == 4
    case = cohort[0]
    assert case.label is not None
    assert 5 < case.label.volume_ml((1, 3, 4)) < 120
    assert case.label.volume_ml((1, 2, 3, 4)) > 1.1 * case.label.volume_ml((1, 3, 4))
