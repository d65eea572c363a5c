"""A reader's decision as DICOM: a structured report (TID 1500) and a key object selection beside the reviewed series.

Both point to the images that were reviewed, name the reader and the software, and say 'research use only'. UIDs follow
from the event that is exported: exporting twice gives the same objects, and an archive keeps one.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseq import __version__
from medseq.errors import FormatError, InputError
from medseq.io.atomic import clear, discard, fsync, publish, written
from medseq.io.dicom_header import quiet
from medseq.io.privacy import path_label

__all__ = ["Region", "ReviewNote", "write_key_object", "write_structured_report"]

# A coding scheme of our own: no standard one has words for these.
_SCHEME = "99MEDSEQ"
_DECISIONS = {
    "accept": ("accept", "Accepted by reviewer"),
    "reject": ("reject", "Rejected by reviewer"),
    "second-look": ("second-look", "Needs a second look"),
}
# CID 7010: titles of key object documents.
_TITLES = {
    "accept": ("113009", "For Research"),
    "reject": ("113001", "Rejected for Quality Reasons"),
    "second-look": ("113008", "For Peer Review"),
}
_NAMESPACE = uuid.UUID("6a3f7d0e-7f0b-4a8f-9f53-0d1f1f6f9b11")


@dataclass(frozen=True)
class Region:
    """A place that a reader marked.

    Attributes:
        points: ``(n, 3)`` RAS mm: one point, or the corners of an area in their order.
        label: What stands beside it.
    """

    points: np.ndarray
    label: str = ""


@dataclass(frozen=True)
class ReviewNote:
    """What a report says.

    Attributes:
        reviewer: Name of the sign-in.
        decision: ``accept``, ``reject`` or ``second-look``.
        ts_utc: When, ISO 8601.
        event: Number and code of the event in the review store, ``<seq>:<code>``.
        score: 1 to 5, or None.
        reason: Words of the reason, or empty.
        comment: Free text, or empty.
        model: Name and version of the model.
        regions: Places that the reader marked.
    """

    reviewer: str
    decision: Literal["accept", "reject", "second-look"]
    ts_utc: str
    event: str
    score: int | None = None
    reason: str = ""
    comment: str = ""
    model: str = ""
    regions: tuple[Region, ...] = ()


def write_structured_report(path: Path, images: Sequence[Path], note: ReviewNote) -> Path:
    """A Comprehensive (3D) SR with decision, reason, score, comment and marks; refers to every reviewed image.

    Args:
        path: The file; appears when it is complete.
        images: Files of the reviewed series.
        note: What to say.

    Raises:
        InputError: No images, or of several studies.
        FormatError: An image that cannot be read.

    Reference:
        DICOM PS3.16, TID 1500 and TID 1501.
    """
    from highdicom.sr import (
        CodedConcept,
        Comprehensive3DSR,
        ComprehensiveSR,
        Measurement,
        MeasurementReport,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
        TextContentItem,
        TrackingIdentifier,
    )
    from highdicom.sr import RelationshipTypeValues as Relation
    from pydicom.sr.codedict import codes

    datasets = _read(images)
    value, meaning = _DECISIONS[note.decision]
    evaluations = [
        QualitativeEvaluation(
            CodedConcept("decision", _SCHEME, "Review decision"), CodedConcept(value, _SCHEME, meaning)
        )
    ]
    measurements = []
    if note.score is not None:
        score = CodedConcept("score", _SCHEME, "Image quality score, 1 poor to 5 excellent")
        measurements.append(Measurement(score, float(note.score), codes.UCUM.NoUnits))
    group = MeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(uid=_uid(note.event, "tracking"), identifier=f"review event {note.event.partition(':')[0]}"),
        measurements=measurements or None,
        qualitative_evaluations=evaluations,
        source_images=[SourceImageForMeasurementGroup(ds.SOPClassUID, ds.SOPInstanceUID) for ds in datasets],
    )
    comments = [text for text in (note.reason, note.comment, "Research use only. Not for diagnosis.") if text]
    for text in comments:
        item = TextContentItem(codes.DCM.Comment, text[:1024], Relation.CONTAINS)
        group[0].ContentSequence.append(item)
    regions = _regions(note, datasets[0])
    report = MeasurementReport(_observer(note), _procedure(), imaging_measurements=[group, *regions])
    document = _quietly(
        # Places in the patient need the newer class, which fewer archives show.
        Comprehensive3DSR if regions else ComprehensiveSR,
        evidence=datasets,
        content=report,
        series_instance_uid=_uid(note.event, "sr series"),
        series_number=9001,
        sop_instance_uid=_uid(note.event, "sr"),
        instance_number=1,
        manufacturer="medseq",
        is_complete=True,
        is_final=True,
    )
    return _write(path, document, datasets[0], note)


def write_key_object(path: Path, images: Sequence[Path], note: ReviewNote) -> Path:
    """A key object selection of the reviewed images, titled by the decision.

    Args:
        path: The file; appears when it is complete.
        images: Files of the reviewed series.
        note: What to say.

    Raises:
        InputError: No images, or of several studies.
        FormatError: An image that cannot be read.

    Reference:
        DICOM PS3.16, TID 2010 and CID 7010.
    """
    import highdicom
    from highdicom.sr import CodedConcept

    datasets = _read(images)
    code, meaning = _TITLES[note.decision]
    text = ". ".join(word.rstrip(".") for word in (note.reason, note.comment, "Research use only") if word)
    content = highdicom.ko.KeyObjectSelection(
        CodedConcept(code, "DCM", meaning), datasets, description=text[:1024], **_observers(note)
    )
    document = _quietly(
        highdicom.ko.KeyObjectSelectionDocument,
        evidence=datasets,
        content=content,
        series_instance_uid=_uid(note.event, "ko series"),
        series_number=9002,
        sop_instance_uid=_uid(note.event, "ko"),
        instance_number=1,
        manufacturer="medseq",
    )
    return _write(path, document, datasets[0], note)


def _regions(note: ReviewNote, image: Any) -> list[Any]:
    """Marked places as regions in the patient's coordinates (TID 1410)."""
    from highdicom.sr import (
        GraphicTypeValues3D,
        ImageRegion3D,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        TrackingIdentifier,
    )

    frame = str(image.get("FrameOfReferenceUID") or "")
    found = []
    for number, region in enumerate(note.regions if frame else (), start=1):
        # DICOM counts to the left and to the back.
        points = np.asarray(region.points, dtype=np.float64) * (-1.0, -1.0, 1.0)
        is_area = len(points) > 1
        # A polygon ends where it began.
        outline = np.vstack([points, points[:1]]) if is_area else points
        kind = GraphicTypeValues3D.POLYGON if is_area else GraphicTypeValues3D.POINT
        name = region.label or f"mark {number}"
        tracking = TrackingIdentifier(uid=_uid(note.event, f"region {number}"), identifier=name)
        place = ImageRegion3D(kind, outline, frame)
        found.append(PlanarROIMeasurementsAndQualitativeEvaluations(tracking, referenced_region=place))
    return found


def _read(images: Sequence[Path]) -> list[Any]:
    import pydicom
    from pydicom.errors import InvalidDicomError

    if not images:
        raise InputError("a report needs the images it is about", found="none")
    datasets = []
    for path in sorted(images):
        try:
            datasets.append(pydicom.dcmread(path, stop_before_pixels=True))
        except (OSError, InvalidDicomError, EOFError) as error:
            raise FormatError("the image cannot be read", where=path_label(path), found=type(error).__name__) from None
    if len({str(dataset.StudyInstanceUID) for dataset in datasets}) != 1:
        raise InputError("the images are of several studies", wanted="one")
    return datasets


def _observers(note: ReviewNote) -> dict[str, Any]:
    from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext, PersonObserverIdentifyingAttributes
    from pydicom.sr.codedict import codes

    # A person's name has components divided by carets; a name of a sign-in has one.
    name = note.reviewer.replace("^", " ").replace("=", " ").replace("\\", " ")[:64]
    person = ObserverContext(codes.DCM.Person, PersonObserverIdentifyingAttributes(name=f"{name}^"))
    device = ObserverContext(
        codes.DCM.Device,
        DeviceObserverIdentifyingAttributes(
            uid=_uid(f"medseq {__version__}", "device"),
            manufacturer_name="medseq",
            model_name=note.model[:64] or "medseq",
        ),
    )
    return {"observer_person_context": person, "observer_device_context": device}


def _observer(note: ReviewNote) -> Any:
    from highdicom.sr import ObservationContext

    return ObservationContext(**_observers(note))


def _procedure() -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept("review", _SCHEME, "Review of a computed image series")


def _quietly(make: Callable[..., Any], **words: Any) -> Any:
    """Without the libraries' remarks on names and values, which repeat them."""
    with quiet():
        return make(**words)


def _write(path: Path, document: Any, source: Any, note: ReviewNote) -> Path:
    document.SeriesDescription = "medseq review"
    for name in ("DeidentificationMethod", "DeidentificationMethodCodeSequence", "TimezoneOffsetFromUTC"):
        if name in source:
            document[name] = source[name]
    # The event's own time, so that a second export is the same bytes.
    digits = "".join(character for character in note.ts_utc if character.isdigit())
    for name in ("Content", "InstanceCreation", "Series"):
        setattr(document, f"{name}Date", digits[:8])
        setattr(document, f"{name}Time", digits[8:14])
    for equipment in document.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = digits[:14]
    partial = clear(path)
    try:
        with written("the report"):
            document.save_as(partial, enforce_file_format=True)
            fsync(partial)
        publish(partial, path)
    finally:
        discard(partial)
    return path


def _uid(text: str, what: str) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{what} {text}').int}"
