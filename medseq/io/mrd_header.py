"""The XML header of ISMRMRD and fastMRI files: what medseq needs of it. What leads to the patient is never printed."""

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field

from medseq.errors import FormatError

__all__ = ["STUDY_FIELDS", "Encoding", "Limit", "MRDHeader", "Space", "parse_mrd_header"]

_MAX_BYTES = 16 << 20
# What a DICOM writer can use, by element name.
STUDY_FIELDS = (
    *("patientName", "patientID", "patientBirthdate", "patientGender", "patientWeight_kg", "patientPosition"),
    *("studyDate", "studyTime", "studyID", "accessionNumber", "studyDescription", "studyInstanceUID"),
    *("frameOfReferenceUID", "protocolName", "seriesDescription", "initialSeriesNumber", "bodyPartExamined"),
    *("systemVendor", "systemModel", "systemFieldStrength_T", "H1resonanceFrequency_Hz"),
    *("TR", "TE", "TI", "flipAngle_deg"),
)


@dataclass(frozen=True)
class Limit:
    """Range of an encoding counter and its value at the zero frequency."""

    minimum: int
    maximum: int
    center: int


@dataclass(frozen=True)
class Space:
    """A matrix ``(x, y, z)`` and its field of view in mm (0 where the header does not say)."""

    matrix: tuple[int, int, int]
    fov_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Encoding:
    """One encoding: x is the readout, y and z are phase encoded.

    Attributes:
        encoded: What was measured, readout oversampling included.
        recon: What the scanner would show.
        limits: By the name of the counter.
        trajectory: ``cartesian``, ``epi`` …
        acceleration: Along y and z.
        calibration: ``embedded``, ``interleaved``, ``separate``, ``external``, ``other`` or an empty string.
    """

    encoded: Space
    recon: Space
    limits: dict[str, Limit]
    trajectory: str
    acceleration: tuple[float, float] = (1.0, 1.0)
    calibration: str = ""


@dataclass(frozen=True)
class MRDHeader:
    """Encodings, the relative noise bandwidth of the receiver, and the elements of `STUDY_FIELDS` that have a text."""

    encodings: tuple[Encoding, ...]
    noise_bandwidth: float = 1.0
    # Not in the repr: it names the patient.
    study: dict[str, str] = field(default_factory=dict, repr=False, compare=False)


def parse_mrd_header(text: str | bytes, where: str) -> MRDHeader:
    """Read the header; elements may be in any namespace.

    Args:
        text: The XML.
        where: What messages call the file.

    Raises:
        FormatError: Not such a header, one that declares entities, or numbers that make no sense.
    """
    raw = text.encode() if isinstance(text, str) else bytes(text)
    # Entities are the way to make a small file expand to gigabytes; the format has none.
    if len(raw) > _MAX_BYTES or b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
        raise FormatError("the ISMRMRD header is not read", where=where, wanted="plain XML without a document type")
    try:
        root = ET.fromstring(raw.rstrip(b"\0"))
    except (ET.ParseError, ValueError, LookupError):
        raise FormatError("the ISMRMRD header is not XML", where=where, remedy="convert the raw data again") from None
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
    try:
        encodings = tuple(_encoding(element) for element in root.iter("encoding"))
        bandwidth = float(root.findtext(".//relativeReceiverNoiseBandwidth") or 1.0)
    except (ValueError, AttributeError):
        encodings, bandwidth = (), 1.0
    if not encodings:
        raise FormatError(
            "the ISMRMRD header has no usable encoding",
            where=where,
            wanted="encodedSpace and reconSpace with matrixSize x, y, z",
            remedy="convert the raw data again",
        )
    study = {name: (root.findtext(f".//{name}") or "").strip() for name in STUDY_FIELDS}
    return MRDHeader(encodings, bandwidth if 0 < bandwidth <= 1 else 1.0, {k: v for k, v in study.items() if v})


def _encoding(element: ET.Element) -> Encoding:
    limits = {}
    found = element.find("encodingLimits")
    for limit in () if found is None else tuple(found):
        values = [limit.findtext(name) for name in ("minimum", "maximum", "center")]
        if all(value is not None for value in values):
            limits[str(limit.tag)] = Limit(*(int(str(value)) for value in values))
    parallel = element.find("parallelImaging")
    factors = (1.0, 1.0)
    if parallel is not None:
        names = ("accelerationFactor/kspace_encoding_step_1", "accelerationFactor/kspace_encoding_step_2")
        factors = (float(parallel.findtext(names[0]) or 1), float(parallel.findtext(names[1]) or 1))
    return Encoding(
        _space(element.find("encodedSpace")),
        _space(element.find("reconSpace")),
        limits,
        (element.findtext("trajectory") or "cartesian").strip().lower(),
        factors,
        "" if parallel is None else (parallel.findtext("calibrationMode") or "").strip().lower(),
    )


def _space(element: ET.Element | None) -> Space:
    if element is None:
        raise ValueError("no space")
    matrix = tuple(int(str(element.findtext(f"matrixSize/{axis}"))) for axis in "xyz")
    fov = tuple(float(element.findtext(f"fieldOfView_mm/{axis}") or 0) for axis in "xyz")
    if not all(0 < n < 1 << 16 for n in matrix) or not all(math.isfinite(mm) and mm >= 0 for mm in fov):
        raise ValueError("sizes")
    return Space(matrix, fov)  # type: ignore[arg-type]
