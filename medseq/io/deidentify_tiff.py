"""A whole-slide TIFF without its label, its macro photograph and its texts.

The label shows the patient's name and the case number, the macro shows the label. A new file is built from the tiled
levels of the pyramid alone, with the tags that decoding needs; tiles are copied as they are, less the comments inside
JPEG and JPEG 2000. Aperio's description is rebuilt from its numbers, so that readers still find magnification and mpp.

Reference:
    TIFF 6.0; BigTIFF; Aperio's ``key = value`` description.
"""

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medseq.errors import FormatError
from medseq.io.atomic import whole, written
from medseq.io.deidentify import Cleaned, Pseudonyms, Refused
from medseq.io.deidentify_codestream import without_comments
from medseq.io.privacy import path_label

__all__ = ["deidentify_tiff"]

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {3: "H", 4: "I", 16: "Q"}
_WIDTH, _HEIGHT, _COMPRESSION, _DESCRIPTION, _SUBFILE, _SUB_IFDS = 256, 257, 259, 270, 254, 330
_TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _COUNTS, _JPEG_TABLES = 322, 323, 324, 325, 347
# What decoding needs and nothing else: no texts, no dates, no colour profile (it names its maker), no private tags.
_KEPT = (
    *(_SUBFILE, _WIDTH, _HEIGHT, 258, _COMPRESSION, 262, 266, 277, 282, 283, 284, 296, 317, _TILE_WIDTH, _TILE_HEIGHT),
    *(338, 339, _JPEG_TABLES, 530, 531, 532, 32997),
)
_APERIO = re.compile(r"\b(AppMag|MPP|OriginalWidth|OriginalHeight|Left|Top) ?= ?(-?\d+(?:\.\d+)?)(?=\||\s|$)")
_MAX_ENTRIES, _MAX_IFDS, _MAX_VALUE = 4096, 256, 1 << 28


@dataclass
class _Directory:
    tags: dict[int, tuple[int, int, bytes]]  # tag -> (type, count, raw value)

    def numbers(self, tag: int, order: str) -> list[int]:
        if tag not in self.tags:
            return []
        kind, count, raw = self.tags[tag]
        return list(struct.unpack(f"{order}{count}{_CODES[kind]}", raw)) if kind in _CODES else []


def deidentify_tiff(path: Path, name: str, out: Path, names: Pseudonyms) -> Cleaned:
    """Write ``out/file-….svs`` or ``.tiff`` with the pyramid alone.

    Raises:
        Refused: No tiled level, levels in sub-directories (OME), or a compression that cannot be looked into.
        FormatError: Not a TIFF, or a damaged one.
        OutputError: The folder cannot be written.
    """
    where = path_label(path)
    suffix = ".svs" if path.suffix.lower() == ".svs" else ".tiff"
    target = out / f"file-{names.name('file', name)}{suffix}"
    try:
        with open(path, "rb") as source:
            order, big, directories = _read(source, where)
            kept = [d for d in directories if _TILE_WIDTH in d.tags and not _is_photograph(d, order)]
            _check(kept, order, where)
            with whole(target) as partial, written("the output"), open(partial, "wb") as file:
                _Writer(file, order, big).write(source, kept, where)
                file.flush()
                os.fsync(file.fileno())
    except (struct.error, LookupError, OverflowError):
        raise FormatError("the TIFF makes no sense", where=where) from None
    dropped = len(directories) - len(kept)
    return Cleaned(target, (f"{dropped} pictures (label, macro, thumbnail) were left out",) if dropped else ())


def _read(file: BinaryIO, where: str) -> tuple[str, bool, list[_Directory]]:
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    version = struct.unpack(f"{order}H", head[2:4])[0] if order else 0
    if order is None or version not in (42, 43):
        raise FormatError("not a TIFF file", where=where)
    big = version == 43
    at = struct.unpack(f"{order}Q", head[8:16])[0] if big else struct.unpack(f"{order}I", head[4:8])[0]
    found: list[_Directory] = []
    seen: set[int] = set()
    while at:
        if at in seen or len(found) > _MAX_IFDS:
            raise FormatError("the directories of the TIFF go round in circles", where=where)
        seen.add(at)
        directory, at = _read_directory(file, at, order, big, where)
        found.append(directory)
    return order, big, found


def _read_directory(file: BinaryIO, at: int, order: str, big: bool, where: str) -> tuple[_Directory, int]:
    file.seek(at)
    count = struct.unpack(f"{order}Q", file.read(8))[0] if big else struct.unpack(f"{order}H", file.read(2))[0]
    if count > _MAX_ENTRIES:
        raise FormatError("the TIFF makes no sense", where=where, found=f"{count} tags")
    size, inline = (20, 8) if big else (12, 4)
    entries = file.read(count * size)
    following = struct.unpack(f"{order}{'Q' if big else 'I'}", file.read(8 if big else 4))[0]
    tags: dict[int, tuple[int, int, bytes]] = {}
    for i in range(count):
        entry = entries[i * size : (i + 1) * size]
        tag, kind = struct.unpack(f"{order}HH", entry[:4])
        number = struct.unpack(f"{order}{'Q' if big else 'I'}", entry[4 : 4 + inline])[0]
        length = _SIZES.get(kind, 0) * number
        if tag not in (*_KEPT, _DESCRIPTION, _OFFSETS, _COUNTS, _SUB_IFDS) or not length:
            continue
        if length > _MAX_VALUE:
            raise FormatError("the TIFF makes no sense", where=where, found=f"a tag of {length} bytes")
        value = entry[4 + inline :][:length]
        if length > inline:
            file.seek(struct.unpack(f"{order}{'Q' if big else 'I'}", value)[0])
            value = file.read(length)
        if len(value) != length:
            raise FormatError("the TIFF is cut short", where=where)
        tags[tag] = (kind, number, value)
    return _Directory(tags), following


def _is_photograph(directory: _Directory, order: str) -> bool:
    """Label and macro by description or by kind, should a writer have tiled them."""
    description = directory.tags.get(_DESCRIPTION, (2, 0, b""))[2].lower()
    kind = (directory.numbers(_SUBFILE, order) or [0])[0]
    return kind & 8 != 0 or any(word in description for word in (b"label", b"macro", b"overview"))


def _check(kept: list[_Directory], order: str, where: str) -> None:
    if not kept:
        raise Refused("no tiled level: the picture may be a label", where=where, wanted="a tiled pyramid")
    for directory in kept:
        if _SUB_IFDS in directory.tags:
            raise Refused("levels in sub-directories are not read", where=where, remedy="convert it to a plain pyramid")
        if directory.numbers(_COMPRESSION, order) == [6]:
            raise Refused("old-style JPEG cannot be looked into", where=where, remedy="convert it")
        if len(directory.numbers(_OFFSETS, order)) != len(directory.numbers(_COUNTS, order)):
            raise FormatError("tiles without sizes", where=where)


class _Writer:
    """Writes directories one after the other: tiles, values, directory, link from the one before."""

    def __init__(self, file: BinaryIO, order: str, big: bool):
        self._file, self._order, self._big = file, order, big
        self._long = "Q" if big else "I"

    def write(self, source: BinaryIO, directories: list[_Directory], where: str) -> None:
        mark = b"II" if self._order == "<" else b"MM"
        if self._big:
            self._file.write(mark + struct.pack(f"{self._order}HHHQ", 43, 8, 0, 0))
        else:
            self._file.write(mark + struct.pack(f"{self._order}HI", 42, 0))
        link = self._file.tell() - (8 if self._big else 4)
        for directory in directories:
            link = self._directory(source, directory, link, where)

    def _directory(self, source: BinaryIO, directory: _Directory, link: int, where: str) -> int:
        order, file = self._order, self._file
        jpeg = directory.numbers(_COMPRESSION, order) in ([7], [33003], [33005], [34712])
        offsets, counts = [], []
        for at, length in zip(directory.numbers(_OFFSETS, order), directory.numbers(_COUNTS, order), strict=True):
            source.seek(at)
            tile = source.read(length)
            if len(tile) != length:
                raise FormatError("the TIFF is cut short", where=where, found="a tile")
            # An empty tile means background.
            tile = without_comments(tile) if jpeg and tile else tile
            file.seek(0, os.SEEK_END)
            offsets.append(file.tell())
            counts.append(len(tile))
            file.write(tile + bytes(len(tile) % 2))
        kind = 16 if self._big else 4
        tags = {tag: value for tag, value in directory.tags.items() if tag in _KEPT}
        if _JPEG_TABLES in tags:
            tables = without_comments(tags[_JPEG_TABLES][2])
            tags[_JPEG_TABLES] = (7, len(tables), tables)
        tags[_OFFSETS] = (kind, len(offsets), struct.pack(f"{order}{len(offsets)}{self._long}", *offsets))
        tags[_COUNTS] = (kind, len(counts), struct.pack(f"{order}{len(counts)}{self._long}", *counts))
        description = _description(directory, order)
        if description:
            tags[_DESCRIPTION] = (2, len(description), description)
        return self._entries(tags, link)

    def _entries(self, tags: dict[int, tuple[int, int, bytes]], link: int) -> int:
        order, file, inline = self._order, self._file, 8 if self._big else 4
        rows = []
        for tag, (kind, count, raw) in sorted(tags.items()):
            value = raw
            if len(raw) > inline:
                file.seek(0, os.SEEK_END)
                value = struct.pack(f"{order}{self._long}", file.tell())
                file.write(raw + bytes(len(raw) % 2))
            rows.append(struct.pack(f"{order}HH{self._long}", tag, kind, count) + value.ljust(inline, b"\0"))
        file.seek(0, os.SEEK_END)
        start = file.tell()
        file.write(struct.pack(f"{order}{'Q' if self._big else 'H'}", len(rows)) + b"".join(rows))
        following = file.tell()
        file.write(bytes(8 if self._big else 4))
        file.seek(link)
        file.write(struct.pack(f"{order}{self._long}", start))
        return following


def _description(directory: _Directory, order: str) -> bytes:
    """Aperio's description with its numbers alone; nothing for other makers."""
    text = directory.tags.get(_DESCRIPTION, (2, 0, b""))[2].decode("latin-1")
    if not text.startswith("Aperio"):
        return b""
    width, height, across, down = (
        directory.numbers(tag, order)[0] for tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT)
    )
    numbers = "".join(f"|{key} = {value}" for key, value in _APERIO.findall(text))
    return f"Aperio Image Library medseq\r\n{width}x{height} ({across}x{down}){numbers}\0".encode("ascii")
