"""Files and folders that appear whole or not at all: write beside the target, fsync, rename.

A reader of the target sees the old result, the new one or nothing; never half of one, whenever the process dies.
A partial result is called ``.<name>.partial``; one that a killed process left behind is removed by the next writer.
"""

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseq.errors import MedseqError, OutputError, RetryableError

__all__ = [
    "clear",
    "discard",
    "fsync",
    "fsync_below",
    "names_forced_later",
    "partial_path",
    "publish",
    "publish_bytes",
    "whole",
    "written",
]

_PERMANENT = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
_later = threading.local()


@contextmanager
def names_forced_later() -> Iterator[None]:
    """In this thread `publish` forces contents, but not the names of files in their folders.

    For a staging folder, which nobody reads before it is moved as a whole: `fsync_below` and `publish` force them then.
    """
    before = getattr(_later, "names", False)
    _later.names = True
    try:
        yield
    finally:
        _later.names = before


def partial_path(target: Path) -> Path:
    """Where the target is written before it is published: hidden, in the same folder, the same name every time."""
    return target.with_name(f".{target.name}.partial")


def clear(target: Path) -> Path:
    """Remove what a killed process left of an earlier attempt and make the parent; returns the partial path."""
    partial = partial_path(target)
    with written("the output folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
        discard(partial)
        discard(_replaced_path(target))
    return partial


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def publish(partial: Path, target: Path) -> None:
    """Give a partial file or folder its final name, durably; an earlier target is replaced.

    The contents of `partial` must have been fsynced. A folder cannot be renamed over a full one, so an earlier folder
    is moved aside first: if the process dies between the two renames, nothing is visible and the work is repeated.
    """
    with written("the output"):
        if partial.is_dir():
            fsync(partial)
            if target.is_dir():
                replaced = _replaced_path(target)
                discard(replaced)
                target.rename(replaced)
                partial.rename(target)
                fsync(target.parent)
                discard(replaced)
                return
        os.replace(partial, target)
        if not getattr(_later, "names", False):
            fsync(target.parent)


def fsync_below(top: Path) -> None:
    """Force the lists of names of all folders below one to the disk; `publish` forces its own."""
    with written("the output"):
        for folder, inner, _ in os.walk(top):
            for name in inner:
                fsync(Path(folder, name))


def fsync(path: Path) -> None:
    """Force a file, or the list of names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written(where: str) -> Iterator[None]:
    """Turn an `OSError` of writing into `OutputError` (will fail again) or `RetryableError` (disk full, I/O)."""
    try:
        yield
    except OSError as error:
        # `from None`: the original message holds the path.
        raise _as_medseq_error(error, where) from None


def _as_medseq_error(error: OSError, where: str) -> MedseqError:
    found = errno.errorcode.get(error.errno or 0, type(error).__name__)
    if error.errno in _PERMANENT:
        return OutputError("cannot be written", where=where, found=found, remedy="choose a folder that can be written")
    remedy = "free space and run again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "run again"
    return RetryableError("cannot be written", where=where, found=found, remedy=remedy)


def _replaced_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Where to write `target`, which is published at the end of the block, or not at all if the block fails."""
    partial = clear(target)
    try:
        yield partial
    except BaseException:
        discard(partial)
        raise
    publish(partial, target)


def publish_bytes(partial: Path, target: Path, data: bytes) -> None:
    """Write `data` to `partial`, force it to the disk and give it its final name."""
    with written("the output"):
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    publish(partial, target)
