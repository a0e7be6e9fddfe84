"""Round trips, and nibabel and SimpleITK as oracles; refusals are in test_nifti_refusals.py."""

import gzip
import warnings

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medseg.errors import GeometryError, ScanFileError
from medseg.geometry import Grid
from medseg.io.nifti import (
    AffineWarning,
    read_grid,
    read_label_map,
    read_scan,
    write_label_map,
    write_scan,
    write_volume,
)
from medseg.scan import LabelMap, Scan

SHAPE = (4, 5, 6)


def make_affine(seed: int, *, shear: bool) -> np.ndarray:
    """Any rotation and reflection, anisotropic, in the single precision that a file has."""
    rng = np.random.default_rng(seed)
    linear = Rotation.random(random_state=seed).as_matrix() @ np.diag(rng.uniform(0.3, 5, 3))
    linear = linear * rng.choice([-1, 1], 3)
    if shear:
        linear = linear @ (np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, rng.uniform(-200, 200, 3)
    return affine.astype(np.float32).astype(np.float64)


def _data(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 50, shape).astype(np.float32)


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([".nii", ".nii.gz"]))
def test_any_affine_and_any_voxels_come_back_the_same(
    tmp_path_factory, seed, shear, ending
) -> None:
    path = tmp_path_factory.mktemp("round") / f"scan{ending}"
    scan = Scan(torch.from_numpy(_data()), Grid(SHAPE, make_affine(seed, shear=shear)))
    write_scan(path, scan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # our own files never contradict themselves
        back = read_scan(path)
    assert torch.equal(back.data, scan.data)
    assert np.array_equal(back.grid.affine, scan.grid.affine)
    assert np.array_equal(read_grid(path).affine, scan.grid.affine)
    assert np.array_equal(nib.nifti1.load(path).affine, scan.grid.affine)
    header = nib.nifti1.load(path).header
    if shear:
        assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 0)
    elif int(header["qform_code"]) > 0:
        assert Grid(SHAPE, header.get_qform()).matches(scan.grid, tolerance_mm=0.01)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LIA", "SPL", "AIR", "PSL"])
def test_both_affines_are_written_equal_in_every_orientation(tmp_path, orientation) -> None:
    affine = np.diag([1.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = [-90.5, -126, -72]
    grid = Grid(SHAPE, affine).reoriented(orientation)
    write_scan(tmp_path / "a.nii", Scan(torch.from_numpy(_data(grid.shape)), grid))
    header = nib.nifti1.load(tmp_path / "a.nii").header
    assert int(header["qform_code"]) == int(header["sform_code"]) == 2
    assert np.allclose(header.get_qform(), header.get_sform(), atol=1e-5)
    assert read_grid(tmp_path / "a.nii").orientation == orientation


def test_simpleitk_reads_the_same_voxels_at_the_same_place(tmp_path) -> None:
    grid = Grid(SHAPE, make_affine(7, shear=False))
    write_scan(tmp_path / "a.nii.gz", Scan(torch.from_numpy(_data()), grid))
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), _data())
    corner = [n - 1 for n in SHAPE]
    place = np.array(image.TransformIndexToPhysicalPoint(corner)) * [-1, -1, 1]
    assert place == pytest.approx(grid.to_world(corner), abs=0.01)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("slope", [None, 0.25])
def test_every_number_type_and_slope_as_nibabel_reads_it(tmp_path, order, kind, slope) -> None:
    raw = np.random.default_rng(2).integers(0, 100, SHAPE).astype(kind)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(kind).newbyteorder(order))
    image = nib.Nifti1Image(raw, np.eye(4), header)
    if slope is not None:
        image.header.set_slope_inter(slope, -7)
    nib.save(image, tmp_path / "a.nii")
    if slope is not None:  # nibabel rescales what it writes: store the numbers, declare the slope
        _patch(tmp_path / "a.nii", raw.astype(np.dtype(kind).newbyteorder(order)), order, slope)
    expected = nib.nifti1.load(tmp_path / "a.nii").get_fdata()
    data = read_scan(tmp_path / "a.nii").data
    assert data.dtype == torch.float32
    assert data.is_contiguous()
    assert np.allclose(data.numpy(), expected)
    assert np.allclose(expected, raw * slope - 7 if slope else raw)


def _patch(path, raw, order, slope) -> None:
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, -7], dtype=f"{order}f4").tobytes()
    content[352:] = raw.tobytes(order="F")
    path.write_bytes(bytes(content))


def test_nifti2_is_read(tmp_path) -> None:
    nib.save(nib.Nifti2Image(_data(), np.diag([2, 3, 4, 1])), tmp_path / "a.nii.gz")
    scan = read_scan(tmp_path / "a.nii.gz")
    assert scan.grid.spacing_mm == (2, 3, 4)
    assert np.array_equal(scan.data.numpy(), _data())


def test_a_series_of_one_volume_is_that_volume(tmp_path) -> None:
    nib.save(nib.Nifti1Image(_data((*SHAPE, 1)), np.eye(4)), tmp_path / "a.nii")
    assert read_scan(tmp_path / "a.nii").data.shape == SHAPE
    assert read_grid(tmp_path / "a.nii").shape == SHAPE


def test_what_is_compressed_is_known_by_content_not_by_name(tmp_path) -> None:
    nib.save(nib.Nifti1Image(_data(), np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").rename(tmp_path / "b.nii")
    assert read_scan(tmp_path / "b.nii").data.shape == SHAPE


def _two_affines(path, *, sform_code: int, qform_code: int, shift_mm: float) -> tuple:
    sform = np.diag([-1.0, 1, 1, 1])
    qform = sform.copy()
    qform[0, 3] = shift_mm
    image = nib.Nifti1Image(_data(), None)
    image.header.set_sform(sform, sform_code)
    image.header.set_qform(qform, qform_code)
    path.write_bytes(image.to_bytes())
    return sform, qform


@pytest.mark.parametrize(
    ("sform_code", "qform_code", "chosen"), [(1, 1, 0), (4, 2, 0), (2, 0, 0), (0, 1, 1)]
)
def test_the_sform_counts_if_its_code_is_above_zero(
    tmp_path, sform_code, qform_code, chosen
) -> None:
    both = _two_affines(
        tmp_path / "a.nii", sform_code=sform_code, qform_code=qform_code, shift_mm=126
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AffineWarning)
        scan = read_scan(tmp_path / "a.nii")
    assert np.allclose(scan.grid.affine, both[chosen])


def test_a_disagreement_is_told_in_mm(tmp_path) -> None:
    _two_affines(tmp_path / "a.nii", sform_code=1, qform_code=1, shift_mm=3.5)
    with pytest.warns(AffineWarning, match=r"a\.nii.*3\.50 mm.*sform is used"):
        read_scan(tmp_path / "a.nii")
    with pytest.warns(AffineWarning, match=r"3\.50 mm"):
        read_grid(tmp_path / "a.nii")


@pytest.mark.parametrize(("qform_code", "shift_mm"), [(1, 0.05), (0, 126)])
def test_what_agrees_or_does_not_count_is_no_warning(tmp_path, qform_code, shift_mm) -> None:
    _two_affines(tmp_path / "a.nii", sform_code=1, qform_code=qform_code, shift_mm=shift_mm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scan = read_scan(tmp_path / "a.nii")
    assert np.allclose(scan.grid.affine, nib.nifti1.load(tmp_path / "a.nii").get_sform())


def test_a_file_without_any_affine_warns_and_lies_where_nibabel_puts_it(tmp_path) -> None:
    _two_affines(tmp_path / "a.nii", sform_code=0, qform_code=0, shift_mm=1)
    with pytest.warns(AffineWarning, match="neither"):
        grid = read_grid(tmp_path / "a.nii")
    assert np.allclose(grid.affine, nib.nifti1.load(tmp_path / "a.nii").affine)


def test_what_was_guessed_is_not_written_as_known(tmp_path) -> None:
    image = nib.Nifti1Image(_data(), None)
    image.header.set_zooms((0.9, 1.1, 3))
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    with pytest.warns(AffineWarning, match="guessed"):
        scan = read_scan(tmp_path / "a.nii")
    assert scan.grid.is_guessed
    write_scan(tmp_path / "b.nii", scan)
    header = nib.nifti1.load(tmp_path / "b.nii").header
    assert int(header["sform_code"]) == int(header["qform_code"]) == 0
    with pytest.warns(AffineWarning, match="guessed"):
        back = read_grid(tmp_path / "b.nii")
    assert back.matches(scan.grid, tolerance_mm=1e-4)
    # What is made of it stays where it was put.
    inner = scan.grid.crop((1, 1, 1), (3, 4, 5)).reoriented("RAS")
    write_scan(tmp_path / "c.nii", Scan(torch.from_numpy(_data(inner.shape)), inner))
    assert np.allclose(read_grid(tmp_path / "c.nii").affine, inner.affine, atol=1e-4)


@pytest.mark.parametrize(
    ("label", "kind"), [(1, "uint8"), (255, "uint8"), (530, "int16"), (70000, "int32")]
)
def test_masks_come_back_in_the_smallest_type(tmp_path, label, kind) -> None:
    data = torch.zeros(SHAPE, dtype=torch.int64)
    data[1, 2, 3] = label
    write_label_map(tmp_path / "a.nii.gz", LabelMap(data, Grid(SHAPE, np.eye(4))))
    assert str(nib.nifti1.load(tmp_path / "a.nii.gz").get_data_dtype()) == kind
    back = read_label_map(tmp_path / "a.nii.gz").data
    assert str(back.dtype) == f"torch.{kind}"
    assert torch.equal(back.long(), data)


def test_an_empty_prediction_can_be_written_and_read(tmp_path) -> None:
    empty = LabelMap(torch.zeros(SHAPE, dtype=torch.uint8), Grid(SHAPE, np.eye(4)))
    write_label_map(tmp_path / "a.nii", empty)
    assert read_label_map(tmp_path / "a.nii", allow_empty=True).data.sum() == 0


def test_several_volumes_are_written_as_the_fourth_axis(tmp_path) -> None:
    volume = torch.from_numpy(_data((2, *SHAPE)))
    write_volume(tmp_path / "a.nii.gz", volume, Grid(SHAPE, np.eye(4)))
    image = nib.nifti1.load(tmp_path / "a.nii.gz")
    assert image.shape == (*SHAPE, 2)
    assert np.array_equal(image.get_fdata(dtype=np.float32)[..., 1], volume[1].numpy())


def test_the_same_voxels_give_the_same_bytes(tmp_path) -> None:
    scan = Scan(torch.from_numpy(_data()), Grid(SHAPE, np.eye(4)))
    write_scan(tmp_path / "a.nii.gz", scan)
    write_scan(tmp_path / "b.nii.gz", scan)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_packed_file_is_plain_gzip_without_name_or_time(tmp_path) -> None:
    scan = Scan(torch.from_numpy(_data()), Grid(SHAPE, np.eye(4)))
    write_scan(tmp_path / "a.nii.gz", scan)
    write_scan(tmp_path / "a.nii", scan)
    packed, plain = (tmp_path / "a.nii.gz").read_bytes(), (tmp_path / "a.nii").read_bytes()
    assert packed[:8] == b"\x1f\x8b\x08" + bytes(5)
    assert gzip.decompress(packed) == plain
    back = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz"))).T
    assert np.array_equal(back, scan.data.numpy())


def test_whatever_packed_it_is_read(tmp_path) -> None:
    scan = Scan(torch.from_numpy(_data()), Grid(SHAPE, np.eye(4)))
    write_scan(tmp_path / "a.nii", scan)
    content = (tmp_path / "a.nii").read_bytes()
    parts = [gzip.compress(content[at : at + 300], at // 300) for at in range(0, len(content), 300)]
    ways = {
        "best": gzip.compress(content, 9),
        "stored": gzip.compress(content, 0),
        "in members": b"".join(parts),
        "padded": gzip.compress(content) + bytes(512),
    }
    for packed in ways.values():
        (tmp_path / "b.nii.gz").write_bytes(packed)
        assert torch.equal(read_scan(tmp_path / "b.nii.gz").data, scan.data)
        assert read_grid(tmp_path / "b.nii.gz").matches(scan.grid, tolerance_mm=0.0)


def test_writing_refuses_other_endings_and_shapes(tmp_path) -> None:
    grid = Grid(SHAPE, np.eye(4))
    with pytest.raises(ScanFileError, match=r"a\.mha"):
        write_scan(tmp_path / "a.mha", Scan(torch.zeros(SHAPE), grid))
    with pytest.raises(GeometryError, match=r"\(3, 5, 6\)"):
        write_volume(tmp_path / "a.nii", torch.zeros(3, 5, 6), grid)
    assert list(tmp_path.iterdir()) == []


def test_real_files_are_read_as_nibabel_reads_them(shared_data) -> None:
    names = [
        "ms_ljubljana/patient07/flair.nii.gz",  # sform code 0, values below zero
        "ms_longitudinal_native/patient01/study1_FLAIR.nii.gz",  # oblique, thick slices
        "tumour_brats2013/pat0003/t1c_znorm.nii.gz",  # slope, qform code 0
    ]
    for name in names:
        image = nib.nifti1.load(shared_data / name)
        scan = read_scan(shared_data / name)
        assert np.array_equal(scan.grid.affine, image.affine)
        assert np.allclose(scan.data.numpy(), image.get_fdata(dtype=np.float32), atol=1e-4)


def test_real_masks_are_read_and_written_on_their_grid(shared_data, tmp_path) -> None:
    lesion = read_label_map(shared_data / "ms_ljubljana/patient07/lesion.nii.gz", allowed=(1,))
    assert lesion.volume_ml((1,)) == pytest.approx(1.3, abs=0.05)
    # Stored as 255 with a slope of 1/255, which is not quite 1.
    brain = read_label_map(shared_data / "tumour_brats2013/pat0003/brainmask.nii.gz", allowed=(1,))
    assert 1000 < brain.volume_ml((1,)) < 2500
    write_label_map(tmp_path / "a.nii.gz", brain)
    back = read_label_map(tmp_path / "a.nii.gz")
    assert torch.equal(back.data, brain.data)
    assert np.array_equal(back.grid.affine, brain.grid.affine)


def test_a_real_label_map_lies_left_inferior_anterior(shared_data) -> None:
    assert read_grid(shared_data / "label_maps/training_seg_01.nii.gz").orientation == "LIA"
