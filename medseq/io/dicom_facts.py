"""What a viewer may show of a DICOM series beside its pixels: body part and laterality; never a name or a number."""

from dataclasses import dataclass, field

from medseq.io.privacy import path_label
from medseq.io.volume import VolumeHeader

__all__ = ["SeriesFacts", "series_facts"]


@dataclass(frozen=True)
class SeriesFacts:
    """Facts of one series.

    Attributes:
        patient_key: Tells patients apart; to be hashed with a secret before anybody sees it. Empty if unknown.
        laterality: ``L``, ``R``, ``B`` or None.
        body_part: A defined term such as ``HEAD``, or None.
    """

    patient_key: str = field(repr=False)
    laterality: str | None
    body_part: str | None


def series_facts(header: VolumeHeader) -> SeriesFacts:
    """Facts of the series behind a header, from its first file.

    Raises:
        FormatError: The file cannot be read.
    """
    import pydicom

    from medseq.io.dicom_header import quiet, understood

    path = header.source.files[0]
    tags = ["PatientID", "PatientName", "IssuerOfPatientID", "Laterality", "ImageLaterality", "BodyPartExamined"]
    with understood(path_label(path), "the header cannot be read"):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
    # Values are looked at only when asked for, and what is wrong with them is told with their text.
    with quiet():
        found = {tag: str(dataset.get(tag) or "").strip() for tag in tags}
    identity = [found["IssuerOfPatientID"], found["PatientID"]]
    if not identity[1]:
        identity = ["", found["PatientName"]]
    laterality = (found["ImageLaterality"] or found["Laterality"]).upper()
    part = found["BodyPartExamined"].upper()
    # A code string: anything else in there may be free text with a name.
    is_term = 0 < len(part) <= 16 and all(c.isalnum() or c in " _" for c in part)
    return SeriesFacts(
        "\n".join(identity).strip(),
        laterality if laterality in ("L", "R", "B", "U") else None,
        part if is_term else None,
    )
