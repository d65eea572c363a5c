"""One DICOM image without identifiers: attributes, sequences at every depth, private data, pixels' own comments.

The rules are those of `medseq.io.deidentify_profile`; after them, every text that is left is searched for the
patient's own names and numbers. The result is read back as bytes and searched once more before it is written.
"""

import io
import re
from pathlib import Path

from pydicom import dcmread, dcmwrite
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID

from medseq.errors import FormatError
from medseq.io.atomic import clear, publish_bytes
from medseq.io.deidentify import FACES, Cleaned, Identifiers, Options, Pseudonyms, Refused
from medseq.io.deidentify_codestream import without_comments
from medseq.io.deidentify_profile import KEPT_BYTES, TECHNICAL, action
from medseq.io.dicom_classify import sop_class
from medseq.io.dicom_header import understood
from medseq.io.dicom_text import looked_at, text_place
from medseq.io.privacy import path_label

__all__ = ["clean_dataset", "deidentify_dicom", "is_dicom"]

_DICOM_ROOT = "1.2.840.10008."
_IMPLEMENTATION_UID = UID("2.25.190178204226213540937284413301472713390")
_TEXT_VRS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
_BYTE_VRS = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
_NUMBER = re.compile(r"\s*[-+]?\d*\.?\d*([eE][-+]?\d+)?\s*$")
_CODE = re.compile(r"[A-Z0-9 _]{0,16}$")
_DUMMY = {"AS": "000Y", "DA": "19000101", "DT": "19000101000000", "TM": "000000", "DS": "0", "IS": "0"}
_NUMBERS = """
    PatientID OtherPatientIDs AccessionNumber AdmissionID IssuerOfPatientID MilitaryRank PatientTelephoneNumbers
    PatientInsurancePlanCodeSequence MedicalRecordLocator InstitutionName InstitutionAddress PatientAddress StationName
    DeviceSerialNumber PatientBirthDate OtherPatientIDsSequence
""".split()
_MAY_HAVE_FACE = ("CT", "MR", "PT", "NM")
_HEAD = re.compile(
    r"head|brain|skull|\bface|facial|neuro|crani|neck|\borbit|sinus|\bears?\b|\bjaw|\bdent|pituit|\biac\b",
    re.IGNORECASE,
)
# Object classes whose pixels usually show text: ultrasound, endoscopy and photography, secondary capture.
_SCREENS = tuple(f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("6.", "3.", "7", "77.1.1", "77.1.4"))
_PROFILE = {
    "basic": ("113100", "Basic Application Confidentiality Profile"),
    "shift": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "characteristics": ("113108", "Retain Patient Characteristics Option"),
    "device": ("113109", "Retain Device Identity Option"),
    "uids": ("113110", "Retain UIDs Option"),
}


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM marker, or looks like a data set written without one."""
    from medseq.io.dicom_header import NotDicomError, read_header

    try:
        read_header(path)
    except NotDicomError:
        return False
    except FormatError:
        return True
    return True


def deidentify_dicom(path: Path, out: Path, names: Pseudonyms, options: Options) -> Cleaned:
    """Write ``out/P-…/S-…/R-…/….dcm`` (patient, study, series, image: all pseudonyms) for one image file.

    Raises:
        Refused: Not an image, or one whose pixels may show text, or compressed pixels that cannot be looked into.
        FormatError: A damaged file.
        OutputError: The folder cannot be written.
    """
    where = path_label(path)
    with understood(where, "the DICOM file makes no sense"):
        dataset = dcmread(path, force=True)
        if "PixelData" not in dataset and "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
            raise Refused("not an image: its texts cannot be cleaned", where=where, found=sop_class(dataset).name)
        if not options.burned_in:
            _refuse_text_in_pixels(dataset, where)
            _refuse_signs(path, dataset, where)
        notes = _notes(dataset)
        identity = _identity(dataset)
        sources = [str(dataset.get(word, "")) for word in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
        clean_dataset(dataset, identity, names, options)
        buffer = io.BytesIO()
        dcmwrite(buffer, dataset, enforce_file_format=True)
    study, series, image = (
        names.name(kind, uid) for kind, uid in zip(("study", "series", "image"), sources, strict=True)
    )
    target = out / names.patient(identity) / f"S-{study}" / f"R-{series}" / f"{image}.dcm"
    publish_bytes(clear(target), target, buffer.getvalue())
    return Cleaned(target, notes)


def clean_dataset(dataset: Dataset, identity: str, names: Pseudonyms, options: Options) -> None:
    """Take all identifiers out of a data set with its file meta header, in place.

    Args:
        dataset: With or without pixels.
        identity: What stands for the patient: pseudonym and shift of dates follow from it.
        names: Pseudonyms.
        options: What may stay.
    """
    marks = _marks(dataset)
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID") or "") if hasattr(dataset, "file_meta") else UID("")
    if syntax.is_valid and syntax.is_encapsulated and "PixelData" in dataset:
        frames = generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
        dataset.PixelData = encapsulate([without_comments(frame) for frame in frames])
        for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            if keyword in dataset:
                delattr(dataset, keyword)
    _clean(dataset, _Rules(identity, names, options, marks))
    dataset.PatientName = dataset.PatientID = names.patient(identity)
    for keyword in ("PatientBirthDate", "PatientSex", "ReferringPhysicianName", "AccessionNumber", "StudyID"):
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    for keyword in ("StudyDate", "StudyTime"):
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "medseq: DICOM PS3.15 basic profile"
    used = ["basic", *(["shift"] if options.dates == "shift" else []), *sorted(options.keep)]
    dataset.DeidentificationMethodCodeSequence = [_code(*_PROFILE[word]) for word in used]
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if options.dates == "shift" else "REMOVED"
    # No sender, no private information, no text in the preamble.
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class(dataset), dataset.get("SOPInstanceUID")
    if syntax:
        meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = _IMPLEMENTATION_UID
    dataset.file_meta = meta
    dataset.preamble = bytes(128)


class _Rules:
    def __init__(self, identity: str, names: Pseudonyms, options: Options, marks: Identifiers):
        self.identity, self.names, self.options, self.marks = identity, names, options, marks

    def uid(self, value: str) -> str:
        text = str(value)
        # The standard's own: classes, transfer syntaxes, coding schemes.
        known = text.startswith(_DICOM_ROOT) and UID(text).name != text
        return text if known or not text or "uids" in self.options.keep else self.names.uid(text)

    def date(self, value: object) -> str:
        return self.names.shift(str(value), self.identity) if self.options.dates == "shift" else ""


def _clean(dataset: Dataset, rules: _Rules) -> None:
    for element in list(dataset):
        what = action(element.tag, element.keyword, rules.options.keep)
        if what == "X" and not (element.VR in ("DA", "DT", "TM") and rules.options.dates == "shift"):
            del dataset[element.tag]
        elif element.VR == "SQ":
            _clean_sequence(dataset, element, what, rules)
        elif element.VR == "UI":
            element.value = (
                [rules.uid(v) for v in _values(element)] if element.VM > 1 else rules.uid(element.value or "")
            )
        elif element.VR in _BYTE_VRS:
            if element.keyword not in KEPT_BYTES:
                del dataset[element.tag]
        elif element.VR in ("DA", "DT", "TM"):
            _set_time(dataset, element, what, rules)
        elif what in "ZD":
            _replace(dataset, element, what)
        elif not _may_stay(element, what, rules):
            _replace(dataset, element, "Z")


def _clean_sequence(dataset: Dataset, element: DataElement, what: str, rules: _Rules) -> None:
    # Sequences that the table wants replaced hold people and free text; a dummy of one says nothing.
    if what in "ZD":
        del dataset[element.tag]
        return
    for item in element.value:
        _clean(item, rules)


def _set_time(dataset: Dataset, element: DataElement, what: str, rules: _Rules) -> None:
    if element.keyword.startswith("PatientBirth"):
        element.value = ""
    elif element.VR == "TM" and rules.options.dates == "shift":
        kept = [str(value) for value in _values(element) if re.fullmatch(r"[\d:.]+", str(value).strip())]
        element.value = kept if len(kept) > 1 else "".join(kept)
    elif element.VR == "TM":
        element.value = _DUMMY["TM"] if what == "D" else ""
    else:
        moved = [date for value in _values(element) if (date := rules.date(value))]
        element.value = moved if len(moved) > 1 else "".join(moved) or (_DUMMY[element.VR] if what == "D" else "")


def _may_stay(element: DataElement, what: str, rules: _Rules) -> bool:
    """Whether a text, code or number says nothing about the patient; binary numbers never do."""
    texts = [str(value) for value in _values(element)]
    if element.VR == "AS":
        _cap_age(element)
        return all(re.fullmatch(r"\d{3}[DWMY]", text) for text in texts)
    if element.VR in ("DS", "IS"):
        return all(_NUMBER.match(text) for text in texts)
    if element.VR not in _TEXT_VRS:
        return True
    if any(rules.marks.found(text) for text in texts):
        return False
    if element.VR == "CS":
        return all(_CODE.match(text) for text in texts)
    return what == "K" or element.keyword in TECHNICAL


def _cap_age(element: DataElement) -> None:
    """Ages above 89 are so rare that they identify."""
    text = str(element.value or "")
    if text.endswith("Y") and text[:3].isdigit() and int(text[:3]) > 89:
        element.value = "090Y"


def _replace(dataset: Dataset, element: DataElement, what: str) -> None:
    if what == "Z" or element.VR not in (*_TEXT_VRS, *_DUMMY):
        if element.VR in (*_TEXT_VRS, *_DUMMY):
            element.value = ""
        else:
            del dataset[element.tag]
    else:
        element.value = _DUMMY.get(element.VR, "REMOVED")


def _values(element: DataElement) -> list:
    value = element.value
    if value is None:
        return []
    return list(value) if element.VM > 1 else [value]


def _identity(dataset: Dataset) -> str:
    """What makes two files the same patient's: the id with its issuer, or the name, or at least the study."""
    number, issuer = str(dataset.get("PatientID") or "").strip(), str(dataset.get("IssuerOfPatientID") or "").strip()
    if number:
        return f"{issuer}|{number}"
    name = str(dataset.get("PatientName") or "").strip()
    if name:
        return f"{name}|{dataset.get('PatientBirthDate') or ''}"
    return str(dataset.get("StudyInstanceUID") or dataset.get("SOPInstanceUID") or "")


def _marks(dataset: Dataset) -> Identifiers:
    """Names of all people in the data set, and numbers and addresses of the patient and the institution."""
    people, numbers = [], []
    for element in dataset.iterall():
        texts = [str(value) for value in _values(element)] if element.VR in (*_TEXT_VRS, "DA") else []
        if element.VR == "PN":
            people += texts
        elif element.keyword in _NUMBERS:
            numbers += texts
    return Identifiers(people, numbers)


def _refuse_text_in_pixels(dataset: Dataset, where: str) -> None:
    """By what the header says: BurnedInAnnotation, saved screens, classes whose pixels usually show text."""
    said = str(dataset.get("BurnedInAnnotation") or "").upper()
    words = " ".join(str(word).upper() for word in dataset.get("ImageType") or [])
    screen = any(word in words for word in ("SCREEN", "SAVE", "REPORT", "DOSE_INFO", "DOSE INFO"))
    reason = ""
    if said == "YES":
        reason = "BurnedInAnnotation YES"
    elif "LABEL" in words.split() or "OVERVIEW" in words.split():
        reason = "the label or overview of a slide"
    elif screen or "ConversionType" in dataset:
        reason = "a saved screen or a scanned film"
    elif said != "NO" and str(sop_class(dataset)).startswith(_SCREENS):
        reason = f"{sop_class(dataset).name} without BurnedInAnnotation NO"
    elif "RecognizableVisualFeatures" in dataset and dataset.RecognizableVisualFeatures == "YES":
        reason = "RecognizableVisualFeatures YES"
    if reason:
        raise _may_show_names(where, reason)


def _refuse_signs(path: Path, dataset: Dataset, where: str) -> None:
    """By the pixels themselves, whatever the header says, where machines draw: screens, derived images, projections.

    Original slices of CT, MR, PET and NM carry no text; tiles of slides have their label in an image of its own.
    """
    kinds = [str(word).upper() for word in dataset.get("ImageType") or []]
    modality, derived = str(dataset.get("Modality")), kinds[:1] == ["DERIVED"]
    drawn = derived or modality not in _MAY_HAVE_FACE or str(sop_class(dataset)).startswith(_SCREENS)
    if not drawn or modality == "SM" or "PixelData" not in dataset:
        return
    for frame in looked_at(path, dataset):
        place = text_place(frame)
        if place is not None:
            raise _may_show_names(where, f"what looks like writing at the {place} of the image")


def _may_show_names(where: str, reason: str) -> Refused:
    return Refused(
        "the pixels may show names",
        where=where,
        found=reason,
        remedy="look at the image; pass --burned-in keep if it shows none",
    )


def _notes(dataset: Dataset) -> tuple[str, ...]:
    if str(dataset.get("Modality")) not in _MAY_HAVE_FACE:
        return ()
    words = ("BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName")
    said = [str(dataset.get(word) or "") for word in words]
    # A body part that is not the head settles it; silence does not.
    return () if said[0] and not any(_HEAD.search(text) for text in said) else (FACES,)


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
