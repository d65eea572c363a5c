"""Arrays that stay in their file: pieces are read as they are asked for, never the whole.

Nothing is memory-mapped: a file that shrinks under a map kills the process. No file stays open between two pieces, so
that readers can be sent to other processes.
"""

import errno
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from medseq.errors import FormatError, MedseqError, RetryableError
from medseq.io.oversize import no_memory
from medseq.io.privacy import path_label

__all__ = ["FileArray", "H5Array", "NpzArray", "StoredArray", "h5_opened", "npy_header", "open_npy", "readable"]

_BLOCK = 32 << 20
_CUT_SHORT = "the file is cut short or damaged"
_COPY = "copy the file again from its source"
# NotImplementedError (an unknown compression) is a RuntimeError, UnicodeDecodeError (a damaged name) a ValueError;
# h5py raises TypeError on damaged types; numpy parses its header as Python.
_DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError)
_DAMAGE += (SyntaxError, tokenize.TokenError)
_DAMAGE += (RuntimeError, KeyError, TypeError, ValueError, OverflowError)


class StoredArray(Protocol):
    """An array in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def take(self, index: Sequence[int | None]) -> np.ndarray:
        """The part at an index: one entry an axis, a number, or None for the whole axis; numbered axes are dropped."""
        ...


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn what reading a damaged or unreadable file raises into medseq's errors, without the path.

    Raises:
        FormatError: Damage. h5py reports it as `OSError` without a number, `RuntimeError` or `KeyError`.
        RetryableError: Permissions, the disk, a missing file.
        MemoryLimitError: A size in the file that is larger than the memory there is.
    """
    try:
        yield
    except MedseqError:
        raise
    except MemoryError:
        raise no_memory(where) from None
    except OSError as error:
        # EINVAL: a damaged archive sends the reader to a place before the beginning of the file.
        if error.errno not in (None, errno.EINVAL):
            raise RetryableError(
                "the file cannot be read",
                where=where,
                found=os.strerror(error.errno or 0),
                wanted="a readable file",
                remedy="check its permissions and the disk",
            ) from None
        raise FormatError(_CUT_SHORT, where=where, found="an unreadable file structure", remedy=_COPY) from None
    except _DAMAGE as error:
        raise FormatError(_CUT_SHORT, where=where, found=type(error).__name__, remedy=_COPY) from None


@contextmanager
def h5_opened(path: Path) -> Iterator[Any]:
    """The file opened for reading, with damage reported as `FormatError`."""
    import h5py

    where = path_label(path)
    with readable(where):
        if not h5py.is_hdf5(path) and path.stat().st_size >= 0:
            raise FormatError("not an HDF5 file", where=where, wanted="an HDF5 signature", remedy=_COPY)
        with h5py.File(path, "r") as file:
            yield file


class H5Array:
    """A dataset of an HDF5 file.

    Args:
        path: The file.
        key: Path of the dataset inside.

    Raises:
        FormatError: Nothing of it was ever written.
    """

    def __init__(self, path: Path, key: str):
        self._path, self._key = path, key
        with h5_opened(path) as file:
            dataset = file[key]
            self.shape, self.dtype = tuple(int(n) for n in dataset.shape), dataset.dtype
            stated = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
            stored = dataset.id.get_storage_size()
            if stored == 0 and stated > _BLOCK and not dataset.is_virtual:
                # Reading it would make gigabytes of nothing, plane by plane.
                raise FormatError(
                    _CUT_SHORT, where=path_label(path), found=f"{stored} bytes", wanted=f"{stated} bytes", remedy=_COPY
                )

    def take(self, index: Sequence[int | None]) -> np.ndarray:
        """See `StoredArray.take`."""
        with h5_opened(self._path) as file:
            return np.asarray(file[self._key][tuple(slice(None) if n is None else n for n in index)])


class FileArray:
    """Plain numbers in a file, from an offset to its end or beyond.

    Args:
        path: The file.
        offset: Byte of the first element.
        shape: Shape.
        dtype: Element, with its byte order.
        fortran: The first axis varies fastest.

    Raises:
        FormatError: The file is shorter than the shape says.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype, fortran: bool = False):
        self._path, self._offset, self._fortran = path, offset, fortran
        self.shape, self.dtype = shape, dtype
        wanted = offset + dtype.itemsize * int(np.prod(shape, dtype=object))
        size = self._size()
        if size < wanted:
            raise FormatError(
                _CUT_SHORT, where=path_label(path), found=f"{size} bytes", wanted=f"{wanted} bytes", remedy=_COPY
            )

    def take(self, index: Sequence[int | None]) -> np.ndarray:
        """See `StoredArray.take`."""
        order = -1 if self._fortran else 1
        with readable(path_label(self._path)), self._opened() as file:
            out = self._block(file, self._offset, self.shape[::order], tuple(index)[::order])
        return out.T if self._fortran else out

    def _size(self) -> int:
        with readable(path_label(self._path)):
            return self._path.stat().st_size

    def _opened(self) -> IO[bytes]:
        return open(self._path, "rb")

    def _block(self, file: IO[bytes], offset: int, shape: tuple[int, ...], index: tuple[int | None, ...]) -> np.ndarray:
        """Read from C-ordered numbers: skip along numbered leading axes, then read runs of at most `_BLOCK` bytes."""
        while index and index[0] is not None:
            offset += index[0] * self.dtype.itemsize * int(np.prod(shape[1:], dtype=object))
            shape, index = shape[1:], index[1:]
        row = self.dtype.itemsize * int(np.prod(shape[1:], dtype=object))
        if all(n is None for n in index):
            return self._run(file, offset, shape)
        if row > _BLOCK:
            return np.stack([self._block(file, offset + k * row, shape[1:], index[1:]) for k in range(shape[0])])
        step, parts = max(1, _BLOCK // max(row, 1)), []
        rest = tuple(slice(None) if n is None else n for n in index[1:])
        for lo in range(0, shape[0], step):
            rows = self._run(file, offset + lo * row, (min(step, shape[0] - lo), *shape[1:]))
            # A copy: a view would keep the whole run in memory.
            parts.append(rows[(slice(None), *rest)].copy())
        return np.concatenate(parts) if parts else np.empty((0,), self.dtype)

    def _run(self, file: IO[bytes], offset: int, shape: tuple[int, ...]) -> np.ndarray:
        wanted = self.dtype.itemsize * int(np.prod(shape, dtype=object))
        file.seek(offset)
        data = file.read(wanted)
        if len(data) < wanted:
            raise FormatError(_CUT_SHORT, where=path_label(self._path), found=f"{len(data)} bytes", remedy=_COPY)
        return np.frombuffer(data, self.dtype).reshape(shape)


class NpzArray(FileArray):
    """A member of an ``.npz`` archive, read as a stream; a compressed one is decompressed up to the wanted part.

    Args:
        path: The archive.
        key: Name of the array.
    """

    def __init__(self, path: Path, key: str):
        self._member, where = f"{key}.npy", path_label(path)
        self._path = path
        with readable(where), self._opened() as file:
            shape, dtype, fortran = npy_header(file, where)
            offset = file.tell()
        super().__init__(path, offset, shape, dtype, fortran)

    def _size(self) -> int:
        with readable(path_label(self._path)), zipfile.ZipFile(self._path) as archive:
            return archive.getinfo(self._member).file_size

    def _opened(self) -> IO[bytes]:
        # The archive stays open as long as its member does.
        return zipfile.ZipFile(self._path).open(self._member)


def open_npy(path: Path) -> FileArray:
    """The array of a ``.npy`` file.

    Raises:
        FormatError: Not such a file, or one that holds Python objects.
    """
    where = path_label(path)
    with readable(where), open(path, "rb") as file:
        shape, dtype, fortran = npy_header(file, where)
        offset = file.tell()
    return FileArray(path, offset, shape, dtype, fortran)


def npy_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, type and whether the first axis varies fastest, from the head of an ``.npy`` file.

    Raises:
        FormatError: Not such a head, or Python objects behind it.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, SyntaxError, tokenize.TokenError):
        raise FormatError("not a numpy file", where=where, wanted="the .npy header", remedy=_COPY) from None
    if dtype.hasobject:
        raise FormatError(
            "Python objects are not read", where=where, found=dtype, wanted="numbers", remedy="save a plain array"
        )
    return tuple(int(n) for n in shape), dtype, bool(fortran)
