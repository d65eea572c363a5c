"""Patch features that stay in their file: rows are read as they are asked for, never the whole.

Nothing is memory-mapped and no file stays open between two reads, so that bags can be sent to other processes and a
file that shrinks is an error, not a crash (see `medseq.io.kspace_stored`). Features come as float16 or float32; float64
is rounded and bfloat16 widened as it is read.
"""

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from medseq.errors import FormatError
from medseq.io.kspace_stored import h5_opened, readable
from medseq.io.privacy import path_label

__all__ = ["FileFeatures", "H5Features", "StoredFeatures", "read_dtype"]

# Rows further apart than this are read apart; a longer run is read in pieces.
_GAP = 64 << 10
_RUN = 8 << 20
Spans = Iterable[tuple[int, int]]


def read_dtype(stored: np.dtype | str, where: str) -> np.dtype:
    """What features of a stored type are read as.

    Args:
        stored: A dtype, or ``bfloat16``, which numpy does not have.
        where: What messages call the file.

    Raises:
        FormatError: Neither of 16, 32 or 64 bit floats.
    """
    if stored == "bfloat16":
        return np.dtype(np.float32)
    dtype = np.dtype(stored)
    if dtype.kind == "f" and dtype.itemsize in (2, 4, 8):
        return np.dtype(np.float16 if dtype.itemsize == 2 else np.float32)
    raise FormatError(
        "features of this type are not read",
        where=where,
        found=dtype,
        wanted="float16, float32, float64 or bfloat16",
        remedy="integers may be quantised, and only their writer knows the scale: store the features as float32",
    )


class StoredFeatures(ABC):
    """Rows of ``(n, d)`` numbers in a file, as `medseq.io.features.ArrayLike`.

    Args:
        path: The file.
        shape: ``(n, d)``.
        stored: Type in the file; see `read_dtype`.

    Raises:
        FormatError: A type that is not read.
    """

    def __init__(self, path: Path, shape: tuple[int, int], stored: np.dtype | str) -> None:
        self.path, self.shape, self.stored = path, shape, stored
        self.dtype = read_dtype(stored, path_label(path))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of the file: one, a run, or any, in the order asked for.

        Raises:
            IndexError: Beyond the bag.
            FormatError: Damage.
        """
        if isinstance(index, slice):
            lo, hi, step = index.indices(len(self))
            if step == 1:
                return next(self._read([(lo, max(lo, hi))]))
            return self._gather(np.arange(lo, hi, step))
        wanted = np.asarray(index)
        if wanted.dtype == bool:
            wanted = np.flatnonzero(wanted)
        rows = wanted.astype(np.int64).reshape(-1)
        rows = np.where(rows < 0, rows + len(self), rows)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"row beyond the {len(self)} of the bag")
        found = self._gather(rows)
        return found[0] if wanted.ndim == 0 else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def chunks(self, rows: int) -> Iterator[np.ndarray]:
        """All rows in order, at most `rows` at a time; the file is opened once."""
        return self._read((lo, min(lo + rows, len(self))) for lo in range(0, len(self), rows))

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        """Any rows, by as few reads as their distances allow."""
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        width = max(1, np.dtype("u2" if self.stored == "bfloat16" else self.stored).itemsize * self.shape[1])
        breaks, first = [0], 0
        for place in range(1, len(ascending)):
            far = (ascending[place] - ascending[place - 1]) * width > _GAP
            if far or (ascending[place] - ascending[first]) * width > _RUN:
                breaks.append(place)
                first = place
        runs = list(zip(breaks, [*breaks[1:], len(ascending)], strict=True)) if len(rows) else []
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        spans = [(int(ascending[a]), int(ascending[b - 1]) + 1) for a, b in runs]
        for (a, b), (lo, _), found in zip(runs, spans, self._read(spans), strict=True):
            out[order[a:b]] = found[ascending[a:b] - lo]
        return out

    def _read(self, spans: Spans) -> Iterator[np.ndarray]:
        for found in self._spans(spans):
            if self.stored == "bfloat16":
                # The upper half of a float32.
                yield (found.astype(np.uint32) << 16).view(np.float32)
            else:
                # Beyond float32 is infinite, and refused where features are checked.
                with np.errstate(over="ignore"):
                    yield found.astype(self.dtype, copy=False)

    @abstractmethod
    def _spans(self, spans: Spans) -> Iterator[np.ndarray]:
        """Rows ``[lo, hi)`` of every span as they are stored, bfloat16 as uint16; the file is opened once."""


class H5Features(StoredFeatures):
    """A dataset of an HDF5 file.

    Args:
        path: The file.
        key: Name of the dataset, ``(n, d)`` or ``(1, n, d)``.
        shape, stored: See `StoredFeatures`.
        leading: The dataset has a leading axis of 1.
    """

    def __init__(self, path: Path, key: str, shape: tuple[int, int], stored: np.dtype, leading: bool = False) -> None:
        super().__init__(path, shape, stored)
        self.key, self.leading = key, leading

    def _spans(self, spans: Spans) -> Iterator[np.ndarray]:
        with h5_opened(self.path) as file:
            dataset = file[self.key]
            for lo, hi in spans:
                yield np.asarray(dataset[0, lo:hi] if self.leading else dataset[lo:hi])


class FileFeatures(StoredFeatures):
    """Rows that lie one behind the other in a file, or in a member of a zip archive.

    Args:
        path: The file.
        member: Member of the archive, or None for a plain file.
        offset: Byte of the first number.
        shape, stored: See `StoredFeatures`.

    Raises:
        FormatError: The file is shorter than the shape says.
    """

    def __init__(
        self, path: Path, member: str | None, offset: int, shape: tuple[int, int], stored: np.dtype | str
    ) -> None:
        super().__init__(path, shape, stored)
        self.member, self.offset = member, offset
        self._number = np.dtype("<u2") if stored == "bfloat16" else np.dtype(stored)
        self._row = self._number.itemsize * shape[1]
        where = path_label(path)
        with readable(where):
            if member is None:
                size = path.stat().st_size
            else:
                with zipfile.ZipFile(path) as archive:
                    size = archive.getinfo(member).file_size
        if size < offset + shape[0] * self._row:
            raise FormatError(
                "the file is cut short",
                where=where,
                found=f"{max(0, size - offset)} bytes of features",
                wanted=f"{shape[0] * self._row} bytes for {shape}",
                remedy="copy the file again from its source",
            )

    def _opened(self) -> IO[bytes]:
        # An archive stays open as long as its member does.
        return open(self.path, "rb") if self.member is None else zipfile.ZipFile(self.path).open(self.member)

    def _spans(self, spans: Spans) -> Iterator[np.ndarray]:
        with readable(path_label(self.path)), self._opened() as file:
            for lo, hi in spans:
                file.seek(self.offset + lo * self._row)
                rows = np.empty((hi - lo, self.shape[1]), self._number)
                _fill(file, rows.reshape(-1).view(np.uint8).data)
                yield rows


def _fill(file: IO[bytes], view: memoryview) -> None:
    """Read until the view is full.

    Raises:
        EOFError: The file ends before.
    """
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
