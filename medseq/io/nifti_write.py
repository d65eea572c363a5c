"""Write a volume as NIfTI, plane by plane, all or nothing, the same bytes every time."""

import contextlib
import gzip
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medseq.errors import OutputError, ShapeError
from medseq.io.atomic import clear, discard, publish, written
from medseq.io.dicom_geometry import grid_tolerance
from medseq.io.dicom_types import DicomSource
from medseq.io.integers import integer_limits, to_stored
from medseq.io.nifti import NiftiSource
from medseq.io.volume import VolumeHeader

__all__ = ["DESCRIPTION", "NiftiWriter"]

DESCRIPTION = b"medseq: research use only, not for diagnosis"
_NIFTI1_MAX = 32767
_WRITABLE = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")


class NiftiWriter:
    """A `VolumeWriter` for one ``.nii`` or ``.nii.gz`` file.

    A NIfTI source's header and extensions are copied verbatim, sform and qform with their codes included; only the
    description, and the type and scale where they change, are set. An integer source keeps its integers: same type,
    same scale, values rounded to the nearest, clipped ones counted. From DICOM, a sheared affine (gantry tilt) goes
    into the sform alone: qform_code is 0, since a quaternion cannot hold a shear.

    Args:
        path: Final path; the file appears, complete, at `commit`.
        dtype: Type of the voxels; default: that of the source. Pass a float for anything that is not the source's own
            quantity (a difference, an uncertainty).

    Attributes:
        clipped: Values that did not fit the integer range.
    """

    def __init__(self, path: Path, *, dtype: Any = None):
        self._target = Path(path)
        self._wanted = None if dtype is None else np.dtype(dtype)
        self._partial: Path | None = None
        self._file: BinaryIO | None = None
        self._stream: BinaryIO | None = None
        self._planes = 0
        self.clipped = 0
        if not self._target.name.lower().endswith((".nii", ".nii.gz")):
            raise OutputError("not a NIfTI name", found=self._target.suffix or "no suffix", wanted=".nii or .nii.gz")

    def begin(self, header: VolumeHeader) -> None:
        """Write the NIfTI header to the partial file.

        Raises:
            OutputError: The slices are uneven, so that no affine describes them; or the folder cannot be written.
        """
        if header.affine is None:
            raise OutputError(
                "NIfTI cannot hold unevenly spaced slices",
                found=f"{header.shape[0]} slices without a single affine",
                wanted="even spacing",
                remedy="pass --resample to interpolate them to an even grid, or write DICOM",
            )
        self._header = header
        self._dtype, self._slope, self._intercept = self._voxels(header)
        prefix = self._prefix(header)
        self.abort()
        self._planes, self.clipped = 0, 0
        self._partial = clear(self._target)
        with written("the output file"):
            self._file = open(self._partial, "wb")
            # No name and no time in the gzip header: the same input gives the same bytes.
            compressed = self._target.name.lower().endswith(".gz")
            stream = gzip.GzipFile("", "wb", 1, fileobj=self._file, mtime=0) if compressed else self._file
            stream.write(prefix)
            self._stream = stream  # type: ignore[assignment]

    def write(self, lo: int, planes: np.ndarray) -> None:
        """Append planes ``lo ..``; they must follow the ones written before.

        Raises:
            OutputError: NaN or infinite values for an integer file.
            RetryableError: A full disk.
        """
        stream = self._started()[0]
        if lo != self._planes or planes.shape[1:] != self._header.plane_shape:
            raise ShapeError(
                "planes do not continue the volume",
                found=f"plane {lo}, shape {planes.shape}",
                wanted=f"plane {self._planes}, shape (n, {self._header.shape[1]}, {self._header.shape[2]})",
            )
        native = self._dtype.newbyteorder("=")
        for plane in planes:
            if native.kind in "iu":
                limits = integer_limits(native)
                stored, clipped = to_stored(
                    plane, self._slope, self._intercept, native, limits, f"plane {self._planes}"
                )
                self.clipped += int(clipped.sum())
            else:
                stored = plane
            with written("the output file"):
                stream.write(stored.astype(self._dtype).tobytes())
            self._planes += 1

    def commit(self) -> Sequence[Path]:
        """Publish the file; returns its path."""
        stream, file = self._started()
        if self._planes != self._header.planes:
            raise OutputError("the volume is not complete", found=f"{self._planes} planes", wanted=self._header.planes)
        with written("the output file"):
            if stream is not file:
                stream.close()
            file.flush()
            os.fsync(file.fileno())
            file.close()
        if self._partial is not None:
            publish(self._partial, self._target)
        self._partial, self._file, self._stream = None, None, None
        return [self._target]

    def abort(self) -> None:
        """Remove what was written; nothing happens after a commit."""
        if self._file is not None:
            # Closing the compressor would write to a disk that may be full; the file is thrown away.
            if self._stream is not None and self._stream is not self._file:
                self._stream.fileobj = None  # type: ignore[attr-defined]
            with contextlib.suppress(OSError):
                self._file.close()
        if self._partial is not None:
            discard(self._partial)
        self._partial, self._file, self._stream = None, None, None

    def _started(self) -> tuple[BinaryIO, BinaryIO]:
        if self._stream is None or self._file is None:
            raise OutputError("nothing was begun", wanted="begin(header) before write and commit")
        return self._stream, self._file

    def _voxels(self, header: VolumeHeader) -> tuple[np.dtype, float, float]:
        """Type (with byte order), slope and intercept of the voxels."""
        dtype = np.dtype(self._wanted or header.dtype).newbyteorder("=")
        source = header.source.header
        slope, intercept = 1.0, 0.0
        if dtype == header.dtype and isinstance(source, NiftiSource):
            slope, intercept = source.slope, source.intercept
        elif dtype == header.dtype and isinstance(source, DicomSource):
            scales = {(frame.slope, frame.intercept, frame.lut) for frame in source.frames}
            if len(scales) > 1 or any(frame.lut for frame in source.frames):
                dtype = np.dtype("f4")
            else:
                # NIfTI-1 keeps them in single precision; quantise with what the file will say.
                slope, intercept = (float(np.float32(value)) for value in next(iter(scales))[:2])
        if dtype.kind == "b":
            dtype = np.dtype("u1")
        if dtype.str[1:] not in _WRITABLE:
            dtype = np.dtype("f4")
        return (dtype, slope, intercept) if dtype.kind in "iu" else (dtype, 1.0, 0.0)

    def _prefix(self, header: VolumeHeader) -> bytes:
        """Header and extensions, as bytes; sets the byte order of the voxels."""
        from nibabel.nifti1 import Nifti1Header
        from nibabel.nifti2 import Nifti2Header

        source = header.source.header
        same_grid = (
            isinstance(source, NiftiSource)
            and source.shape == header.shape
            and np.array_equal(source.affine, header.affine)  # type: ignore[arg-type]
        )
        if same_grid:
            kind, size = (Nifti1Header, 348) if source.version == 1 else (Nifti2Header, 540)
            order = "<" if int.from_bytes(source.prefix[:4], "little") == size else ">"
            nifti, rest = kind(source.prefix[:size], endianness=order, check=False), source.prefix[size:]
        else:
            kind = Nifti1Header if max(header.shape) <= _NIFTI1_MAX else Nifti2Header
            nifti, rest = _new_header(kind, header), bytes(4)
        nifti.set_data_dtype(self._dtype)
        slope, intercept = nifti.get_slope_inter()
        if (slope or 1.0, intercept or 0.0) != (self._slope, self._intercept):
            nifti["scl_slope"], nifti["scl_inter"] = self._slope, self._intercept
        nifti["descrip"] = DESCRIPTION
        nifti["vox_offset"] = len(nifti.binaryblock) + len(rest)
        self._dtype = nifti.get_data_dtype()
        return nifti.binaryblock + rest


def _new_header(kind: Any, header: VolumeHeader) -> Any:
    affine = np.asarray(header.affine)
    nifti = kind()
    nifti["magic"] = nifti.single_magic
    nifti.set_data_shape(header.shape[2::-1] + header.shape[3:])
    nifti.set_xyzt_units("mm", "sec")
    slice_mm, row_mm, col_mm = header.spacing_mm
    nifti.set_zooms((col_mm, row_mm, slice_mm, *(1.0 for _ in header.shape[3:])))
    nifti.set_qform(affine, code=1, strip_shears=True)
    if _worst_shift(nifti.get_qform(), affine, header.shape) > grid_tolerance(min(row_mm, col_mm)):
        nifti.set_qform(None, code=0)
    nifti.set_sform(affine, code=1)
    return nifti


def _worst_shift(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance, in mm, between where two affines put a corner of the volume."""
    far = np.array(shape[2::-1]) - 1
    corners = np.array([[*(far * bits), 1] for bits in np.ndindex(2, 2, 2)])
    return float(np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max())
