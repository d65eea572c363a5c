"""Lossy 12-bit JPEG (JPEG Extended), which none of pydicom's freely licensed decoders takes.

GDCM decodes it rightly when it is handed one frame with its format; pydicom's plugin refuses to try.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.encaps import get_frame
from pydicom.uid import JPEGExtended12Bit

from medseq.io.dicom_types import PixelFormat

__all__ = ["decode_jpeg12", "is_jpeg12"]


def is_jpeg12(pixels: PixelFormat) -> bool:
    """Lossy JPEG with more than 8 bits a pixel."""
    return pixels.transfer_syntax == JPEGExtended12Bit and pixels.bits_stored > 8


def decode_jpeg12(path: Path, indices: Iterable[int], pixels: PixelFormat) -> Iterator[np.ndarray]:
    """Frames of a file as ``(row, col)`` stored values; the compressed pixels of the file are held in memory.

    Raises:
        RuntimeError: GDCM is not installed or cannot decode a frame.
    """
    try:
        import gdcm
    except ImportError:
        raise RuntimeError("python-gdcm is not installed") from None
    dataset = dcmread(path)
    frames = int(dataset.get("NumberOfFrames") or 1)
    for index in indices:
        fragment = gdcm.Fragment()
        fragment.SetByteStringValue(get_frame(dataset.PixelData, index, number_of_frames=frames))
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
        syntax = gdcm.TransferSyntax.GetTSType(str(pixels.transfer_syntax))
        image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        bits = pixels.bits_stored
        image.SetPixelFormat(gdcm.PixelFormat(1, pixels.bits_allocated, bits, bits - 1, int(pixels.signed)))
        # GDCM hands bytes over as text.
        data = image.GetBuffer().encode("utf-8", "surrogateescape")
        yield np.frombuffer(data, pixels.dtype.newbyteorder("<")).reshape(pixels.rows, pixels.columns)
