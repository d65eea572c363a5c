"""One DICOM file's header, without its pixels, and a check that the pixels are there.

pydicom warns and logs with attribute values in the text; `quiet` keeps those out of terminals and logs, because they
may be a patient's.
"""

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medseq.errors import FormatError, MedseqError, RetryableError
from medseq.io.dicom_codecs import has_decoder
from medseq.io.oversize import no_memory
from medseq.io.privacy import path_label

__all__ = ["Header", "NotDicomError", "quiet", "read_header", "understood"]

# What pydicom and its decoders raise on damaged files; found by cutting and flipping bytes of real ones.
_DAMAGE = (
    *(InvalidDicomError, BytesLengthException, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(RuntimeError, EOFError, AssertionError, struct.error, zlib.error),
)

_PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
_UNDEFINED_LENGTH = 0xFFFFFFFF
_LONG_LENGTH_VRS = ("OB", "OW", "OF", "OD", "OL", "OV", "UN")

_KEYWORDS = """
    SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID Modality StudyInstanceUID SeriesInstanceUID
    InstanceNumber FrameOfReferenceUID ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness
    SpacingBetweenSlices Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored
    HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept RescaleType
    ModalityLUTSequence Units SUVType LossyImageCompression AcquisitionNumber EchoNumbers EchoTime InversionTime
    TemporalPositionIdentifier TriggerTime FlipAngle DiffusionBValue DiffusionGradientOrientation FrameReferenceTime
    KVP ConvolutionKernel AcquisitionTime SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
"""
_TAGS = [tag for word in _KEYWORDS.split() if (tag := tag_for_keyword(word)) is not None]


class NotDicomError(FormatError):
    """The file is not DICOM at all; it is skipped, not failed."""


@dataclass(frozen=True)
class Header:
    """A header and what is wrong with the pixels, if anything.

    Attributes:
        dataset: The attributes that grouping needs; values are converted, and may fail, when they are read.
        transfer_syntax: From the file meta header, or guessed for a file without one.
        has_pixels: A pixel data element is there.
        problem: Why the pixels cannot be read, or None.
    """

    dataset: Dataset
    transfer_syntax: UID
    has_pixels: bool
    problem: FormatError | None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's warnings and log lines, which quote attribute values."""
    logger = logging.getLogger("pydicom")
    disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


@contextmanager
def understood(
    where: str, what: str, *, found: str = "", remedy: str = "copy the file again from its source"
) -> Iterator[None]:
    """Call pydicom quietly; turn what it raises into `FormatError` (damage) or `RetryableError` (the disk).

    Args:
        where: Label of the file or series.
        what: What is wrong if the data make no sense.
        found: Put before the kind of the original error.
        remedy: What the reader can do about damage.
    """
    try:
        with quiet():
            yield
    except MedseqError:
        raise
    except MemoryError:
        raise no_memory(where) from None
    except (*_DAMAGE, OSError) as error:
        # `from None`, here and below: the original message quotes values or holds the path.
        if isinstance(error, OSError) and error.errno is not None:
            raise RetryableError(
                "the file cannot be read",
                where=where,
                found=os.strerror(error.errno),
                wanted="a readable file",
                remedy="check its permissions and the disk",
            ) from None
        raise FormatError(what, where=where, found=f"{found}{type(error).__name__}", remedy=remedy) from None


def read_header(path: Path) -> Header:
    """Read what grouping needs from one file.

    Raises:
        NotDicomError: The file does not look like DICOM.
        FormatError: It does, but its header is damaged.
        RetryableError: The file cannot be opened or read.
    """
    where = path_label(path)
    with understood(where, "the DICOM header is damaged"), path.open("rb") as file:
        headerless = _sniff(file, where)
        file.seek(0)
        return _parse(file, headerless, where)


def _sniff(file: BinaryIO, where: str) -> bool:
    """True for a data set without the 128-byte preamble and DICM, as old exports write them."""
    start = file.read(132)
    if start[128:] == b"DICM":
        return False
    for order in "<>":
        if len(start) >= 12:
            group, element, length = struct.unpack(f"{order}HHI", start[:8])
            vr = start[4:6]
            explicit = vr.isalpha() and vr.isupper()
            if group in (2, 8) and element <= 0x0100 and (explicit or (order == "<" and length <= 256)):
                return True
    raise NotDicomError("not a DICOM file", where=where, found="no DICM marker at byte 128")


def _parse(file: BinaryIO, headerless: bool, where: str) -> Header:
    at: list[tuple[str | None, int]] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag in _PIXEL_TAGS:
            at.append((vr, length))
        return tag in _PIXEL_TAGS

    dataset = read_partial(file, stop_when=at_pixels, force=headerless, specific_tags=list(_TAGS))
    implicit, little = dataset.original_encoding
    if headerless and "SOPClassUID" not in dataset and "SOPInstanceUID" not in dataset:
        raise NotDicomError("not a DICOM file", where=where, found="no DICM marker and no SOP class")
    guessed = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID") or guessed)
    if not at:
        size = os.fstat(file.fileno()).st_size
        what = "the file is cut short: " if file.tell() > size else ""
        return Header(dataset, syntax, False, _pixel_error(f"{what}no pixel data", where, None))
    vr, length = at[0]
    problem = None
    if not (syntax.is_transfer_syntax and has_decoder(syntax)):
        problem = _pixel_error(
            "no decoder for these compressed pixels", where, syntax.name if syntax.is_valid else None
        )
    elif syntax == DeflatedExplicitVRLittleEndian:
        # The whole data set was inflated to get here, so nothing is cut; the position in `file` means nothing.
        pass
    elif length == _UNDEFINED_LENGTH:
        file.seek(12 if vr in _LONG_LENGTH_VRS else 8, os.SEEK_CUR)
        problem = _check_fragments(file, where)
    else:
        file.seek(12 if vr in _LONG_LENGTH_VRS else 8, os.SEEK_CUR)
        problem = _check_native(dataset, length, os.fstat(file.fileno()).st_size - file.tell(), where)
    return Header(dataset, syntax, True, problem)


def _check_native(dataset: Dataset, length: int, remaining: int, where: str) -> FormatError | None:
    try:
        frames = int(dataset.get("NumberOfFrames") or 1)
        bits = int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated)
        wanted = (bits * int(dataset.get("SamplesPerPixel", 1)) * frames + 7) // 8
    except _DAMAGE:
        return _pixel_error("the size of the image is not readable", where, None)
    found = min(length, remaining)
    if found < wanted and "YBR_FULL_422" not in str(dataset.get("PhotometricInterpretation")):
        return _pixel_error("the pixel data are cut short", where, f"{found} of {wanted} bytes")
    return None


def _check_fragments(file: BinaryIO, where: str) -> FormatError | None:
    """Walk the items of encapsulated pixel data without reading them."""
    size, items = os.fstat(file.fileno()).st_size, 0
    while True:
        head = file.read(8)
        if len(head) < 8:
            # Some writers omit the closing delimiter; whole fragments are enough to decode.
            break
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) != (0xFFFE, 0xE000):
            break
        items += 1
        if file.tell() + length > size:
            found = f"{size - file.tell()} of {length} bytes of a fragment"
            return _pixel_error("the pixel data are cut short", where, found)
        file.seek(length, os.SEEK_CUR)
    return _pixel_error("no pixel data", where, "no fragments") if items < 2 else None


def _pixel_error(what: str, where: str, found: str | None) -> FormatError:
    return FormatError(what, where=where, found=found, remedy="copy the file again from its source")
