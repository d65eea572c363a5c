"""An archive as input: unpacked into a private folder beside the results, after everything in it was found harmless.

``.zip``, ``.tar``, ``.tar.gz`` (``.tgz``). Names must stay inside; links and devices are refused; the number of
members, their size and how far they may be inflated are limited, by what is really written and not by what the archive
says.
Times of members are kept, so that a resumed run trusts what it computed.
"""

import os
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from medseq.errors import FormatError, InputError, MedseqError
from medseq.io.atomic import written

__all__ = ["FOLDER", "ArchiveLimits", "is_archive", "unpack_into", "unpacked"]

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
FOLDER = ".input"  # below OUT
_CHUNK = 1 << 20
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ArithmeticError, ValueError, RuntimeError)


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold.

    Attributes:
        members: Files.
        bytes: Unpacked, all together.
        ratio: Unpacked over packed size; pixels seldom reach 20, a bomb has 1000.
        reserve: Bytes that stay free on the disk.
    """

    members: int = 1_000_000
    bytes: int = 1 << 40
    ratio: float = 200.0
    reserve: int = 1 << 30


def is_archive(path: Path) -> bool:
    """Whether a file is named like an archive that can be input."""
    return path.is_file() and path.name.lower().endswith(_SUFFIXES)


@contextmanager
def unpacked(source: Path, out: Path, limits: ArchiveLimits | None = None) -> Iterator[Path]:
    """The input as a folder (or the input itself, if it is no archive); what was unpacked is removed at the end.

    Args:
        source: File or folder.
        out: The output folder, locked: what a killed run had unpacked is removed first.
        limits: See `ArchiveLimits`.

    Raises:
        InputError: A name leads outside, a link, a password, or a limit is exceeded; nothing is left.
        FormatError: The archive is damaged.
    """
    if not is_archive(source):
        yield source
        return
    folder = out / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with written("the unpacked input"):
            folder.mkdir(mode=0o700)
            unpack_into(source, folder, limits)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unpack_into(source: Path, folder: Path, limits: ArchiveLimits | None = None) -> None:
    """Unpack an archive into an empty folder; see `unpacked`."""
    budget = _Budget(limits or ArchiveLimits(), source.stat().st_size, folder)
    try:
        if source.name.lower().endswith(".zip"):
            _unzip(source, folder, budget)
        else:
            _untar(source, folder, budget)
    except MedseqError:
        raise
    except _DAMAGE as error:
        # `from None`: the original message may hold a member's name.
        raise FormatError(
            "the archive is damaged", found=type(error).__name__, remedy="copy it again from its source"
        ) from None


def _unzip(source: Path, folder: Path, budget: "_Budget") -> None:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                raise InputError("the archive has a password", remedy="unpack it, and give the folder")
            if kind not in (0, stat.S_IFREG):
                raise _not_a_file()
            target = _inside(folder, member.filename)
            with archive.open(member) as stream:
                _copy(stream, target, budget, time.mktime((*member.date_time, 0, 0, -1)))


def _untar(source: Path, folder: Path, budget: "_Budget") -> None:
    with tarfile.open(source, "r|*") as archive:
        for member in archive:
            if member.isdir():
                continue
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is None:
                raise _not_a_file()
            _copy(stream, _inside(folder, member.name), budget, member.mtime)


class _Budget:
    """Counts what is written."""

    def __init__(self, limits: ArchiveLimits, packed: int, folder: Path) -> None:
        self._limits, self._packed = limits, max(packed, 1)
        self._files = self._bytes = 0
        self._room = shutil.disk_usage(folder).free - limits.reserve

    def begin(self) -> None:
        self._files += 1
        self._require("members", self._files, self._limits.members)

    def add(self, count: int) -> None:
        self._bytes += count
        self._require("bytes", self._bytes, self._limits.bytes)
        self._require("bytes, by the free space", self._bytes, max(self._room, 0))
        # A small archive of zeros is no bomb.
        if self._bytes > 64 << 20:
            self._require("times its size", self._bytes / self._packed, self._limits.ratio)

    def _require(self, what: str, found: float, wanted: float) -> None:
        if found > wanted:
            raise InputError(
                "the archive unpacks to more than is allowed",
                found=f"more than {wanted:g} {what}",
                wanted=f"{wanted:g} at most",
                remedy="unpack it yourself, and give the folder",
            )


def _inside(folder: Path, name: str) -> Path:
    """Where a member goes; nothing but plain names below the folder."""
    path = PurePosixPath(name)
    parts = [part for part in path.parts if part != "."]
    if path.is_absolute() or "\\" in name or ":" in name.partition("/")[0] or ".." in parts or not parts:
        raise InputError(
            "a name in the archive leads outside of it",
            wanted="relative paths without '..'",
            remedy="do not trust this archive",
        )
    return folder.joinpath(*parts)


def _copy(stream: IO[bytes], target: Path, budget: _Budget, mtime: float) -> None:
    budget.begin()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Exclusive: a second member of the same name must not replace the first.
    try:
        with target.open("xb") as out:
            while chunk := stream.read(_CHUNK):
                budget.add(len(chunk))
                out.write(chunk)
    except FileExistsError:
        raise InputError("two members of the archive have the same name", remedy="unpack it yourself") from None
    os.utime(target, (mtime, mtime))


def _not_a_file() -> InputError:
    return InputError(
        "the archive holds a link or a device", wanted="files and folders", remedy="unpack it, and give the folder"
    )
