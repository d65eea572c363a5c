"""From a header to frames: one `Frame` a plane, whether the object is single-frame or enhanced multi-frame.

An enhanced object keeps each frame's attributes in functional groups. `flatten` brings one frame's into the flat form
of a single-frame object, so that everything after it knows only one form.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medseq.errors import FormatError
from medseq.io.dicom_classify import sop_class
from medseq.io.dicom_header import Header
from medseq.io.dicom_types import Frame, PixelFormat
from medseq.io.privacy import path_label

__all__ = ["SPLIT_KEYWORDS", "flatten", "frames_of", "is_enhanced"]

# What may tell several stacks of one series apart, most telling first.
SPLIT_KEYWORDS = (
    *("StackID", "AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "InversionTime"),
    *("TriggerTime", "FrameReferenceTime", "DiffusionBValue", "DiffusionGradientOrientation", "FlipAngle", "KVP"),
    *("ConvolutionKernel", "AcquisitionTime"),
)
_KEPT_KEYWORDS = ("ImageType", "RescaleType", "RescaleIntercept", *SPLIT_KEYWORDS)

# Functional-group attribute -> the attribute that holds the same in a single-frame object.
_RENAMED = {
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "EffectiveEchoTime": "EchoTime",
    "RFEchoTrainLength": "EchoTrainLength",
    "InversionTimes": "InversionTime",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
    "FrameType": "ImageType",
    "ExposureTimeInms": "ExposureTime",
    "XRayTubeCurrentInmA": "XRayTubeCurrent",
    "ResonantNucleus": "ImagedNucleus",
}
_ORTHOGONAL_TOLERANCE = 1e-3


def is_enhanced(dataset: Dataset) -> bool:
    """Does the object keep its frames' attributes in functional groups?"""
    return "PerFrameFunctionalGroupsSequence" in dataset


def flatten(dataset: Dataset, index: int) -> Dataset:
    """Attributes of one frame of an enhanced object in the flat form of a single-frame one.

    Shared groups come first and per-frame groups override them. Only the groups' contents are returned, renamed
    where the single-frame attribute has another name.
    """
    flat = Dataset()
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in [*shared[:1], dataset.PerFrameFunctionalGroupsSequence[index]]:
        for name, element in _group_elements(group):
            if name in _RENAMED:
                # Not assigned over what is there: that would change the shared group's own element.
                flat.pop(_RENAMED[name], None)
                setattr(flat, _RENAMED[name], element.value)
            else:
                flat[element.tag] = element
    return flat


def _group_elements(group: Dataset) -> Iterator[tuple[str, DataElement]]:
    """Elements of every macro of a functional group, one level deep, nested value macros included."""
    for macro in group:
        if macro.VR != "SQ" or not macro.value or macro.tag.is_private:
            continue
        for element in macro.value[0]:
            yield keyword_for_tag(element.tag), element
            if element.VR == "SQ" and element.value and element.keyword == "DiffusionGradientDirectionSequence":
                for nested in element.value[0]:
                    yield keyword_for_tag(nested.tag), nested


def frames_of(path: Path, header: Header) -> list[Frame]:
    """All frames of one image object.

    Raises:
        FormatError: An attribute that is needed is missing or makes no sense.
    """
    dataset, where = header.dataset, path_label(path)
    if not _sop_uid(dataset):
        raise FormatError("no SOP instance UID", where=where, remedy="export the image again")
    pixels = _pixel_format(dataset, str(header.transfer_syntax), where)
    if not is_enhanced(dataset):
        frames = int(dataset.get("NumberOfFrames") or 1)
        if frames != 1:
            raise FormatError(
                "a multi-frame image without per-frame geometry",
                where=where,
                found=f"{frames} frames",
                wanted="an enhanced multi-frame object or single-frame files",
            )
        return [_frame(path, None, dataset, Dataset(), pixels, where)]
    groups, frames = len(dataset.PerFrameFunctionalGroupsSequence), int(dataset.get("NumberOfFrames") or 0)
    if groups != frames or frames < 1:
        raise FormatError(
            "the functional groups do not match the frames",
            where=where,
            found=f"{groups} groups, {frames} frames",
            wanted="one group a frame",
        )
    return [_frame(path, i, dataset, flatten(dataset, i), pixels, where) for i in range(frames)]


def _sop_uid(dataset: Dataset) -> str:
    return str(dataset.get("SOPInstanceUID") or dataset.file_meta.get("MediaStorageSOPInstanceUID") or "")


def _pixel_format(dataset: Dataset, syntax: str, where: str) -> PixelFormat:
    allocated, stored = int(dataset.get("BitsAllocated") or 0), int(dataset.get("BitsStored") or 0)
    pixels = PixelFormat(
        rows=int(dataset.get("Rows") or 0),
        columns=int(dataset.get("Columns") or 0),
        bits_allocated=allocated,
        bits_stored=stored or allocated,
        signed=int(dataset.get("PixelRepresentation") or 0) == 1,
        photometric=str(dataset.get("PhotometricInterpretation") or "MONOCHROME2"),
        transfer_syntax=syntax,
    )
    if pixels.rows < 1 or pixels.columns < 1:
        size = (pixels.rows, pixels.columns)
        raise FormatError("no image size", where=where, found=size, wanted="rows, columns >= 1")
    if allocated not in (8, 16, 32) or not 0 < pixels.bits_stored <= allocated:
        raise FormatError(
            "stored pixels of this size cannot be read",
            where=where,
            found=f"{pixels.bits_stored} of {allocated} bits",
            wanted="8, 16 or 32 bits allocated",
        )
    if int(dataset.get("HighBit", pixels.bits_stored - 1)) != pixels.bits_stored - 1:
        raise FormatError(
            "the pixel bits do not start at bit 0",
            where=where,
            found=f"high bit {dataset.HighBit}",
            wanted=f"{pixels.bits_stored - 1}",
        )
    if pixels.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise FormatError("not a grey-scale image", where=where, found=pixels.photometric, wanted="MONOCHROME1 or 2")
    return pixels


def _frame(path: Path, index: int | None, top: Dataset, flat: Dataset, pixels: PixelFormat, where: str) -> Frame:
    def get(keyword: str):
        value = flat.get(keyword)
        return top.get(keyword) if value is None else value

    if any("MOSAIC" in str(word) for word in top.get("ImageType") or []):
        raise FormatError(
            "a mosaic: several slices tiled into one image",
            where=where,
            wanted="one slice an image",
            remedy="export the series as enhanced or single-slice images",
        )
    if index is not None:
        where = f"{where}, frame {index + 1}"
    position = _numbers(get("ImagePositionPatient"), 3, "ImagePositionPatient", where)
    orientation = _numbers(get("ImageOrientationPatient"), 6, "ImageOrientationPatient", where)
    spacing = _numbers(get("PixelSpacing"), 2, "PixelSpacing", where)
    columns, rows = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.array([columns @ columns, rows @ rows])
    if np.abs(lengths - 1).max() > 2 * _ORTHOGONAL_TOLERANCE or abs(columns @ rows) > _ORTHOGONAL_TOLERANCE:
        raise FormatError(
            "the image axes are not perpendicular unit vectors",
            where=where,
            found=f"lengths {np.sqrt(lengths).round(4).tolist()}, dot product {columns @ rows:.4f}",
            wanted="lengths 1, dot product 0",
        )
    if min(spacing) <= 0:
        raise FormatError("pixel spacing is not positive", where=where, found=spacing, wanted="> 0 mm")
    return Frame(
        path=path,
        index=index,
        sop_class=str(sop_class(top)),
        sop_uid=_sop_uid(top),
        position=position,
        orientation=orientation,
        spacing=spacing,
        thickness=_optional(get("SliceThickness")),
        step=_optional(get("SpacingBetweenSlices")),
        **_values(get, pixels, where),
        pixels=pixels,
        instance_number=None if top.get("InstanceNumber") is None else int(top.InstanceNumber),
        keys=tuple((word, str(value)) for word in _KEPT_KEYWORDS if (value := get(word)) not in (None, "")),
    )


def _values(get, pixels: PixelFormat, where: str) -> dict:
    """Rescale and padding of one frame."""
    slope, intercept = _optional(get("RescaleSlope")), _optional(get("RescaleIntercept"))
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        found = f"slope {slope}, intercept {intercept}"
        raise FormatError("the rescale makes no sense", where=where, found=found, wanted="finite, slope other than 0")
    padding = None
    if get("PixelPaddingValue") is not None:
        first = _as_stored(get("PixelPaddingValue"), pixels)
        limit = get("PixelPaddingRangeLimit")
        last = first if limit is None else _as_stored(limit, pixels)
        padding = (min(first, last), max(first, last))
    return {"slope": slope, "intercept": intercept, "padding": padding, "lut": bool(get("ModalityLUTSequence"))}


def _as_stored(value: object, pixels: PixelFormat) -> int:
    """A padding value with the signedness of the pixels; files often give -2000 as 63536 or the other way round."""
    if isinstance(value, bytes):
        value = int.from_bytes(value, "little")
    number = int(value)  # type: ignore[call-overload]
    modulus = 1 << pixels.bits_allocated
    number %= modulus
    return number - modulus if pixels.signed and number >= modulus // 2 else number


def _numbers(value: object, count: int, keyword: str, where: str) -> tuple:
    try:
        numbers = tuple(float(number) for number in value)  # type: ignore[attr-defined]
    except TypeError:
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise FormatError(
            f"no usable {keyword}", where=where, found=f"{len(numbers)} numbers", wanted=f"{count} finite numbers"
        )
    return numbers


def _optional(value: object) -> float | None:
    return None if value in (None, "") else float(value)  # type: ignore[arg-type]
