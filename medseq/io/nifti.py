"""NIfTI-1 and NIfTI-2, ``.nii`` and ``.nii.gz``, in two to four dimensions, plane by plane.

NIfTI index order is (col, row, slice, time); medseq's is (slice, row, col, time). The transposition happens here and
nowhere else; the affine is the same matrix in both. A file is read through nibabel's array proxy with one open
handle: a compressed file is decompressed as a stream, forwards, without a temporary copy; going back costs another
pass over it from its start.
"""

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseq.errors import FormatError, RetryableError, ShapeError
from medseq.io.oversize import no_memory
from medseq.io.privacy import path_label
from medseq.io.source import SourceWarning
from medseq.io.volume import Modality, SourceRef, Units, VolumeHeader, VolumeReader, slice_affines

if TYPE_CHECKING:
    from medseq.io.nifti_write import NiftiWriter

__all__ = ["NiftiSource", "NiftiWriter", "open_nifti"]

# Deflate cannot expand further than this; a header that promises more is wrong or hostile.
_MAX_INFLATION = 1040
_MAX_PREFIX = 1 << 24
_MAX_MM = 1e7
_READ_ERRORS = (EOFError, ValueError, zlib.error, IndexError, OverflowError)


@dataclass(frozen=True)
class NiftiSource:
    """What `VolumeHeader.source.header` holds for NIfTI: enough to write the same header again.

    Attributes:
        prefix: Everything before the voxels: header and extensions, verbatim.
        version: 1 or 2.
        slope: Scale of integer voxels; 1 if the file has none.
        intercept: Offset of integer voxels.
        shape: ``(slice, row, col[, time])``.
        affine: The affine that was read.
        warnings: ``no-orientation`` where the file has neither sform nor qform.
    """

    prefix: bytes = field(repr=False)
    version: int
    slope: float
    intercept: float
    shape: tuple[int, ...]
    affine: np.ndarray = field(repr=False)
    warnings: tuple[SourceWarning, ...] = ()


def open_nifti(path: Path, *, modality: Modality = "OT", units: Units = "1") -> VolumeReader:
    """A reader over a NIfTI file; planes of a 4-D file are time-major.

    NIfTI records neither modality nor units, so the caller says what they are. Voxels that are NaN or infinite are
    read as such and are False in `valid`.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        modality: What the file holds.
        units: Units of the scaled values.

    Raises:
        FormatError: Not a NIfTI file, damaged, not 2-D to 4-D, colour or complex.
        RetryableError: The file cannot be read.
    """
    path = Path(path)
    where = path_label(path)
    with _readable(where):
        prefix, size = _read_prefix(path, where)
        header, version = _parse(prefix, where)
    shape = _shape(header, where)
    dtype = _dtype(header, where)
    _check_size(path, size, int(np.prod(shape, dtype=object)) * dtype.itemsize + len(prefix), where)
    slope, intercept = header.get_slope_inter()
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    if not np.isfinite(affine).all() or np.abs(affine).max() > _MAX_MM or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise FormatError(
            "the affine makes no sense",
            where=where,
            wanted="an invertible sform or qform in mm",
            remedy="correct the header",
        )
    warnings: tuple[SourceWarning, ...] = ()
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        text = "the file has neither sform nor qform; its orientation is a guess"
        warnings = (SourceWarning("no-orientation", text),)
    source = NiftiSource(
        prefix, version, 1.0 if slope is None else slope, intercept or 0.0, shape[2::-1] + shape[3:], affine, warnings
    )
    volume = VolumeHeader(
        shape=source.shape,
        dtype=dtype.newbyteorder("="),
        affine=affine,
        slice_affines=slice_affines(affine, shape[2]),
        modality=modality,
        units=units,
        source=SourceRef("nifti", (path,), source),
    )
    return _NiftiReader(volume, dtype)


class _NiftiReader:
    """Planes through nibabel's array proxy; the last piece is kept for `valid`."""

    def __init__(self, header: VolumeHeader, dtype: np.dtype):
        self._header, self._dtype = header, dtype
        self._proxy: Any = None
        self._piece: tuple[int, int, np.ndarray] | None = None

    @property
    def header(self) -> VolumeHeader:
        return self._header

    def read(self, lo: int, hi: int) -> np.ndarray:
        """See `VolumeReader.read`; voxels x slope + intercept in float64, then rounded once."""
        return self._read(lo, hi).copy()

    def valid(self, lo: int, hi: int) -> np.ndarray | None:
        """False where a voxel is NaN or infinite; None if all are finite."""
        if self._dtype.kind in "iu":
            return None
        finite = np.isfinite(self._read(lo, hi))
        return None if finite.all() else finite

    def _read(self, lo: int, hi: int) -> np.ndarray:
        if not 0 <= lo <= hi <= self._header.planes:
            raise ShapeError("no such planes", found=(lo, hi), wanted=f"0 <= lo <= hi <= {self._header.planes}")
        if self._piece is None or self._piece[:2] != (lo, hi):
            self._piece = None
            out = np.empty((hi - lo, *self._header.plane_shape), dtype=np.float32)
            slices = self._header.shape[0]
            with _readable(path_label(self._header.source.files[0])):
                plane = lo
                while plane < hi:
                    time, first = divmod(plane, slices)
                    last = min(slices, first + hi - plane)
                    block = self._open()[:, :, first:last, time]
                    # Values beyond float32 become infinite, and so not valid.
                    with np.errstate(over="ignore"):
                        out[plane - lo : plane - lo + last - first] = block.T
                    plane += last - first
            self._piece = (lo, hi, out)
        return self._piece[2]

    def _open(self) -> Any:
        if self._proxy is None:
            from nibabel.arrayproxy import ArrayProxy

            source: NiftiSource = self._header.source.header
            shape = self._header.shape[2::-1] + (self._header.shape[3:] or (1,))
            spec = (shape, self._dtype, len(source.prefix), source.slope, source.intercept)
            # Not memory-mapped: a file that shrinks under a map kills the process.
            self._proxy = ArrayProxy(os.fspath(self._header.source.files[0]), spec, mmap=False, keep_file_open=True)
        return self._proxy


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn what reading a damaged or unreadable file raises into medseq's errors, without the path."""
    try:
        yield
    except MemoryError:
        raise no_memory(where) from None
    except _READ_ERRORS as error:
        if isinstance(error, FormatError):
            raise
        raise _damaged(where, type(error).__name__) from None
    except OSError as error:
        # gzip and nibabel report damage as OSError without a number; the disk's own errors have one.
        if error.errno is None:
            raise _damaged(where, type(error).__name__) from None
        raise RetryableError(
            "the file cannot be read",
            where=where,
            found=os.strerror(error.errno),
            wanted="a readable file",
            remedy="check its permissions and the disk",
        ) from None


def _damaged(where: str, found: str) -> FormatError:
    return FormatError(
        "the NIfTI file is cut short or damaged", where=where, found=found, remedy="copy the file again from its source"
    )


def _read_prefix(path: Path, where: str) -> tuple[bytes, int]:
    """Everything before the voxels, and the size of the file on disk."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as file:
        start = file.read(540)
        if len(start) < 348:
            raise FormatError("not a NIfTI file", where=where, found=f"{len(start)} bytes", wanted="at least 348 bytes")
        version, order = _version(start, where)
        offset = float(np.frombuffer(start, f"{order}f4", 1, 108)[0]) if version == 1 else 0.0
        offset = offset if version == 1 else float(np.frombuffer(start, f"{order}i8", 1, 168)[0])
        if not (348 if version == 1 else 540) <= offset <= _MAX_PREFIX or offset != int(offset):
            raise FormatError("the voxel offset makes no sense", where=where, found=offset, wanted="352 or more bytes")
        prefix = (start + file.read(max(0, int(offset) - len(start))))[: int(offset)]
    if len(prefix) < int(offset):
        raise _damaged(where, f"{len(prefix)} bytes before the voxels")
    return prefix, path.stat().st_size


def _version(start: bytes, where: str) -> tuple[int, str]:
    """NIfTI version and byte order from the header's own size."""
    for order in "<>":
        size = int(np.frombuffer(start, f"{order}i4", 1)[0])
        if size == 348 and start[344:348] == b"n+1\0":
            return 1, order
        if size == 540 and start[4:8] == b"n+2\0":
            return 2, order
    raise FormatError(
        "not a single-file NIfTI",
        where=where,
        found="no n+1 or n+2 mark",
        wanted=".nii or .nii.gz",
        remedy="convert Analyze or .hdr/.img pairs first",
    )


def _parse(prefix: bytes, where: str) -> tuple[Any, int]:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    version, order = _version(prefix, where)
    kind, size = (Nifti1Header, 348) if version == 1 else (Nifti2Header, 540)
    try:
        # check=False: nibabel's repairs would no longer be the file's own fields.
        header = kind(prefix[:size], endianness=order, check=False)
        header.get_data_dtype()
        header.get_slope_inter()
        header.get_best_affine()
    except (HeaderDataError, KeyError) as error:
        raise FormatError("the NIfTI header makes no sense", where=where, found=str(error)[:120]) from None
    return header, version


def _shape(header: Any, where: str) -> tuple[int, ...]:
    """(col, row, slice[, time]); missing dimensions are 1."""
    dims = [int(n) for n in header["dim"]]
    shape = dims[1 : dims[0] + 1]
    while len(shape) > 4 and shape[-1] == 1:
        shape.pop()
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise FormatError(
            "an image of these dimensions cannot be read", where=where, found=tuple(shape), wanted="2 to 4, all >= 1"
        )
    return tuple(shape) if len(shape) > 2 else (*shape, 1)


def _dtype(header: Any, where: str) -> np.dtype:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.fields is not None:
        raise FormatError("voxels of this type cannot be read", where=where, found=dtype, wanted="real numbers")
    return dtype


def _check_size(path: Path, size: int, wanted: int, where: str) -> None:
    compressed = path.name.lower().endswith(".gz")
    if size * (_MAX_INFLATION if compressed else 1) < wanted:
        raise FormatError(
            "the NIfTI file is cut short or damaged",
            where=where,
            found=f"{size} bytes",
            wanted=f"{wanted} bytes{' before compression' if compressed else ''}",
            remedy="copy the file again from its source",
        )


def __getattr__(name: str) -> object:
    # Writer and reader are two files; both are found here.
    if name == "NiftiWriter":
        from medseq.io.nifti_write import NiftiWriter

        return NiftiWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
