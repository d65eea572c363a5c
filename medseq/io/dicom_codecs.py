"""Which decoder reads which compressed pixels; chosen so that damaged data raise an error and nothing worse.

pydicom would try its decoders in turn. On damaged data pylibjpeg's run-length decoder panics past every ``except
Exception``; GDCM, the only freely licensed decoder of lossless JPEG, aborts its process; and every JPEG decoder
allocates what the code stream claims, be it 20 GB. So each syntax has one decoder here, the size in the code stream
must be that of the header, and GDCM runs in a process of its own (`medseq.io.gdcm_worker`). GDCM also decodes lossy
12-bit JPEG, which pydicom's plugin for it refuses to try.
"""

import atexit
import importlib.util
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.encaps import get_frame
from pydicom.filereader import read_partial
from pydicom.pixels import get_decoder, iter_pixels
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medseq.io.dicom_types import PixelFormat
from medseq.io.gdcm_worker import HEADER, LENGTH

__all__ = ["decoded_frames", "decoder_plugin", "has_decoder"]

_PLUGINS = {
    **dict.fromkeys((JPEG2000, JPEG2000Lossless, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL), "pylibjpeg"),
    **dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), "pyjpegls"),
    JPEGBaseline8Bit: "pillow",
    RLELossless: "pydicom",
}
_GDCM = (JPEGLossless, JPEGLosslessSV1, JPEGExtended12Bit)
_NUMBER_OF_FRAMES = 0x00280008
_PIXEL_DATA = 0x7FE00010
# Markers of ITU-T T.81 table B.1 and T.87 (JPEG-LS): start of frame, and those that stand alone.
_START_OF_FRAME = (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)
_STANDALONE = (0x01, *range(0xD0, 0xD9))


def has_decoder(syntax: UID) -> bool:
    """Can pixels of this transfer syntax be decoded with what is installed?"""
    if not syntax.is_encapsulated:
        return True
    if syntax in _GDCM:
        return importlib.util.find_spec("gdcm") is not None
    return syntax in _PLUGINS and _PLUGINS[syntax] in get_decoder(syntax).available_plugins


def decoder_plugin(syntax: UID) -> str:
    """The one plugin of pydicom that decodes a transfer syntax here; empty where none is needed or allowed."""
    return _PLUGINS.get(syntax, "")


def decoded_frames(path: Path, indices: Iterable[int], pixels: PixelFormat) -> Iterable[np.ndarray]:
    """Stored values ``(row, col)`` of some frames of a file, in the order of `indices` (ascending).

    Raises:
        ValueError: The code stream is not an image of the header's size.
        RuntimeError: It cannot be decoded. Damaged data raise others, too.
    """
    syntax, indices = UID(pixels.transfer_syntax), list(indices)
    if syntax == DeflatedExplicitVRLittleEndian:
        # Only pydicom's reader of whole files inflates.
        return iter_pixels(dcmread(path), indices=indices, raw=True)
    if syntax in _GDCM:
        return (_worker.decode(stream, pixels) for stream in _code_streams(path, indices, pixels))
    if syntax.is_encapsulated and syntax != RLELossless:
        for _ in _code_streams(path, indices, pixels):
            pass
    plugin = decoder_plugin(syntax)
    return iter_pixels(path, indices=indices, raw=True, transfer_syntax_uid=syntax, decoding_plugin=plugin)


def _code_streams(path: Path, indices: list[int], pixels: PixelFormat) -> Iterator[bytes]:
    """Compressed frames one by one, each of the size that the header states."""
    with path.open("rb") as file:
        header = read_partial(
            file, stop_when=lambda tag, vr, length: tag == _PIXEL_DATA, specific_tags=[_NUMBER_OF_FRAMES]
        )
        # Tag, VR and length of the pixel data, which are explicit and long in every encapsulated syntax.
        file.seek(12, os.SEEK_CUR)
        for index in indices:
            stream = get_frame(file, index, number_of_frames=int(header.get("NumberOfFrames") or 1))
            if _size(stream) != (pixels.rows, pixels.columns, 1):
                raise ValueError("the code stream and the header disagree on the size of the image")
            yield stream


def _size(stream: bytes) -> tuple[int, int, int]:
    """Rows, columns and components of a JPEG, JPEG-LS or JPEG 2000 code stream.

    Reference:
        ITU-T T.81 B.2.2 (start of frame; T.87 uses the same), T.800 A.5.1 (SIZ).
    """
    # A JP2 file holds the code stream in a box; DICOM forbids the wrapping, some writers do it.
    start = stream.find(b"\xff\x4f\xff\x51") if stream[4:8] == b"jP  " else 0
    if stream[start : start + 4] == b"\xff\x4f\xff\x51":
        right, bottom, left, top = struct.unpack_from(">IIII", stream, start + 8)
        return bottom - top, right - left, struct.unpack_from(">H", stream, start + 40)[0]
    place = 2
    while stream[:2] == b"\xff\xd8" and place + 4 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker in _START_OF_FRAME:
            return struct.unpack_from(">HHB", stream, place + 5)
        if marker == 0xFF or marker in _STANDALONE:
            place += 1 if marker == 0xFF else 2
        else:
            place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    raise ValueError("the code stream does not state its size")


class _GdcmWorker:
    """The decoding process: started when it is first needed, and again when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def decode(self, stream: bytes, pixels: PixelFormat) -> np.ndarray:
        """One frame as stored values; RuntimeError if it cannot be decoded."""
        with self._lock:
            data = self._ask(stream, pixels)
        if len(data) != pixels.rows * pixels.columns * pixels.bits_allocated // 8:
            raise RuntimeError("the code stream cannot be decoded")
        little = np.frombuffer(data, pixels.dtype.newbyteorder("<")).reshape(pixels.rows, pixels.columns)
        # The bits above BitsStored carry no meaning: shifted out, and the sign back in.
        unused = pixels.bits_allocated - pixels.bits_stored
        return (little.astype(pixels.dtype) << unused) >> unused

    def _ask(self, stream: bytes, pixels: PixelFormat) -> bytes:
        process = self._running()
        texts = [pixels.transfer_syntax.encode(), pixels.photometric.encode(), stream]
        size = (pixels.rows, pixels.columns, pixels.bits_allocated, pixels.bits_stored, int(pixels.signed))
        try:
            process.stdin.write(b"".join([HEADER.pack(*size, *map(len, texts)), *texts]))  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            head = process.stdout.read(LENGTH.size)  # type: ignore[union-attr]
            if len(head) == LENGTH.size:
                return process.stdout.read(LENGTH.unpack(head)[0])  # type: ignore[union-attr]
        except BrokenPipeError:
            pass
        self.close()
        raise RuntimeError("the decoder died of the code stream")

    def _running(self) -> subprocess.Popen:
        if self._process is not None and self._owner != os.getpid():
            # A forked child has its parent's pipes; two writers on them would mix their requests.
            self._process = None
        if self._process is None:
            script = Path(__file__).with_name("gdcm_worker.py")
            pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
            # -P: the script's folder is not searched for modules.
            command = [sys.executable, "-P", os.fspath(script)]
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing)
            self._owner = os.getpid()
        return self._process

    def close(self) -> None:
        """End the process, if it is this process's."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                # A pipe to a dead process may hold what was not sent.
                try:
                    pipe.close()  # type: ignore[union-attr]
                except BrokenPipeError:
                    pass


_worker = _GdcmWorker()
atexit.register(_worker.close)
