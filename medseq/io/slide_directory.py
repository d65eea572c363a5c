"""The directory of a TIFF slide, checked before OpenSlide believes it.

OpenSlide takes memory for a tile as its header asks for it, and GLib ends the process where there is not so much: one
damaged number in a slide would end a whole run. The directory says where each tile lies and how long it is; both must
be inside the file, and a decoded tile must fit into memory.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from medseq.errors import FormatError
from medseq.io.privacy import path_label

__all__ = ["require_sound"]

_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_OFFSETS, _COUNTS = (273, 324), (279, 325)
# Bytes of one number of each type that counts, offsets and sizes may have.
_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}
_FORMS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MAX_DIRECTORIES = 10_000
# Of a decoded tile; a strip may hold a whole label or macro image.
_MAX_TILE_PIXELS = 1 << 26


def require_sound(path: Path) -> None:
    """Refuse a TIFF whose directory contradicts the file; other formats pass.

    Hamamatsu's NDPI passes, too: its offsets go beyond 32 bits in a way of its own.

    Raises:
        FormatError: A tile outside the file, one of absurd size, or directories without end.
    """
    if path.suffix.lower() == ".ndpi":
        return
    where, size = path_label(path), path.stat().st_size
    with path.open("rb") as file:
        try:
            for entries in _directories(file):
                problem = _problem(file, entries, size)
                if problem is not None:
                    raise _damaged(where, problem)
        except (struct.error, OverflowError, MemoryError, OSError):
            raise _damaged(where, "a directory that leads outside of the file or round in circles") from None


class _Layout:
    """Byte order, and how long numbers are in TIFF and in BigTIFF."""

    def __init__(self, head: bytes) -> None:
        self.order = "<" if head[:2] == b"II" else ">"
        self.big = struct.unpack(self.order + "H", head[2:4])[0] == 43
        self.count, self.entry, self.value = ("Q", 20, "Q") if self.big else ("H", 12, "I")

    def number(self, file: IO[bytes], form: str) -> int:
        form = self.order + form
        return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])


# Of each tag: type, how many numbers, where they are.
_Entries = tuple[_Layout, dict[int, tuple[int, int, int]]]


def _directories(file: IO[bytes]) -> Iterator[_Entries]:
    """The directories in order; none of a file that is no TIFF."""
    head = file.read(8)
    if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return
    layout = _Layout(head)
    file.seek(8 if layout.big else 4)
    place, seen = layout.number(file, layout.value), set()
    while place:
        if place in seen or len(seen) >= _MAX_DIRECTORIES:
            raise OverflowError("directories without end")
        seen.add(place)
        file.seek(place)
        count = layout.number(file, layout.count)
        if count > 4096:
            raise OverflowError("entries without end")
        start = file.tell()
        entries = {}
        for number in range(count):
            file.seek(start + number * layout.entry)
            tag, kind = layout.number(file, "H"), layout.number(file, "H")
            length = layout.number(file, layout.value)
            width = _SIZES.get(kind, 1) * length
            inline = width <= struct.calcsize(layout.value)
            entries[tag] = (kind, length, file.tell() if inline else layout.number(file, layout.value))
        file.seek(start + count * layout.entry)
        following = layout.number(file, layout.value)
        yield layout, entries
        place = following


def _numbers(file: IO[bytes], entries: _Entries, tag: int) -> tuple[int, ...]:
    layout, known = entries
    if tag not in known:
        return ()
    kind, length, place = known[tag]
    if kind not in _SIZES:
        return ()
    file.seek(place)
    data = file.read(_SIZES[kind] * length)
    return struct.unpack(f"{layout.order}{length}{_FORMS[kind]}", data)


def _problem(file: IO[bytes], entries: _Entries, size: int) -> str | None:
    """What is wrong with a directory, or None."""
    # A tile of no bytes that lies nowhere is one that was not scanned.
    for tag in (*_OFFSETS, *_COUNTS):
        if tag in entries[1] and entries[1][tag][1] > size:
            return "more tiles than bytes"
    first = {tag: (*_numbers(file, entries, tag), 0)[0] for tag in (_TILE_WIDTH, _TILE_HEIGHT)}
    if first[_TILE_WIDTH] * first[_TILE_HEIGHT] > _MAX_TILE_PIXELS:
        return f"tiles of {first[_TILE_WIDTH]} x {first[_TILE_HEIGHT]}"
    for starts, counts in zip(_OFFSETS, _COUNTS, strict=True):
        places, lengths = _numbers(file, entries, starts), _numbers(file, entries, counts)
        if any(place + length > size for place, length in zip(places, lengths, strict=False)):
            return "a tile outside of the file"
    return None


def _damaged(where: str, found: str) -> FormatError:
    return FormatError(
        "the slide's directory is damaged", where=where, found=found, remedy="copy the file again from its source"
    )
