"""Text inside compressed pixels: comments and application data of JPEG, JPEG-LS and JPEG 2000 codestreams.

Cameras and slide scanners write names, dates and serial numbers there. The segments are cut out; the coded pixels are
not touched.

Reference:
    ITU-T T.81 annex B (JPEG), T.87 annex C (JPEG-LS), T.800 annex A (JPEG 2000).
"""

from collections.abc import Callable

from medseq.errors import FormatError

__all__ = ["without_comments"]

_SOI, _EOI, _SOS, _COM = b"\xff\xd8", b"\xff\xd9", 0xDA, 0xFE
_SOC, _SOT, _J2K_COM = b"\xff\x4f\xff\x51", 0x90, 0x64
_JP2 = b"\x00\x00\x00\x0cjP  "
# Carries the colour transform and no text: without it the colours are wrong.
_ADOBE = (b"Adobe", 14)


def without_comments(data: bytes) -> bytes:
    """A codestream without comment and application segments; anything else than JPEG or JPEG 2000 comes back as it is.

    Raises:
        FormatError: Its segments make no sense, or it is wrapped in a JP2 file, whose boxes can hold anything.
    """
    if data.startswith(_SOI):
        return _cut(data, lambda marker, body: marker == _COM or (0xE0 <= marker <= 0xEF and not _is_adobe(body)), _SOS)
    if data.startswith(_SOC):
        _refuse_tile_comments(data)
        return _cut(data, lambda marker, body: marker == _J2K_COM, _SOT)
    if data.startswith(_JP2):
        raise FormatError("the pixels are wrapped in a JP2 file", wanted="a bare JPEG 2000 codestream")
    return data


def _refuse_tile_comments(data: bytes) -> None:
    """A comment in the header of a tile cannot be cut without changing lengths elsewhere; encoders write none."""
    at = data.find(bytes((0xFF, _SOT)))
    while 0 <= at and data[at : at + 2] == bytes((0xFF, _SOT)):
        end = at + int.from_bytes(data[at + 6 : at + 10], "big")
        inner = at + 12
        while inner + 4 <= len(data) and data[inner : inner + 2] != b"\xff\x93":
            if data[inner + 1] == _J2K_COM:
                raise FormatError("the compressed pixels hold a comment in a tile's header")
            inner += 2 + max(2, int.from_bytes(data[inner + 2 : inner + 4], "big"))
        if end <= at:
            return
        at = end


def _is_adobe(body: bytes) -> bool:
    return body.startswith(_ADOBE[0]) and len(body) + 2 == _ADOBE[1]


def _cut(data: bytes, unwanted: Callable[[int, bytes], bool], last: int) -> bytes:
    """Copy segments up to the one called `last`, and everything from there."""
    kept, at = [data[:2]], 2
    while True:
        if at + 4 > len(data) or data[at] != 0xFF:
            # A table-only stream of a TIFF ends with EOI and has no scan.
            if data[at : at + 2] == _EOI:
                return b"".join((*kept, _EOI))
            raise FormatError("the compressed pixels make no sense", found=f"no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == last:
            # What follows the end of the image belongs to no image.
            end = data.rfind(_EOI) + 2
            return b"".join((*kept, data[at : end if end > at else len(data)]))
        if length < 2 or at + 2 + length > len(data):
            raise FormatError("the compressed pixels make no sense", found=f"a segment of {length} bytes at byte {at}")
        if not unwanted(marker, data[at + 4 : at + 2 + length]):
            kept.append(data[at : at + 2 + length])
        at += 2 + length
