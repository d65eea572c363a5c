"""The header of a derived image: what is kept from the source, what is said anew, what is dropped.

Kept: patient, study, frame of reference, geometry, acquisition. Anew: identity, dates, description, provenance,
'research use only'. Dropped: private attributes and everything that described the source's own pixels. The UIDs are
functions of the source, the model and the parameters, so that a second run writes the same bytes.
"""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from medseq.errors import OutputError
from medseq.io.dicom_classic import to_classic
from medseq.io.dicom_frames import is_enhanced
from medseq.io.dicom_types import DicomSource, Frame

__all__ = [
    "IMAGE_COMMENTS",
    "Provenance",
    "code_item",
    "derived_header",
    "derived_uid",
    "equipment_item",
    "series_uid",
    "source_item",
]

IMAGE_COMMENTS = "Research use only, not for diagnosis"
ROLES = ("result", "uncertainty", "difference", "scores", "attention", "overlay", "kspace")

# Random, fixed for ever: the same inputs give the same UIDs in every version that keeps them.
_NAMESPACE = uuid.UUID("8f1d3c64-0d0c-4d5e-9a57-6b1b5f0f7c2e")
_IMPLEMENTATION_UID = UID("2.25.190178204226213540937284413301472713390")
_LOSSY_SYNTAXES = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
_CODES = {"result": ("113087", "Smoothing"), "difference": ("113062", "Pixel by pixel subtraction")}
_MAX_IS = 2**31 - 1

_STALE = """
    SmallestImagePixelValue LargestImagePixelValue SmallestPixelValueInSeries LargestPixelValueInSeries
    SmallestImagePixelValueInPlane LargestImagePixelValueInPlane PixelData FloatPixelData DoubleFloatPixelData
    ExtendedOffsetTable ExtendedOffsetTableLengths PixelDataProviderURL NumberOfFrames PlanarConfiguration
    IconImageSequence DigitalSignaturesSequence MACParametersSequence EncryptedAttributesSequence
    DataSetTrailingPadding InstanceCreatorUID SourceImageSequence ImageComments
""".split()
_DISPLAY = "WindowCenter WindowWidth WindowCenterWidthExplanation VOILUTFunction VOILUTSequence".split()
_PADDING = "PixelPaddingValue PixelPaddingRangeLimit".split()


@dataclass(frozen=True)
class Provenance:
    """Who made a derived series, from what, when; see `DicomSeriesWriter`."""

    bundle_name: str
    bundle_hash: str
    params_hash: str
    version: str
    role: str
    created_utc: str
    description: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise OutputError("no such role", where="role", found=self.role, wanted=f"one of {', '.join(ROLES)}")
        self.created()

    def created(self) -> datetime:
        """`created_utc` as a time with a zone."""
        try:
            moment = datetime.fromisoformat(self.created_utc)
        except ValueError:
            raise OutputError(
                "not a time", where="created_utc", found=self.created_utc, wanted="ISO 8601, e.g. 2026-11-22T10:11:12Z"
            ) from None
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def derived_uid(source_uid: str, made: Provenance, frame: int = 0) -> UID:
    """``2.25.<uuid5>`` of source UID, bundle hash, parameter hash, version, role and frame."""
    parts = (source_uid, made.bundle_hash, made.params_hash, made.version, made.role, str(frame))
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(parts)).int}")


def series_uid(source: DicomSource, made: Provenance) -> UID:
    """UID of the derived series: its own for every stack of a source series that holds several."""
    planes = "".join(f"{frame.sop_uid}#{frame.index or 0};" for frame in source.frames)
    return derived_uid(f"{source.series_uid}/{uuid.uuid5(_NAMESPACE, planes)}", made)


def derived_header(dataset: Dataset, frame: Frame, series: UID, number: int, made: Provenance) -> Dataset:
    """Header of the derived image of one plane; pixel format and rescale are still the source's.

    Args:
        dataset: Whole header of the source object; a single-frame one is changed in place.
        frame: The plane.
        series: UID of the derived series.
        number: Place in the stack, from 1.
        made: Provenance.

    Reference:
        DICOM PS3.3 C.7.6.1.1.3 (derivation), C.7.5.2 (contributing equipment).
    """
    lossy = "LossyImageCompression" not in dataset and UID(frame.pixels.transfer_syntax) in _LOSSY_SYNTAXES
    if not dataset.original_encoding[1]:
        _swap_words(dataset)
    out = to_classic(dataset, frame.index or 0) if is_enhanced(dataset) else dataset
    _drop(out, made)
    if lossy:
        out.LossyImageCompression = "01"
    _identify(out, frame, series, number, made)
    _explain(out, frame, made)
    out.file_meta = FileMetaDataset()
    out.file_meta.MediaStorageSOPClassUID = out.SOPClassUID
    out.file_meta.MediaStorageSOPInstanceUID = out.SOPInstanceUID
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out.file_meta.ImplementationClassUID = _IMPLEMENTATION_UID
    out.file_meta.ImplementationVersionName = f"MEDSEQ_{made.version}"[:16]
    out.preamble = bytes(128)
    return out


def _drop(out: Dataset, made: Provenance) -> None:
    """Remove what is private or described the source's own pixels."""
    out.remove_private_tags()
    # A map of another quantity has another range, and no padding.
    for keyword in _STALE if made.role == "result" else (*_STALE, *_DISPLAY, *_PADDING):
        if keyword in out:
            del out[keyword]
    groups = {element.tag.group for element in out}
    for group in groups:
        # Overlays in unused pixel bits went with the pixels; curves are retired.
        overlay, curve = group & 0xFF01 == 0x6000, group & 0xFF01 == 0x5000
        if curve or (overlay and (group, 0x3000) not in out):
            for tag in [element.tag for element in out if element.tag.group == group]:
                del out[tag]


def _identify(out: Dataset, frame: Frame, series: UID, number: int, made: Provenance) -> None:
    """New identity and dates; the patient and the study stay."""
    out.SOPInstanceUID = derived_uid(frame.sop_uid, made, frame.index or 0)
    out.SeriesInstanceUID = series
    role = ROLES.index(made.role) + 1
    source_number = int(out.get("SeriesNumber") or 0)
    new_number = source_number * 100 + role
    out.SeriesNumber = new_number if abs(new_number) <= _MAX_IS else source_number % 10_000_000 * 100 + role
    if frame.index is not None or frame.instance_number is None:
        out.InstanceNumber = number
    moment = made.created()
    offset = _utc_offset(str(out.get("TimezoneOffsetFromUTC") or ""))
    if offset is not None:
        # The attribute holds for every time in the object, so the new ones must be in the same zone.
        moment = moment.astimezone(offset)
    for kind in ("InstanceCreation", "Series", "Content"):
        setattr(out, f"{kind}Date", moment.strftime("%Y%m%d"))
        setattr(out, f"{kind}Time", moment.strftime("%H%M%S"))


def _explain(out: Dataset, frame: Frame, made: Provenance) -> None:
    """Say that and how the image was derived, from what, by what; and that it is not for diagnosis."""
    # Value 2 (primary or secondary) and the modality's own value 3 stay: a CT image must have them.
    out.ImageType = ["DERIVED", *(list(out.get("ImageType") or [])[1:] or ["SECONDARY"])]
    original = str(out.get("SeriesDescription") or "")
    out.SeriesDescription = f"RUO medseq {made.bundle_name} {original}".strip()[:64].strip()
    out.ImageComments = IMAGE_COMMENTS
    text = made.description or f"{made.role} of medseq {made.version}, model {made.bundle_name}"
    earlier = str(out.get("DerivationDescription") or "")
    out.DerivationDescription = (f"{text}; source: {earlier}" if earlier else text)[:1024]
    code, meaning = _CODES.get(made.role, _CODES["result"])
    out.DerivationCodeSequence = [*(out.get("DerivationCodeSequence") or []), code_item(code, meaning)]
    if UID(frame.sop_uid).is_valid:
        # Some de-identifiers leave UIDs that are none; a reference to one would make this object invalid too.
        out.SourceImageSequence = [source_item(frame)]
    out.ContributingEquipmentSequence = [*(out.get("ContributingEquipmentSequence") or []), equipment_item(made)]
    if str(out.get("BurnedInAnnotation") or "") != "YES":
        out.BurnedInAnnotation = "NO"


def source_item(frame: Frame) -> Dataset:
    """A reference to the image that a plane was derived from."""
    item = Dataset()
    item.ReferencedSOPClassUID = UID(frame.sop_class)
    item.ReferencedSOPInstanceUID = UID(frame.sop_uid)
    if frame.index is not None:
        item.ReferencedFrameNumber = frame.index + 1
    item.PurposeOfReferenceCodeSequence = [code_item("121322", "Source image for image processing operation")]
    return item


def equipment_item(made: Provenance) -> Dataset:
    """Model and version, as an item of ContributingEquipmentSequence."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item("109102", "Processing Equipment")]
    item.Manufacturer = "medseq"
    item.ManufacturerModelName = made.bundle_name[:64]
    item.SoftwareVersions = f"medseq {made.version}"[:64]
    item.DeviceUID = UID(f"2.25.{uuid.uuid5(_NAMESPACE, made.bundle_hash).int}")
    item.ContributionDateTime = made.created().strftime("%Y%m%d%H%M%S+0000")
    item.ContributionDescription = IMAGE_COMMENTS
    return item


def code_item(value: str, meaning: str) -> Dataset:
    """A coded concept of DICOM's own vocabulary."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _utc_offset(text: str) -> timezone | None:
    """``+0530`` as a zone; None if it is not one."""
    if len(text) != 5 or text[0] not in "+-" or not text[1:].isdigit():
        return None
    minutes = int(text[1:3]) * 60 + int(text[3:])
    return timezone(timedelta(minutes=minutes if text[0] == "+" else -minutes)) if minutes < 24 * 60 else None


def _swap_words(dataset: Dataset) -> None:
    """Bring word-valued elements of a big-endian object to little endian; pydicom leaves their bytes alone."""
    for element in dataset.iterall():
        size = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}.get(element.VR)
        if size and isinstance(element.value, bytes) and len(element.value) % size == 0:
            element.value = np.frombuffer(element.value, dtype=f"u{size}").byteswap().tobytes()
