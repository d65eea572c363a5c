"""What a series says about itself that a route may ask for: read from the header of one of its images."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from medseq.errors import FormatError, MedseqError
from medseq.io.dicom_classify import skip_reason
from medseq.io.dicom_header import NotDicomError, read_header, understood
from medseq.io.privacy import label, path_label

__all__ = ["FACTS", "SeriesFacts", "series_facts"]

FACTS = ("Modality", "SeriesDescription", "BodyPart", "Manufacturer", "AETitle")
_ATTRIBUTES = {"BodyPart": "BodyPartExamined"}
_TAGS = [
    *("SpecificCharacterSet", "SeriesInstanceUID", "Modality", "SeriesDescription", "BodyPartExamined"),
    *("Manufacturer", "ContributingEquipmentSequence"),
]
_OURS = "medseq"


@dataclass(frozen=True)
class SeriesFacts:
    """One series.

    Attributes:
        label: Opaque name for messages.
        values: Of each of `FACTS`, what the series says; a description may name a person, so it is never logged.
        files: Its images.
        ours: It was made by medseq: it must not come round again.
        unfit: Why none of its files is an image that a volume is made of (scouts, reports …), or None.
    """

    label: str
    values: dict[str, str] = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    ours: bool = False
    unfit: str | None = None


def series_facts(paths: Iterable[Path]) -> tuple[list[SeriesFacts], list[tuple[str, str]]]:
    """Group files into series.

    Returns:
        The series, sorted by label; and label and reason of each file that is no DICOM object.
    """
    series: dict[str, list[Path]] = {}
    reasons: dict[str, list[str | None]] = {}
    left: list[tuple[str, str]] = []
    for path in sorted(paths):
        try:
            header = read_header(path)
            uid, skip = _uid(path), skip_reason(header.dataset, header.has_pixels)
        except NotDicomError:
            left.append((path_label(path), "not a DICOM file"))
        except MedseqError as error:
            left.append((path_label(path), str(error)))
        else:
            series.setdefault(uid, []).append(path)
            reasons.setdefault(uid, []).append(skip[1] if skip else None)
    found = [_facts(uid, files, reasons[uid]) for uid, files in series.items()]
    return sorted(found, key=lambda facts: facts.label), left


def _uid(path: Path) -> str:
    with understood(path_label(path), "the DICOM header is damaged"):
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"], force=True)
        uid = str(dataset.get("SeriesInstanceUID") or "")
    if not uid:
        raise FormatError("no series UID", where=path_label(path))
    return uid


def _facts(uid: str, files: list[Path], reasons: list[str | None]) -> SeriesFacts:
    with understood(label(uid), "the DICOM header is damaged"):
        dataset = dcmread(files[0], stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
        values = {name: str(dataset.get(_ATTRIBUTES.get(name, name)) or "").strip() for name in FACTS[:-1]}
        meta = getattr(dataset, "file_meta", None) or Dataset()
        values["AETitle"] = str(meta.get("SourceApplicationEntityTitle") or "").strip()
        makers = [str(item.get("Manufacturer") or "") for item in dataset.get("ContributingEquipmentSequence") or []]
    # One image among scouts is an image: the engine leaves the scouts out.
    unfit = reasons[0] if all(reasons) else None
    return SeriesFacts(label(uid), values, tuple(files), _OURS in makers, unfit)
