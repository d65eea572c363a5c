"""Results that are no images of a scanner: pictures and scores, by highdicom; maps: `medseq.io.dicom_map`.

    Secondary Capture      8-bit RGB, for a heat map over a slide or any picture
    Structured Report      TID 1500, for scores

UIDs and dates follow `medseq.io.dicom_derive`: the same inputs give the same bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from medseq.errors import OutputError, ShapeError
from medseq.io.atomic import clear, publish_bytes
from medseq.io.dicom_derive import ROLES, Provenance, derived_uid, equipment_item
from medseq.io.dicom_header import understood
from medseq.io.volume import Units

__all__ = ["completed", "object_identity", "unit_code", "write_picture", "write_scores"]

_UNITS = {
    "HU": Code("[hnsf'U]", "UCUM", "Hounsfield unit"),
    "SUVbw": Code("g/ml{SUVbw}", "UCUM", "Standardized Uptake Value body weight"),
    "Bq/ml": Code("Bq/ml", "UCUM", "Becquerels/milliliter"),
    "1": Code("1", "UCUM", "no units"),
}
_WHERE = "the result as a DICOM object"
_REMEDY = "write NIfTI or CSV instead"


def write_picture(
    target: Path, picture: np.ndarray, made: Provenance, *, reference: Path | None = None, source_id: str = ""
) -> Path:
    """Write an 8-bit RGB picture as Secondary Capture: a heat map over a slide, an overlay.

    Args:
        target: Final path.
        picture: ``(row, col, 3)`` uint8.
        made: Provenance.
        reference: A DICOM file of the patient and study that it belongs to; None gives empty ones.
        source_id: What the UIDs follow from, where there is no reference: a pseudonym of the slide.

    Raises:
        ShapeError: Not such a picture.
        OutputError: Neither a reference nor a source.

    Reference:
        DICOM PS3.3 A.8 (Secondary Capture).
    """
    import highdicom as hd

    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ShapeError("not an RGB picture", found=(picture.shape, picture.dtype), wanted="(row, col, 3) uint8")
    with understood(_WHERE, "cannot be written", remedy=_REMEDY):
        header = dcmread(reference, stop_before_pixels=True, force=True) if reference else None
        series = str(header.get("SeriesInstanceUID")) if header is not None else source_id
        if not series:
            raise OutputError("a picture needs something that it belongs to", wanted="a reference or a source")
        study = str(header.StudyInstanceUID) if header is not None else derived_uid(f"{source_id}/study", made)

        def said(keyword: str) -> Any:
            value = header.get(keyword) if header is not None else None
            return value if value not in ("", None) else None

        out = hd.sc.SCImage(
            pixel_array=picture,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            study_instance_uid=study,
            manufacturer="medseq",
            # A picture over a slide has no side of the body and no axes of the patient.
            patient_orientation=("L", "P"),
            patient_id=said("PatientID"),
            patient_name=said("PatientName"),
            patient_birth_date=said("PatientBirthDate"),
            patient_sex=said("PatientSex"),
            accession_number=said("AccessionNumber"),
            study_id=said("StudyID"),
            study_date=said("StudyDate"),
            study_time=said("StudyTime"),
            referring_physician_name=said("ReferringPhysicianName"),
            **object_identity(series, made, "picture", header),
        )
        out.PatientOrientation = None
        out.BurnedInAnnotation = "NO"
        return _finish(out, target, made, header, f"RUO medseq {made.bundle_name} {made.role}")


def write_scores(target: Path, scores: Mapping[str, float], references: Sequence[Path], made: Provenance) -> Path:
    """Write scores as a structured report of template TID 1500.

    Args:
        target: Final path.
        scores: Name -> value without units (probabilities, metrics, risks); finite.
        references: DICOM files of the images that were scored, of one study.
        made: Provenance.

    Raises:
        OutputError: No score, a value that is not finite, or no image to refer to.

    Reference:
        DICOM PS3.16 TID 1500 (measurement report), TID 1501, TID 4019 (algorithm identification).
    """
    import highdicom as hd

    if not scores or not all(np.isfinite(value) for value in scores.values()) or not references:
        raise OutputError("there is nothing that a report could say", wanted="finite scores and their images")
    with understood(_WHERE, "cannot be written", remedy=_REMEDY):
        images = [dcmread(path, stop_before_pixels=True, force=True) for path in references]
        first = images[0]
        device = UID(equipment_item(made).DeviceUID)
        algorithm = hd.sr.AlgorithmIdentification(name=made.bundle_name[:64], version=f"medseq {made.version}"[:64])
        observer = hd.sr.ObserverContext(
            observer_type=Code("121007", "DCM", "Device"),
            observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
                uid=device, name=f"medseq {made.bundle_name}"[:64], manufacturer_name="medseq"
            ),
        )
        group = hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(
                uid=derived_uid(f"{first.SeriesInstanceUID}/tracking", made), identifier=made.bundle_name[:64]
            ),
            measurements=[
                hd.sr.Measurement(name=_concept(name), value=float(value), unit=_UNITS["1"], algorithm_id=algorithm)
                for name, value in scores.items()
            ],
            source_images=[
                hd.sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID) for image in images
            ],
        )
        report = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=observer),
            procedure_reported=Code("363679005", "SCT", "Imaging procedure"),
            imaging_measurements=[group],
            title=Code("126000", "DCM", "Imaging Measurement Report"),
        )
        out = hd.sr.ComprehensiveSR(
            evidence=images,
            content=report[0],
            manufacturer="medseq",
            is_complete=True,
            is_final=False,
            **object_identity(str(first.SeriesInstanceUID), made, "scores", first),
        )
        return _finish(out, target, made, first, f"RUO medseq {made.bundle_name} scores")


def unit_code(units: Units) -> Code:
    """UCUM code of units."""
    return _UNITS[units]


def object_identity(series: str, made: Provenance, kind: str, header: Dataset | None) -> dict[str, Any]:
    """UIDs and numbers of an object, in highdicom's words.

    Args:
        series: UID of the source series, or what stands for it.
        made: Provenance.
        kind: Tells objects of one role apart: ``map``, ``picture``, ``scores``.
        header: Of the source, for its series number.
    """
    number = int(header.get("SeriesNumber") or 0) if header is not None else 0
    return {
        "series_instance_uid": derived_uid(f"{series}/{kind}", made),
        "series_number": abs(number) % 10_000_000 * 100 + 50 + ROLES.index(made.role),
        "sop_instance_uid": derived_uid(f"{series}/{kind}", made, 1),
        "instance_number": 1,
    }


def _concept(name: str) -> Code:
    """A score's name as a coded concept of a scheme of our own: there is no standard one for a model's outputs."""
    value = re.sub(r"[^A-Za-z0-9_]", "_", name)[:16] or "score"
    return Code(value, "99MEDSEQ", name[:64] or "score")


def _finish(out: Dataset, target: Path, made: Provenance, header: Dataset | None, description: str) -> Path:
    buffer = io.BytesIO()
    whole = completed(out, made, header, description)
    dcmwrite(buffer, whole, implicit_vr=False, little_endian=True, enforce_file_format=True)
    publish_bytes(clear(target), target, buffer.getvalue())
    return target


def completed(out: Dataset, made: Provenance, header: Dataset | None, description: str) -> Dataset:
    """Dates of the run instead of now, who made it, the source's character set.

    Args:
        out: An object as highdicom made it; changed in place.
        made: Provenance.
        header: Of the source, or None.
        description: SeriesDescription.
    """
    moment = made.created()
    for kind in ("InstanceCreation", "Series", "Content"):
        setattr(out, f"{kind}Date", moment.strftime("%Y%m%d"))
        setattr(out, f"{kind}Time", moment.strftime("%H%M%S"))
    for element in list(out):
        # highdicom notes the moment in other places, too.
        if element.keyword in ("DateOfSecondaryCapture", "TimeOfSecondaryCapture"):
            element.value = moment.strftime("%Y%m%d" if element.VR == "DA" else "%H%M%S")
    out.SeriesDescription = description[:64].strip()
    if "DimensionOrganizationSequence" in out:
        organization = derived_uid(f"{out.SOPInstanceUID}/dimensions", made)
        for item in (*out.DimensionOrganizationSequence, *out.DimensionIndexSequence):
            item.DimensionOrganizationUID = organization
    equipment = equipment_item(made)
    library = list(out.get("ContributingEquipmentSequence") or [])
    for item in library:
        item.ContributionDateTime = equipment.ContributionDateTime
    out.ContributingEquipmentSequence = [*library, equipment]
    if "Laterality" not in out and "ImageLaterality" not in out and not out.get("BodyPartExamined"):
        # Without a body part nobody can tell whether it is a paired one: unknown, not absent.
        out.Laterality = None
    if header is not None and "SpecificCharacterSet" in header:
        out.SpecificCharacterSet = header.SpecificCharacterSet
    if header is not None and "TimezoneOffsetFromUTC" in out:
        del out.TimezoneOffsetFromUTC
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return out
