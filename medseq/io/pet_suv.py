"""PET activity to standardised uptake and back, Bq/ml <-> SUVbw, by dose, time and weight in the DICOM headers.

    SUVbw = activity [Bq/ml] x weight [g] / dose at the reference time [Bq]
    dose  = injected dose x 2^(-elapsed / half-life)

The reference time is what the images were corrected to: the start of the series (DecayCorrection START), or the
injection itself (ADMIN), where nothing decays. Nothing is guessed: a tag that is missing is named in the error.

Reference:
    DICOM PS3.3 C.8.9.1 (PET series) and C.8.9.2 (PET isotope); QIBA FDG-PET profile, SUV from vendor-neutral
    attributes; Kinahan & Fletcher, Semin. Ultrasound CT MR 31(6), 2010, equation 1.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseq.errors import FormatError, InputError
from medseq.io.dicom_types import DicomSource
from medseq.io.volume import VolumeHeader, VolumeReader, VolumeWriter

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["ActivityWriter", "SuvReader", "suv_per_activity"]

_WHERE = "PET series"
_TAGS = """
    Units PatientWeight DecayCorrection CorrectedImage SeriesDate SeriesTime AcquisitionDate AcquisitionTime
    RadiopharmaceuticalInformationSequence
""".split()
_REMEDY = "complete the header, or use a model for Bq/ml"


def suv_per_activity(header: VolumeHeader) -> float:
    """SUVbw of one Bq/ml, the same for all slices of a series.

    The rescale slope, which may differ from slice to slice, is the reader's: it has made Bq/ml of the stored values.

    Args:
        header: Of a PET volume in Bq/ml that was read from DICOM.

    Raises:
        InputError: Not such a volume; a tag is missing, or says what cannot be used. The message names the tag.
        FormatError: A header cannot be understood.
    """
    source = header.source.header
    if header.modality != "PT" or header.units != "Bq/ml" or not isinstance(source, DicomSource):
        raise InputError(
            "only PET from DICOM can be scaled to SUV",
            found=f"{header.modality} [{header.units}] from {header.source.kind}",
            wanted="PT [Bq/ml] from dicom",
            remedy="convert the values outside medseq, and say so in the file",
        )
    from medseq.io.dicom_header import understood

    paths = list(dict.fromkeys(frame.path for frame in source.frames))
    with understood(_WHERE, "the PET header cannot be understood", remedy=_REMEDY):
        return _factor([_tags(path) for path in paths])


def _factor(datasets: Sequence["Dataset"]) -> float:
    first = datasets[0]
    if not {"ATTN", "DECY"} <= set(_values(first, "CorrectedImage")):
        raise _unusable("CorrectedImage", _values(first, "CorrectedImage"), "ATTN and DECY")
    weight_g = 1000.0 * _positive(first, "PatientWeight")
    info = _value(first, "RadiopharmaceuticalInformationSequence")[0]
    dose = _positive(info, "RadionuclideTotalDose")
    if dose < 1e5:
        raise _unusable("RadionuclideTotalDose", dose, "becquerel (this looks like MBq)")
    return weight_g / (dose * _remaining(datasets, info))


def _remaining(datasets: Sequence["Dataset"], info: "Dataset") -> float:
    """Share of the injected dose that was left at the time which the images were corrected to."""
    correction = str(_value(datasets[0], "DecayCorrection"))
    if correction == "ADMIN":
        return 1.0
    if correction != "START":
        raise _unusable("DecayCorrection", correction, "START or ADMIN")
    half_life = timedelta(seconds=_positive(info, "RadionuclideHalfLife"))
    acquired = min(_moment(dataset, "Acquisition") for dataset in datasets)
    series = _moment(datasets[0], "Series")
    # A series that was made afresh carries the time of that: then the first acquisition is the start.
    start = series if series <= acquired else acquired
    elapsed = start - _injection(info, start)
    if not timedelta(0) <= elapsed <= 20 * half_life:
        raise _unusable("RadiopharmaceuticalStartDateTime", f"{elapsed} before the scan", "0 to 20 half-lives")
    return float(2.0 ** -(elapsed / half_life))


def _injection(info: "Dataset", start: datetime) -> datetime:
    if info.get("RadiopharmaceuticalStartDateTime"):
        # An offset from UTC is left out: the times of the series have none to compare it with.
        return _parsed("RadiopharmaceuticalStartDateTime", str(info.RadiopharmaceuticalStartDateTime)[:14])
    text = str(_value(info, "RadiopharmaceuticalStartTime"))
    moment = _parsed("RadiopharmaceuticalStartTime", start.strftime("%Y%m%d") + text[:6])
    # The time has no date: an injection before midnight belongs to the day before.
    return moment if moment <= start else moment - timedelta(days=1)


def _moment(dataset: "Dataset", what: str) -> datetime:
    date, time = (str(_value(dataset, f"{what}{part}")) for part in ("Date", "Time"))
    return _parsed(f"{what}Time", date + time[:6])


def _parsed(tag: str, text: str) -> datetime:
    try:
        return datetime.strptime(text.ljust(14, "0"), "%Y%m%d%H%M%S")
    except ValueError:
        # The text itself is an identifier in the sense of HIPAA: it is not shown.
        raise _unusable(tag, "no such time", "YYYYMMDD and HHMMSS") from None


def _tags(path: Path) -> "Dataset":
    from pydicom import dcmread

    return dcmread(path, stop_before_pixels=True, force=True, specific_tags=_TAGS)


def _value(dataset: "Dataset", tag: str) -> Any:
    value = dataset.get(tag)
    if value is None or value == "" or (hasattr(value, "__len__") and len(value) == 0):
        raise InputError("PET cannot be scaled to SUV: a tag is missing", where=_WHERE, found=tag, remedy=_REMEDY)
    return value


def _values(dataset: "Dataset", tag: str) -> list[str]:
    value = _value(dataset, tag)
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _positive(dataset: "Dataset", tag: str) -> float:
    number = float(_value(dataset, tag))
    if not (np.isfinite(number) and number > 0):
        raise _unusable(tag, number, "above 0")
    return number


def _unusable(tag: str, found: object, wanted: str) -> InputError:
    return InputError(f"PET cannot be scaled to SUV by its {tag}", where=_WHERE, found=found, wanted=wanted)


class SuvReader:
    """A reader of PET in Bq/ml as SUVbw.

    Args:
        reader: A PET volume from DICOM.
        factor: See `suv_per_activity`.
    """

    def __init__(self, reader: VolumeReader, factor: float) -> None:
        if not (np.isfinite(factor) and factor > 0):
            raise FormatError("SUV factor is not positive", where=_WHERE, found=factor)
        self._reader, self._factor = reader, factor
        self._header = replace(reader.header, units="SUVbw")

    @property
    def header(self) -> VolumeHeader:
        """The source's, in SUVbw."""
        return self._header

    def read(self, lo: int, hi: int) -> np.ndarray:
        """See `VolumeReader.read`."""
        return self._reader.read(lo, hi) * np.float32(self._factor)

    def valid(self, lo: int, hi: int) -> np.ndarray | None:
        """See `VolumeReader.valid`."""
        return self._reader.valid(lo, hi)


class ActivityWriter:
    """A writer that takes SUVbw and stores Bq/ml, as the source has it.

    Args:
        writer: Writes the volume in Bq/ml.
        factor: See `suv_per_activity`.
    """

    def __init__(self, writer: VolumeWriter, factor: float) -> None:
        self._writer, self._factor = writer, factor

    @property
    def clipped(self) -> int:
        """Values that did not fit the stored type."""
        return int(getattr(self._writer, "clipped", 0))

    @property
    def coarse(self) -> bool:
        """Whether values are stored in larger steps than the source's."""
        return bool(getattr(self._writer, "coarse", False))

    def begin(self, header: VolumeHeader) -> None:
        """See `VolumeWriter.begin`."""
        self._writer.begin(replace(header, units="Bq/ml"))

    def write(self, lo: int, planes: np.ndarray) -> None:
        """See `VolumeWriter.write`; planes in SUVbw."""
        self._writer.write(lo, planes / np.float32(self._factor))

    def commit(self) -> Sequence[Path]:
        """See `VolumeWriter.commit`."""
        return self._writer.commit()

    def abort(self) -> None:
        """See `VolumeWriter.abort`."""
        self._writer.abort()
