"""Which decoder reads which compressed pixels; chosen so that damaged data raise an error and nothing worse.

pydicom would try its decoders in turn, and two of them end the process on damaged data: pylibjpeg's run-length
decoder panics past every ``except Exception``, and GDCM aborts when the size in the code stream is not that of the
header. So each syntax has one decoder here, and GDCM, the only freely licensed one for lossless JPEG, gets code
streams whose size was checked. GDCM also decodes lossy 12-bit JPEG, which pydicom's plugin for it refuses to try.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.encaps import get_frame
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

__all__ = ["decoded_frames"]

_PREFERRED = {
    **dict.fromkeys((JPEG2000, JPEG2000Lossless, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL), "pylibjpeg"),
    **dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys((JPEGLossless, JPEGLosslessSV1, JPEGExtended12Bit), "gdcm"),
    JPEGBaseline8Bit: "pillow",
    RLELossless: "pydicom",
}
_START_OF_FRAME = (0xC0, 0xC1, 0xC2, 0xC3)
_STANDALONE = (0x01, *range(0xD0, 0xD9))


def decoded_frames(path: Path, indices: Iterable[int], pixels: PixelFormat) -> Iterable[np.ndarray]:
    """Stored values ``(row, col)`` of some frames of a file, in the order of `indices` (ascending).

    Raises:
        ValueError: The code stream is not an image of this size.
        RuntimeError: It cannot be decoded, or the decoder is not installed. Damaged data raise others, too.
    """
    syntax, indices = UID(pixels.transfer_syntax), list(indices)
    if syntax == DeflatedExplicitVRLittleEndian:
        # Only pydicom's reader of whole files inflates.
        return iter_pixels(dcmread(path), indices=indices, raw=True)
    plugin = _PREFERRED.get(syntax, "")
    if plugin and plugin not in get_decoder(syntax).available_plugins:
        raise RuntimeError(f"the decoder {plugin} is not installed")
    if plugin == "gdcm":
        streams = list(_code_streams(path, indices, pixels))
        if syntax == JPEGExtended12Bit and pixels.bits_stored > 8:
            return (_decode_jpeg12(stream, pixels) for stream in streams)
    return iter_pixels(path, indices=indices, raw=True, transfer_syntax_uid=syntax, decoding_plugin=plugin)


def _code_streams(path: Path, indices: list[int], pixels: PixelFormat) -> Iterator[bytes]:
    """Compressed frames, each of the size that the header states."""
    dataset = dcmread(path)
    frames = int(dataset.get("NumberOfFrames") or 1)
    for index in indices:
        stream = get_frame(dataset.PixelData, index, number_of_frames=frames)
        precision, rows, columns, components = _jpeg_size(stream)
        if (rows, columns, components) != (pixels.rows, pixels.columns, 1) or precision > pixels.bits_allocated:
            raise ValueError("the code stream and the header disagree on the size of the image")
        if (precision > 8) != (pixels.bits_allocated > 8):
            raise ValueError("the code stream and the header disagree on the bits of a pixel")
        yield stream


def _jpeg_size(stream: bytes) -> tuple[int, int, int, int]:
    """Precision, rows, columns and components of a JPEG code stream: its start-of-frame segment.

    Reference:
        ITU-T T.81, B.2.2.
    """
    place = 2
    while stream[:2] == b"\xff\xd8" and place + 4 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker == 0xFF or marker in _STANDALONE:
            place += 1 if marker == 0xFF else 2
            continue
        if marker in _START_OF_FRAME:
            return struct.unpack_from(">BHHB", stream, place + 4)
        place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    raise ValueError("the code stream has no start of frame")


def _decode_jpeg12(stream: bytes, pixels: PixelFormat) -> np.ndarray:
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((pixels.columns, pixels.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(pixels.photometric)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(pixels.transfer_syntax))))
    bits = pixels.bits_stored
    image.SetPixelFormat(gdcm.PixelFormat(1, pixels.bits_allocated, bits, bits - 1, int(pixels.signed)))
    # GDCM hands bytes over as text.
    data = image.GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(data, pixels.dtype.newbyteorder("<")).reshape(pixels.rows, pixels.columns)
