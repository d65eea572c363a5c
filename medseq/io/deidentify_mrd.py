"""The XML header of raw MR data without identifiers: only what describes the measurement's physics stays.

Subject, study and measurement sections name people, dates and institutions; user parameters may hold any text. Kept are
numbers, the scanner's make and model, coil names, and the UIDs and dates as pseudonyms.

Reference:
    ISMRMRD header schema, https://ismrmrd.readthedocs.io (subjectInformation, studyInformation, …).
"""

import re
import xml.etree.ElementTree as ET

from medseq.errors import FormatError
from medseq.io.deidentify import Identifiers, Options, Pseudonyms

__all__ = ["clean_mrd_header", "mrd_patient"]

_MAX_BYTES = 16 << 20
_DROPPED = {
    *("subjectInformation", "userParameterString", "userParameterBase64", "waveformInformation"),
    *("institutionName", "stationName", "deviceID", "deviceSerialNumber", "measurementDependency"),
    *("referringPhysicianName", "accessionNumber", "studyID", "studyDescription", "bodyPartExamined"),
    *("protocolName", "seriesDescription", "measurementID", "sequenceName", "referencedImageSequence"),
}
_DATES = {"studyDate", "seriesDate"}
_UIDS = {"studyInstanceUID", "seriesInstanceUIDRoot", "frameOfReferenceUID", "referencedSOPInstanceUID"}
# Text elements whose values come from a technical vocabulary.
_TEXTS = {
    *("systemVendor", "systemModel", "coilName", "trajectory", "calibrationMode", "interleavingDimension"),
    *("patientPosition", "sequence_type", "name", "identifier", "diffusionDimension", "diffusionScheme"),
}
_NUMBER = re.compile(r"\s*([-+]?\d*\.?\d+([eE][-+]?\d+)?|true|false|\d{2}:\d{2}:\d{2}(\.\d+)?)\s*$")


def clean_mrd_header(text: bytes | str, names: Pseudonyms, options: Options, where: str) -> bytes:
    """The header with the subject's section reduced to a pseudonym and everything else to technical facts.

    Raises:
        FormatError: Not XML, or XML with a document type (entities).
    """
    root = _parse(text, where)
    patient, marks = _who(root)
    _clean(root, patient, marks, names, options)
    namespace = root.tag.rpartition("}")[0]
    prefix = f"{namespace}}}" if namespace else ""
    if namespace:
        ET.register_namespace("", namespace[1:])
    subject = ET.Element(f"{prefix}subjectInformation")
    for name in ("patientName", "patientID"):
        ET.SubElement(subject, f"{prefix}{name}").text = names.patient(patient)
    root.insert(0, subject)
    return ET.tostring(root, encoding="utf-8")


def mrd_patient(text: bytes | str, where: str) -> tuple[str, Identifiers]:
    """What stands for the patient, and the words that identify them."""
    return _who(_parse(text, where))


def _parse(text: bytes | str, where: str) -> ET.Element:
    raw = text.encode() if isinstance(text, str) else bytes(text)
    if len(raw) > _MAX_BYTES or b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
        raise FormatError("the ISMRMRD header is not read", where=where, wanted="plain XML without a document type")
    try:
        return ET.fromstring(raw.rstrip(b"\0"))
    except (ET.ParseError, ValueError, LookupError):
        raise FormatError("the ISMRMRD header is not XML", where=where) from None


def _who(root: ET.Element) -> tuple[str, Identifiers]:
    said = {_local(element): (element.text or "").strip() for element in root.iter()}
    people = [said.get(name, "") for name in ("patientName", "referringPhysicianName")]
    numbers = [said.get(name, "") for name in ("patientID", "accessionNumber", "patientBirthdate", "institutionName")]
    number = said.get("patientID") or said.get("patientName") or said.get("studyInstanceUID") or ""
    # The same form as for DICOM, so that raw data and images of one patient agree.
    return f"|{number}", Identifiers(people, numbers)


def _clean(element: ET.Element, patient: str, marks: Identifiers, names: Pseudonyms, options: Options) -> None:
    for attribute in [name for name in element.attrib if not name.endswith("schemaLocation")]:
        del element.attrib[attribute]
    for child in list(element):
        if _local(child) in _DROPPED:
            element.remove(child)
        else:
            _clean(child, patient, marks, names, options)
    element.tail = None
    name, text = _local(element), (element.text or "").strip()
    if len(element):
        element.text = None
    elif name in _DATES:
        element.text = names.shift(text, patient) if options.dates == "shift" else None
    elif name in _UIDS:
        element.text = text if "uids" in options.keep else names.uid(text)
    elif marks.found(text) or not (name in _TEXTS or _NUMBER.match(text)):
        element.text = None


def _local(element: ET.Element) -> str:
    return str(element.tag).rpartition("}")[2]
