"""NIfTI files, read and written with one rule for their two affines.

**Reading.** A NIfTI carries an *sform* and a *qform*. The sform counts if its code is above 0, else
the qform if its code is; with neither, the position that nibabel assumes is taken and a warning
says so. Where both are set and place a corner more than 0.1 mm apart, an :class:`AffineWarning`
gives the distance.

**Writing.** Both are set to the same affine with code 2 (aligned), or 0 (unknown) where the affine
was guessed on reading, so that no viewer takes it for known. A qform is a rotation times
voxel sizes: it cannot hold a shear, nor, in single precision, every rotation by nearly 180 degrees.
There the sform alone is valid, and the qform holds the nearest rotation with code 0.

**Packing.** ``.nii.gz`` goes through ISA-L at its level 1, without name or time: the same voxels
give the same bytes on one kind of machine. CPU seconds to write (and to read), and MB, for volumes
of 240 x 240 x 155 on one core with AVX2:

===================  ===================  ===================  ===================
library and level    probability, 36 MB   image int16, 18 MB   mask, 9 MB
===================  ===================  ===================  ===================
zlib 1               .59 (.13), 15.1      .082 (.034), 2.41    .014 (.005), .083
zlib 6               .66 (.13), 15.0      .222 (.060), 2.32    .046 (.019), .041
ISA-L 0              .05 (.08), 19.9      .014 (.031), 3.37    .002 (.005), .123
**ISA-L 1**          .05 (.07), 15.1      .014 (.030), 2.26    .002 (.005), .054
ISA-L 2              .06 (.08), 15.1      .016 (.029), 2.25    .002 (.005), .054
ISA-L 3              .15 (.07), 15.1      .069 (.026), 2.26    .031 (.003), .070
ISA-L 1, 2 threads   .07                  .018                 .004
===================  ===================  ===================  ===================
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from isal import igzip, igzip_lib
from nibabel.affines import apply_affine
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from torch import Tensor

from medseg.errors import GeometryError, ScanError, ScanFileError
from medseg.geometry import Affine, Grid
from medseg.io.atomic import write_bytes
from medseg.io.check import check_image, check_label
from medseg.scan import LabelMap, Scan

AFFINE_TOLERANCE_MM = 0.1
_QFORM_TOLERANCE_MM = 0.01
_UNKNOWN, _ALIGNED = 0, 2
_HEADER_BYTES = 540
_COMPRESSION_LEVEL = 1
_Header = nib.Nifti1Header  # NIfTI-2's header is a subclass


class AffineWarning(UserWarning):
    """A file whose place in the world is doubtful: its two affines disagree, or it has none."""


def read_scan(path: str | Path) -> Scan:
    """Return the image in a NIfTI-1 or NIfTI-2 file (``.nii``, ``.nii.gz``), scaled by its slope.

    Parameters
    ----------
    path : path
        A three-dimensional image, or a series of one volume.

    Returns
    -------
    Scan
        float32 intensities on the file's own grid.

    Raises
    ------
    ScanFileError
        Missing, unreadable, truncated, or not NIfTI.
    ScanError
        Two-dimensional, several volumes, NaN or infinite, or constant.
    GeometryError
        Voxel sizes that are not positive, or an affine that is not finite and invertible.
    """
    data, grid = _read(path)
    with np.errstate(over="ignore"):  # what overflows float32 becomes infinite and is refused below
        data = np.ascontiguousarray(data, dtype=np.float32)
    check_image(data, path)
    return Scan(torch.from_numpy(data), grid)


def read_label_map(
    path: str | Path, *, allowed: Collection[int] | None = None, allow_empty: bool = False
) -> LabelMap:
    """Return the mask in a NIfTI file; whole numbers stored as floats are accepted.

    Parameters
    ----------
    path : path
        A three-dimensional mask, or a series of one volume.
    allowed : collection of int, optional
        Labels that may occur beside 0; any when not given.
    allow_empty : bool
        Accept a mask without any label, such as a prediction that found nothing.

    Raises
    ------
    ScanFileError, ScanError, GeometryError
        As :func:`read_scan`.
    LabelError
        Labels that are not whole, negative or not allowed; an empty mask unless ``allow_empty``.
    """
    data, grid = _read(path)
    labels = check_label(data, path, allowed, allow_empty=allow_empty)
    return LabelMap(torch.from_numpy(np.ascontiguousarray(labels)), grid)


def read_grid(path: str | Path) -> Grid:
    """Return the grid of a NIfTI file from its header alone, without reading voxels.

    Raises
    ------
    ScanFileError, ScanError, GeometryError
        As :func:`read_scan`, except what only the voxels can show.
    """
    header = _parse(_content(path, _HEADER_BYTES), path)
    return _grid(header, path)


def write_scan(path: str | Path, scan: Scan) -> None:
    """Write an image as float32, atomically; ``path`` ends in ``.nii`` or ``.nii.gz``."""
    write_volume(path, scan.data, scan.grid)


def write_label_map(path: str | Path, label_map: LabelMap) -> None:
    """Write a mask in the smallest integer type that holds it, atomically."""
    labels = check_label(label_map.data.cpu().numpy(), path, allow_empty=True)
    _write(path, labels, label_map.grid)


def write_volume(path: str | Path, data: Tensor, grid: Grid) -> None:
    """Write float values on a grid, atomically.

    Parameters
    ----------
    path : path
        Ends in ``.nii`` or ``.nii.gz``.
    data : Tensor, shape (x, y, z) or (n, x, y, z)
        Stored as float32; n volumes become the fourth axis of the file.
    grid : Grid
        Where the voxels lie.

    Raises
    ------
    GeometryError
        The data do not have the shape of the grid.
    ScanFileError
        The name has another ending, or the folder cannot be written to.
    """
    array = data.detach().to(dtype=torch.float32, device="cpu").numpy()
    if array.shape[-3:] != grid.shape or array.ndim not in (3, 4):
        raise GeometryError(
            f"{path}: data and grid must have one shape, but they have {array.shape} and "
            f"{grid.shape}.",
            hint="Bring the data back to this grid first.",
        )
    _write(path, np.moveaxis(array, 0, -1) if array.ndim == 4 else array, grid)


def _content(path: str | Path, limit: int = -1) -> bytes:
    """Return the file's first ``limit`` bytes, or all of them, unpacked if they are compressed."""
    try:
        with Path(path).open("rb") as stream:
            is_packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            if not is_packed:
                return stream.read(limit)
            if limit < 0:  # checks the checksum too, which reading a known length would not
                return igzip.decompress(stream.read())
            with igzip.IGzipFile(fileobj=stream) as unpacked:
                return unpacked.read(limit)
    # The library's type stubs call its error class an instance.
    except (EOFError, igzip_lib.IsalError, igzip.BadGzipFile) as error:  # pyright: ignore
        raise ScanFileError(
            f"{path}: a compressed file must be whole, but this one is truncated or damaged "
            f"({error}).",
            hint="Copy or export it again.",
        ) from error
    except OSError as error:
        raise ScanFileError(
            f"{path}: a scan must be a readable file, but: {error.strerror or error}.",
            hint="Check the path, and that you have permission to read it.",
        ) from error


def _parse(content: bytes, path: str | Path) -> _Header:
    """Return the header, after checking that these bytes are a single-file NIfTI."""
    sizes = {int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")}
    if 348 in sizes and content[344:348] == b"n+1\0" and len(content) >= 348:
        return nib.Nifti1Header(content[:348], check=False)
    if 540 in sizes and content[4:8] == b"n+2\0" and len(content) >= 540:
        return nib.Nifti2Header(content[:540], check=False)
    if 348 in sizes:
        found = "an Analyze or two-file NIfTI header, or a header cut short"
    else:
        found = f"{content[:4]!r} at its start" if content else "no bytes at all"
    raise ScanFileError(
        f"{path}: a scan must be a single-file NIfTI (.nii, .nii.gz), but this file has {found}.",
        hint="Convert it first, for example DICOM with dcm2niix.",
    )


def _grid(header: _Header, path: str | Path) -> Grid:
    """Return the grid of a header by the two-affine rule."""
    shape = tuple(int(length) for length in header.get_data_shape())
    if len(shape) < 3:
        raise ScanError(
            f"{path}: a scan must have three axes, but this image is {len(shape)}D with shape "
            f"{shape}.",
            hint="Give the whole volume; stack single slices into one first.",
        )
    if any(length != 1 for length in shape[3:]):
        raise ScanError(
            f"{path}: a scan must be one volume, but this series has shape {shape}.",
            hint="Split the series into its volumes and give one of them.",
        )
    sizes_mm = [float(size) for size in header["pixdim"][1:4]]
    if not all(np.isfinite(size) and size > 0 for size in sizes_mm):
        raise GeometryError(
            f"{path}: voxel sizes must be positive, but the header's pixdim gives {sizes_mm} mm.",
            hint="Write the true voxel sizes into pixdim[1:4].",
        )
    try:
        return _choose_affine(header, (shape[0], shape[1], shape[2]), path)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error.message}", hint=error.hint) from error


def _choose_affine(header: _Header, shape: tuple[int, int, int], path: str | Path) -> Grid:
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    qform = _qform(header) if has_qform else None
    if has_sform:
        grid = Grid(shape, np.asarray(header.get_sform(coded=False), dtype=np.float64))
        if has_qform:
            _compare(grid, qform, path)
        return grid
    if has_qform:
        if qform is None:
            raise GeometryError(
                "A qform must hold a unit quaternion, but this one cannot be decoded.",
                hint="Repair the header's qform, or set a valid sform.",
            )
        return Grid(shape, qform)
    warnings.warn(
        f"{path}: neither sform nor qform is set, so position and left-right are guessed.",
        AffineWarning,
        stacklevel=1,  # here: Python tells it once a file, whoever reads it
    )
    return Grid(shape, header.get_base_affine(), is_guessed=True)


def _qform(header: _Header) -> Affine | None:
    try:
        return np.asarray(header.get_qform(coded=False), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return None


def _compare(grid: Grid, qform: Affine | None, path: str | Path) -> None:
    """Warn when a valid sform and a valid qform do not say the same."""
    if qform is not None and np.isfinite(qform).all():
        # Not as a Grid: the qform that loses may be singular.
        voxels = grid.to_voxel(grid.corners_mm())
        apart_mm = grid.corners_mm() - apply_affine(qform, voxels)
        distance_mm = float(np.linalg.norm(apart_mm, axis=1).max())
        if distance_mm <= AFFINE_TOLERANCE_MM:
            return
        finding = f"they lie {distance_mm:.2f} mm apart at the farthest corner"
    else:
        finding = "the qform cannot be decoded"
    warnings.warn(
        f"{path}: sform and qform should agree within {AFFINE_TOLERANCE_MM} mm, but {finding}; "
        "the sform is used.",
        AffineWarning,
        stacklevel=1,
    )


def _read(path: str | Path) -> tuple[NDArray[np.number], Grid]:
    """Return the scaled voxels, shape (x, y, z), in Fortran order, and their grid."""
    content = _content(path)
    header = _parse(content, path)
    grid = _grid(header, path)
    raw = _voxels(content, header, grid, path)
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise ScanFileError(
            f"{path}: intensity scaling must be finite, but: {error}.",
            hint="Repair the header's scl_slope and scl_inter.",
        ) from error
    if slope is None or (slope == 1 and intercept == 0):
        return raw, grid
    # In double precision: a slope of 1e-4 on 32-bit counts would lose the low digits otherwise.
    return raw.astype(np.float64) * slope + (intercept or 0.0), grid


def _voxels(content: bytes, header: _Header, grid: Grid, path: str | Path) -> NDArray[np.number]:
    """Return the stored numbers, after checking that the file holds all of them."""
    dtype = _number_type(header, path)
    offset = float(header["vox_offset"])
    if not np.isfinite(offset):
        raise ScanFileError(
            f"{path}: the voxels must start at a finite place, but vox_offset is {offset}.",
            hint="Copy or export it again.",
        )
    start = max(int(offset), int(header["sizeof_hdr"]))
    count = int(np.prod(grid.shape))
    needed = start + count * dtype.itemsize
    if len(content) < needed:
        raise ScanFileError(
            f"{path}: the file is truncated: its header asks for {needed} bytes, but it has "
            f"{len(content)}.",
            hint="Copy or export it again.",
        )
    return np.frombuffer(content, dtype, count, start).reshape(grid.shape, order="F")


def _number_type(header: _Header, path: str | Path) -> np.dtype[np.number]:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise ScanFileError(
            f"{path}: voxels must be of a NIfTI number type, but the code is {header['datatype']}.",
            hint="Copy or export it again.",
        ) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ScanFileError(
            f"{path}: voxels must be integers or floats of at most 64 bits, but they are {dtype}.",
            hint="Convert colour or complex images to one real channel.",
        )
    return dtype


def _write(path: str | Path, array: NDArray[np.number], grid: Grid) -> None:
    """Write voxels, shape (x, y, z) or (x, y, z, n), with both affines set, compressed by name."""
    name = Path(path).name
    if not name.endswith((".nii", ".nii.gz")):
        raise ScanFileError(
            f"A scan is written as .nii or .nii.gz, but the name is {name!r}.",
            hint="Change the ending.",
        )
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    code = _UNKNOWN if grid.is_guessed else _ALIGNED
    header.set_sform(grid.affine, code)
    header.set_qform(grid.affine, code, strip_shears=True)
    qform = _qform(header)
    if qform is None or not Grid(grid.shape, qform).matches(grid, tolerance_mm=_QFORM_TOLERANCE_MM):
        header["qform_code"] = 0
    header.set_xyzt_units("mm")
    content = nib.Nifti1Image(array, None, header).to_bytes()
    # Without a time stamp, so that the same voxels give the same file.
    if name.endswith(".gz"):
        content = igzip.compress(content, _COMPRESSION_LEVEL, mtime=0)
    write_bytes(path, content)
