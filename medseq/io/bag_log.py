"""The log of a bag that is being written: patches appended one batch at a time, each whole or not there at all.

    magic · length of the description · the description as JSON · its checksum
    then for every append: patches, width of a number, checksum of what follows · features · coords

HDF5 is no such log: a process killed between two of its writes leaves a file that cannot be opened. Here an append
that was cut short fails its checksum, and is dropped when the log is opened again. Nothing in the file is trusted
before it has been checked.
"""

import json
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import OutputError, RetryableError
from medseq.io.atomic import written

__all__ = ["BagLog"]

_MAGIC = b"medseq-bag-log-1\n"
_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
# Patches, bytes a number (2 or 4), checksum of features and coords.
_RECORD = struct.Struct("<QII")
_KINDS: dict[int, np.dtype] = {2: np.dtype("<f2"), 4: np.dtype("<f4")}
_COORDS = np.dtype("<i8")


class BagLog:
    """An open log; one process at a time.

    Args:
        path: The file; made if it is not there.
        dim: Numbers a patch.
        about: What the bag is of. A log of something else is refused.

    Attributes:
        rows: Patches that are safely there.
        dtype: Their type, or None before the first.

    Raises:
        OutputError: The file is no log, or describes another bag; or the folder cannot be written.
        RetryableError: Another process has it open; a full disk.
    """

    def __init__(self, path: Path, dim: int, about: dict[str, Any]) -> None:
        self.path, self.dim, self.about = path, dim, {"dim": dim, **about}
        self.rows = 0
        self.dtype: np.dtype | None = None
        with written("the bag"):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock()
            with written("the bag"):
                self._begin()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, features: np.ndarray, coords: np.ndarray) -> None:
        """Add checked patches: `features` ``(k, dim)`` of the log's type, `coords` ``(k, 2)`` int64.

        Raises:
            RetryableError: A full disk; what was there before stays as it was.
        """
        kind = _KINDS[features.dtype.itemsize]
        payload = features.astype(kind).tobytes() + coords.astype(_COORDS).tobytes()
        block = _RECORD.pack(len(features), kind.itemsize, zlib.crc32(payload)) + payload
        with written("the bag"):
            try:
                _write_all(self._file, block)
            except OSError:
                os.ftruncate(self._file, self._end)
                os.lseek(self._file, self._end, os.SEEK_SET)
                raise
        self._end += len(block)
        self.rows, self.dtype = self.rows + len(features), kind

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Features and coords of every append, in order."""
        with open(self.path, "rb") as file:
            file.seek(self._start)
            while file.tell() < self._end:
                batch = self._record(file)
                assert batch is not None, "a record that was whole is not any more"
                yield batch

    def close(self) -> None:
        """Let go of the file; it stays for the next to continue."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> None:
        # Windows: whoever opens the same log twice there is not told.
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RetryableError(
                    "the bag is being written by another process", remedy="wait for it, or stop it"
                ) from None

    def _begin(self) -> None:
        """Write the description of a new log, or check it and count the whole appends of an old one."""
        text = json.dumps(self.about, sort_keys=True).encode()
        head = _MAGIC + _LENGTH.pack(len(text)) + text + _CHECKSUM.pack(zlib.crc32(text))
        with open(self.path, "rb") as file:
            start = file.read(len(_MAGIC))
            if not _MAGIC.startswith(start):
                raise OutputError(
                    "there is another file under the name of the unfinished bag",
                    where="the bag",
                    found=f"{os.fstat(self._file).st_size} bytes that are no log",
                    remedy="move it away",
                )
            found = self._description(file)
            if found is not None:
                _require_same(found, self.about)
                self._start = self._end = file.tell()
                while (batch := self._record(file)) is not None:
                    self.rows += len(batch[0])
                    self.dtype, self._end = batch[0].dtype, file.tell()
        if found is None:
            os.ftruncate(self._file, 0)
            _write_all(self._file, head)
            self._start = self._end = len(head)
        # What a killed process left of an append goes.
        os.ftruncate(self._file, self._end)
        os.lseek(self._file, self._end, os.SEEK_SET)

    def _description(self, file: Any) -> dict[str, Any] | None:
        """The description behind the magic, or None if it was cut short."""
        length = file.read(_LENGTH.size)
        if len(length) < _LENGTH.size:
            return None
        text = file.read(min(_LENGTH.unpack(length)[0], 1 << 20))
        check = file.read(_CHECKSUM.size)
        if len(check) < _CHECKSUM.size or _CHECKSUM.unpack(check)[0] != zlib.crc32(text):
            return None
        return json.loads(text)

    def _record(self, file: Any) -> tuple[np.ndarray, np.ndarray] | None:
        """The next append, or None if it is not whole."""
        head = file.read(_RECORD.size)
        if len(head) < _RECORD.size:
            return None
        rows, size, checksum = _RECORD.unpack(head)
        wanted = rows * (self.dim * size + 2 * _COORDS.itemsize)
        if size not in _KINDS or rows == 0 or file.tell() + wanted > os.fstat(file.fileno()).st_size:
            return None
        payload = file.read(wanted)
        if len(payload) < wanted or zlib.crc32(payload) != checksum:
            return None
        features = np.frombuffer(payload, _KINDS[size], rows * self.dim).reshape(rows, self.dim)
        coords = np.frombuffer(payload, _COORDS, rows * 2, offset=features.nbytes).reshape(rows, 2)
        return features, coords


def _write_all(descriptor: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]


def _require_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differ = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if differ:
        named = ", ".join(f"{key} {found.get(key)!r}" for key in differ if not key.endswith("_id"))
        raise OutputError(
            "the unfinished bag was begun with other settings",
            where="the bag",
            found=named or ", ".join(differ),
            wanted=", ".join(f"{key} {wanted.get(key)!r}" for key in differ if not key.endswith("_id")) or "the same",
            remedy="continue with the same settings, or abort the unfinished one first",
        )
