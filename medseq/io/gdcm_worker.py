"""A process that decodes JPEG code streams with GDCM, because GDCM ends its process on some damaged ones.

Run as a script by `medseq.io.dicom_codecs`; it imports GDCM and nothing else. Requests come on standard input, answers
go to standard output, until the input is closed:

    request  `HEADER`: rows, columns, bits allocated, bits stored, signed, then lengths of three byte strings, which
             follow: transfer syntax UID, photometric interpretation, code stream
    answer   length of the pixels (8 bytes, little endian; 0 if they could not be decoded), then the pixels
"""

import struct
import sys

HEADER = struct.Struct("<IIBBBIII")
LENGTH = struct.Struct("<Q")


def decode(stream: bytes, syntax: str, photometric: str, rows: int, columns: int, pixel: tuple[int, int, int]) -> bytes:
    """One grey-scale frame as little-endian bytes; `pixel` is bits allocated, bits stored, signed."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(photometric)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    allocated, stored, signed = pixel
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, stored, stored - 1, signed))
    # GDCM hands bytes over as text.
    return image.GetBuffer().encode("utf-8", "surrogateescape")


def serve() -> None:
    """Answer requests until there are no more."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(HEADER.size)) == HEADER.size:
        rows, columns, allocated, stored, signed, *lengths = HEADER.unpack(head)
        syntax, photometric, stream = (source.read(length) for length in lengths)
        pixel = (allocated, stored, signed)
        try:
            pixels = decode(stream, syntax.decode(), photometric.decode(), rows, columns, pixel)
        except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError):
            pixels = b""
        sink.write(LENGTH.pack(len(pixels)) + pixels)
        sink.flush()


if __name__ == "__main__":
    serve()
