"""Every kind of bad input is refused with the file, the rule, the value and the way out."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import GeometryError, LabelError, MedsegError, ScanError, ScanFileError
from medseg.io.nifti import read_grid, read_label_map, read_scan

SHAPE = (4, 5, 6)
_PIXDIM, _SFORM, _QUATERN, _DATATYPE, _MAGIC = 76, 280, 256, 70, 344


def _good(data: np.ndarray | None = None) -> bytes:
    if data is None:
        data = np.arange(120, dtype=np.float32).reshape(SHAPE)
    image = nib.Nifti1Image(data, np.eye(4))
    image.header.set_qform(np.eye(4), 1)
    image.header.set_sform(np.eye(4), 1)
    return image.to_bytes()


def _with(where: int, value: np.ndarray) -> bytes:
    content = bytearray(_good())
    content[where : where + value.nbytes] = value.tobytes()
    return bytes(content)


def _filled(value: float, *, everywhere: bool = False) -> bytes:
    data = np.arange(120, dtype=np.float32).reshape(SHAPE)
    data[1, 2, 3] = value
    return _good(np.full_like(data, value) if everywhere else data)


def _no_sform_bad_quaternion() -> bytes:
    content = bytearray(_with(_QUATERN, np.array([3, 3, 3], np.float32)))
    content[254:256] = b"\0\0"
    return bytes(content)


F4 = np.float32
BAD_FILES = {
    "empty file": (b"", ScanFileError, "no bytes"),
    "text": (b"This is a text file." * 40, ScanFileError, "single-file NIfTI.*This"),
    "DICOM": (b"\0" * 128 + b"DICM" + b"\0" * 400, ScanFileError, "single-file NIfTI"),
    "header cut short": (_good()[:200], ScanFileError, "header cut short"),
    "Analyze pair": (_with(_MAGIC, np.frombuffer(b"ni1\0", np.uint8)), ScanFileError, "two-file"),
    "voxels cut short": (_good()[:-9], ScanFileError, "truncated.*832 bytes.*823"),
    "compressed, cut short": (gzip.compress(_good())[:-40], ScanFileError, "truncated or damaged"),
    "compressed, end missing": (gzip.compress(_good())[:-4], ScanFileError, "truncated or damaged"),
    "compressed, damaged": (
        gzip.compress(_good(), mtime=0)[:-8] + b"\0" * 8, ScanFileError, "truncated or damaged",
    ),
    "complex": (_good(np.ones(SHAPE, np.complex64)), ScanFileError, "complex64"),
    "unknown type": (_with(_DATATYPE, np.array([9999], np.int16)), ScanFileError, "number type"),
    "NaN": (_filled(np.nan), ScanError, r"1 voxels are NaN.*\(1, 2, 3\)"),
    "infinite": (_filled(-np.inf), ScanError, r"1 voxels.*\(1, 2, 3\)"),
    "zero": (_filled(0, everywhere=True), ScanError, "zero everywhere"),
    "constant": (_filled(7.5, everywhere=True), ScanError, "7.5 everywhere"),
    "too large for float32": (
        _good(np.linspace(0, 1e300, 120).reshape(SHAPE)), ScanError, "infinite",
    ),
    "2D": (_good(np.arange(20, dtype=F4).reshape(4, 5)), ScanError, r"2D with shape \(4, 5\)"),
    "4D": (_good(np.arange(240, dtype=F4).reshape(*SHAPE, 2)), ScanError, r"\(4, 5, 6, 2\)"),
    "no voxel size": (_with(_PIXDIM + 8, np.array([0], F4)), GeometryError, "0.0"),
    "negative voxel size": (_with(_PIXDIM + 4, np.array([-2], F4)), GeometryError, "-2.0"),
    "NaN voxel size": (_with(_PIXDIM + 4, np.array([np.nan], F4)), GeometryError, "nan"),
    "singular sform": (
        _with(_SFORM, np.array([1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0], F4)),
        GeometryError, "singular",
    ),
    "sform of zeros": (_with(_SFORM, np.zeros(12, F4)), GeometryError, "positive"),
    "sform of NaN": (_with(_SFORM, np.full(12, np.nan, F4)), GeometryError, "finite"),
    "bad quaternion": (_no_sform_bad_quaternion(), GeometryError, "quaternion"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused(tmp_path, name) -> None:
    content, error, message = BAD_FILES[name]
    path = tmp_path / "bad.nii"
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_scan(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", [k for k, v in BAD_FILES.items() if v[1] is GeometryError])
def test_reading_the_header_alone_refuses_bad_geometry_too(tmp_path, name) -> None:
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(gzip.compress(BAD_FILES[name][0]))
    with pytest.raises(GeometryError, match=BAD_FILES[name][2]):
        read_grid(path)


def test_the_good_file_that_they_were_made_from_is_read(tmp_path) -> None:
    (tmp_path / "good.nii").write_bytes(_good())
    assert read_scan(tmp_path / "good.nii").data.shape == SHAPE


def test_a_missing_file_and_a_folder_are_refused(tmp_path) -> None:
    for path in (tmp_path / "none.nii", tmp_path):
        for read in (read_scan, read_label_map, read_grid):
            with pytest.raises(ScanFileError, match=str(path)) as caught:
                read(path)
            assert caught.value.hint


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch) -> None:
    # Not by its mode: a test run as root would read it anyway.
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ScanFileError, match=r"a\.nii.*Permission denied.*permission to read"):
        read_scan(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("values", "allowed", "message"),
    [
        ([0, 1, 3], (1, 2), r"one of \[0, 1, 2\].*holds 3"),
        ([0, -1], None, "holds -1"),
        ([0, 0.4, 1], None, "whole.*0.4"),
        ([0, np.nan], None, "whole.*nan"),
        ([0, np.inf], None, "whole.*inf"),
        ([0, 4e9], None, "4e.09"),
        ([0, 0], None, "every voxel is 0"),
        (list(range(20)), (1,), r"\.\.\. \(18 values\)"),
    ],
)
def test_a_bad_mask_is_refused(tmp_path, values, allowed, message) -> None:
    path = tmp_path / "mask.nii"
    path.write_bytes(_good(np.resize(np.array(values, np.float64), SHAPE)))
    with pytest.raises(LabelError, match=message) as caught:
        read_label_map(path, allowed=allowed)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_whole_numbers_stored_as_floats_are_a_mask(tmp_path) -> None:
    path = tmp_path / "mask.nii"
    path.write_bytes(_good(np.resize(np.array([0, 1, 0.9999999, 2], np.float64), SHAPE)))
    assert read_label_map(path, allowed=(1, 2)).data.unique().tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("ignore::medseg.io.nifti.AffineWarning")
def test_every_byte_of_the_header_may_be_damaged_without_a_foreign_error(tmp_path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.nii"
    refused = 0
    for _ in range(1500):
        content = bytearray(_good())
        for where in rng.integers(0, 352, 4):
            content[where] = rng.integers(0, 256)
        path.write_bytes(bytes(content))
        try:
            with np.errstate(all="ignore"):
                read_scan(path)
        except MedsegError:
            refused += 1
    assert refused > 250
