"""DICOM MR images from raw data whose header names the study and says where its slices lie.

Raw data has no pixels to derive from, so that `DicomSeriesWriter` cannot serve: everything is written anew from the
ISMRMRD header. What that header does not hold stays empty, where the standard allows it.
"""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from medseq.errors import OutputError, ShapeError
from medseq.io.atomic import clear, discard, publish, written
from medseq.io.dicom_derive import IMAGE_COMMENTS, Provenance, derived_uid
from medseq.io.dicom_header import understood
from medseq.io.mrd_header import MRDHeader
from medseq.io.volume import VolumeHeader

__all__ = ["RawDicomWriter"]

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_TOP = 32767
_TEXT = {
    "PatientName": "patientName",
    "PatientID": "patientID",
    "PatientBirthDate": "patientBirthdate",
    "StudyDate": "studyDate",
    "StudyTime": "studyTime",
    "StudyID": "studyID",
    "AccessionNumber": "accessionNumber",
    "StudyDescription": "studyDescription",
    "ProtocolName": "protocolName",
    "BodyPartExamined": "bodyPartExamined",
    "Manufacturer": "systemVendor",
    "ManufacturerModelName": "systemModel",
}
_NUMBERS = {
    "RepetitionTime": "TR",
    "EchoTime": "TE",
    "InversionTime": "TI",
    "FlipAngle": "flipAngle_deg",
    "MagneticFieldStrength": "systemFieldStrength_T",
    "PatientWeight": "patientWeight_kg",
}
# Type 2: must be there, may be empty.
_EMPTY = """
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber
    ReferringPhysicianName Manufacturer PositionReferenceIndicator ScanOptions EchoTrainLength EchoTime
    RepetitionTime PatientPosition Laterality
""".split()
_POSITIONS = ("HFP", "HFS", "HFDR", "HFDL", "FFDR", "FFDL", "FFP", "FFS")


class RawDicomWriter:
    """A `VolumeWriter` for a series of MR images reconstructed from raw data.

    Values are stored as 16-bit integers with one rescale slope for the whole series, chosen when all are known; until
    `commit` they wait in the partial folder.

    Args:
        folder: Final folder; it appears, complete, at `commit`. An earlier one is replaced.
        item: Label of the item within its file, so that two contrasts of one file are two series.
        scan: What tells the file from others of its study, so that a repeated scan is another series; part of the UIDs.
        bundle_name: Name of the model.
        bundle_hash: Its hash; part of the UIDs.
        params_hash: Hash of the run's parameters; part of the UIDs.
        version: medseq version; part of the UIDs.
        created_utc: Creation time of the run, ISO 8601.
    """

    def __init__(
        self,
        folder: Path,
        *,
        item: str,
        scan: str = "",
        bundle_name: str,
        bundle_hash: str,
        params_hash: str,
        version: str,
        created_utc: str,
    ):
        self._target, self._item, self._scan = Path(folder), item, scan
        self._made = Provenance(bundle_name, bundle_hash, params_hash, version, "result", created_utc)
        self._partial: Path | None = None
        self._planes, self._peak = 0, 0.0

    def begin(self, header: VolumeHeader) -> None:
        """Check that the header has enough and make the partial folder.

        Raises:
            OutputError: No ISMRMRD header, no study UID, or no affine; the message says what is missing.
        """
        source = header.source.header
        study = source.study if isinstance(source, MRDHeader) else {}
        missing = [
            name
            for name, there in (
                ("an ISMRMRD header", isinstance(source, MRDHeader)),
                ("studyInstanceUID", _is_uid(study.get("studyInstanceUID", ""))),
                ("an affine", header.affine is not None),
            )
            if not there
        ]
        if missing or len(header.shape) != 3:
            raise OutputError(
                "the raw data does not say enough for DICOM",
                found=f"without {', '.join(missing)}" if missing else header.shape,
                wanted="a study and the place of its slices",
                remedy="write NIfTI or HDF5 instead",
            )
        self.abort()
        self._header, self._study = header, study
        self._planes, self._peak = 0, 0.0
        self._partial = clear(self._target)
        with written("the output folder"):
            self._partial.mkdir()

    def write(self, lo: int, planes: np.ndarray) -> None:
        """Append planes ``lo ..``; they must follow the ones written before.

        Raises:
            OutputError: NaN or infinite values.
            ShapeError: Planes out of order or of another size.
        """
        partial = self._started()
        if lo != self._planes or planes.shape[1:] != self._header.plane_shape:
            raise ShapeError(
                "planes do not continue the volume",
                found=f"plane {lo}, shape {planes.shape}",
                wanted=f"plane {self._planes}, shape (n, {self._header.shape[1]}, {self._header.shape[2]})",
            )
        for plane in planes:
            if not np.isfinite(plane).all():
                raise OutputError("DICOM integers cannot hold NaN or infinite values", where=f"plane {self._planes}")
            self._peak = max(self._peak, float(np.abs(plane).max()))
            with written("the output folder"):
                np.save(partial / f"{self._planes}.npy", plane.astype("<f4"))
            self._planes += 1

    def commit(self) -> Sequence[Path]:
        """Encode and publish the folder; returns its files in slice order."""
        partial = self._started()
        if self._planes != self._header.planes:
            raise OutputError("the series is not complete", found=f"{self._planes} planes", wanted=self._header.planes)
        # The decimal string of the file is what a reader multiplies with.
        slope = format_number_as_ds(self._peak / _TOP if self._peak > 0 else 1.0)
        width, names = max(4, len(str(self._planes))), []
        for i in range(self._planes):
            waiting = partial / f"{i}.npy"
            plane = np.load(waiting, allow_pickle=False)
            stored = np.clip(np.rint(plane / float(slope)), -_TOP, _TOP).astype("<i2")
            buffer = io.BytesIO()
            with understood("raw data", "the header cannot be written as DICOM", remedy="write NIfTI or HDF5 instead"):
                out = self._dataset(i, slope)
                out.add_new("PixelData", "OW", stored.tobytes())
                dcmwrite(buffer, out, implicit_vr=False, little_endian=True, enforce_file_format=True)
            names.append(f"{i + 1:0{width}d}.dcm")
            with written("the output folder"), open(partial / names[-1], "wb") as file:
                file.write(buffer.getvalue())
                file.flush()
                os.fsync(file.fileno())
            waiting.unlink()
        publish(partial, self._target)
        self._partial = None
        return [self._target / name for name in names]

    def abort(self) -> None:
        """Remove what was written; nothing happens after a commit."""
        if self._partial is not None:
            discard(self._partial)
        self._partial = None

    def _started(self) -> Path:
        if self._partial is None:
            raise OutputError("nothing was begun", wanted="begin(header) before write and commit")
        return self._partial

    def _dataset(self, i: int, slope: str) -> Dataset:
        """One image without its pixels."""
        study, made, out = self._study, self._made, Dataset()
        for keyword in _EMPTY:
            setattr(out, keyword, None)
        out.SpecificCharacterSet = "ISO_IR 192"
        out.SOPClassUID, out.Modality = MRImageStorage, "MR"
        out.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
        for keyword, name in _TEXT.items():
            if name in study:
                setattr(out, keyword, _text(keyword, study[name]))
        for keyword, name in _NUMBERS.items():
            if _number(study.get(name)) is not None:
                setattr(out, keyword, format_number_as_ds(_number(study[name]) or 0.0))
        sex, position = study.get("patientGender", ""), study.get("patientPosition", "")
        out.PatientSex = sex if sex in ("M", "F", "O") else None
        out.PatientPosition = position if position in _POSITIONS else None
        # RM: research mode; the sequence is not known.
        out.ScanningSequence, out.SequenceVariant, out.MRAcquisitionType = "RM", "NONE", "2D"
        self._identify(out, i)
        self._place(out, i)
        out.SamplesPerPixel, out.PhotometricInterpretation = 1, "MONOCHROME2"
        out.BitsAllocated, out.BitsStored, out.HighBit, out.PixelRepresentation = 16, 16, 15, 1
        out.RescaleSlope, out.RescaleIntercept, out.RescaleType = slope, "0", "US"
        out.WindowCenter, out.WindowWidth = (format_number_as_ds(float(slope) * _TOP / n) for n in (2, 1))
        # The default function does not allow a width below 1.
        out.VOILUTFunction = "LINEAR_EXACT"
        out.ImageComments, out.BurnedInAnnotation = IMAGE_COMMENTS, "NO"
        description = study.get("seriesDescription", self._item)
        out.SeriesDescription = f"RUO medseq {made.bundle_name} {description}".strip()[:64].strip()
        out.DerivationDescription = f"reconstructed from raw data by medseq {made.version}, model {made.bundle_name}"
        out.file_meta = FileMetaDataset()
        out.file_meta.MediaStorageSOPClassUID = out.SOPClassUID
        out.file_meta.MediaStorageSOPInstanceUID = out.SOPInstanceUID
        out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        out.preamble = bytes(128)
        return out

    def _identify(self, out: Dataset, i: int) -> None:
        """UIDs from the study, the item and the model: a second run writes the same bytes."""
        study = self._study["studyInstanceUID"]
        place = np.asarray(self._header.affine).round(4).tolist()
        scan = f"{study}/{self._study.get('protocolName', '')}/{self._item}/{self._scan}/{self._header.shape}/{place}"
        frame = self._study.get("frameOfReferenceUID", "")
        out.StudyInstanceUID = UID(study)
        out.SeriesInstanceUID = derived_uid(scan, self._made)
        out.SOPInstanceUID = derived_uid(scan, self._made, i + 1)
        out.FrameOfReferenceUID = UID(frame) if _is_uid(frame) else derived_uid(f"{study}/frame", self._made)
        number = self._study.get("initialSeriesNumber", "")
        out.SeriesNumber = int(number) * 100 + 1 if number.isdecimal() and int(number) < 10_000_000 else 1
        out.InstanceNumber = i + 1
        moment = self._made.created()
        for kind in ("InstanceCreation", "Series", "Content"):
            setattr(out, f"{kind}Date", moment.strftime("%Y%m%d"))
            setattr(out, f"{kind}Time", moment.strftime("%H%M%S"))

    def _place(self, out: Dataset, i: int) -> None:
        affine = np.asarray(self._header.affine)
        steps = _RAS_TO_LPS @ affine[:3, :3]
        sizes = np.linalg.norm(steps, axis=0)
        origin = _RAS_TO_LPS @ (affine[:3, 3] + affine[:3, 2] * i)
        out.Rows, out.Columns = self._header.plane_shape
        out.PixelSpacing = [format_number_as_ds(float(n)) for n in (sizes[1], sizes[0])]
        cosines = [*(steps[:, 0] / sizes[0]), *(steps[:, 1] / sizes[1])]
        out.ImageOrientationPatient = [format_number_as_ds(float(n)) for n in cosines]
        out.ImagePositionPatient = [format_number_as_ds(float(n)) for n in origin]
        out.SliceThickness = out.SpacingBetweenSlices = format_number_as_ds(self._header.spacing_mm[0])


def _text(keyword: str, value: str) -> str:
    """A text in the form DICOM wants: dates without dashes, times without colons, no backslash, 64 characters."""
    if keyword.endswith("Date"):
        digits = "".join(filter(str.isdigit, value))
        return digits if len(digits) == 8 else ""
    if keyword.endswith("Time"):
        digits = "".join(filter(str.isdigit, value.partition(".")[0]))
        return digits if len(digits) in (2, 4, 6) else ""
    limit = 16 if keyword in ("StudyID", "AccessionNumber", "BodyPartExamined") else 64
    kept = value.replace("\\", " ")[:limit].strip()
    return kept.upper() if keyword == "BodyPartExamined" else kept


def _is_uid(text: str) -> bool:
    return re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", text) is not None and len(text) <= 64


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if np.isfinite(value) and value >= 0 else None
