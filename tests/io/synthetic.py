"""Small DICOM series made in the test: valid objects (dciodvfy finds no error), planted identifiers, known pixels."""

import uuid
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

# Nothing of this may appear in a message, a log line or a label.
PATIENT_NAME, PATIENT_ID, FOLDER = "Plantedname^Anna", "PLANTED-4711", "PLANTEDNAME_ANNA"
# No bare number: four digits turn up in a random UID by chance.
PLANTED = ("plantedname", "planted-4711")

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.8, 0.48, -0.36, -0.6, 0.64, -0.48)  # rows of a rotation matrix with short decimals
CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}


def uid() -> str:
    return f"2.25.{uuid.uuid4().int}"


def normal(orientation: Sequence[float]) -> np.ndarray:
    return np.cross(orientation[:3], orientation[3:])


def image(modality: str, pixels: np.ndarray, position: Sequence[float], orientation: Sequence[float]) -> Dataset:
    """One single-frame image with every attribute its class must have."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY", "OTHER"]
    ds.SOPClassUID, ds.SOPInstanceUID = CLASSES[modality], uid()
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20200102"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "101112"
    ds.AccessionNumber, ds.Modality, ds.Manufacturer = "A1", modality, "Synthetic"
    ds.ReferringPhysicianName, ds.SeriesDescription = "", "thin slices"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = PATIENT_NAME, PATIENT_ID, "19700101", "F"
    ds.BodyPartExamined, ds.PatientPosition = "HEAD", "HFS"
    ds.SliceThickness = "2.5"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uid(), uid(), uid()
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = "1", "7", "1", "1"
    ds.PositionReferenceIndicator = ""
    ds.ImagePositionPatient = [f"{value:.6f}".rstrip("0").rstrip(".") for value in position]
    ds.ImageOrientationPatient = [str(value) for value in orientation]
    ds.PixelSpacing = ["0.75", "0.5"]
    _modality_attributes(ds, modality)
    set_pixels(ds, pixels)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.preamble = bytes(128)
    # Private data often repeat the name.
    block = ds.private_block(0x0009, "SYNTHETIC", create=True)
    block.add_new(0x01, "LO", PATIENT_NAME)
    return ds


def _modality_attributes(ds: Dataset, modality: str) -> None:
    if modality == "CT":
        ds.KVP, ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "120", "-1024", "1", "HU"
        ds.WindowCenter, ds.WindowWidth = "40", "400"
    elif modality == "MR":
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "SE", "NONE", "", "2D"
        ds.EchoTime, ds.RepetitionTime, ds.EchoTrainLength = "15", "2000", "1"
    else:
        ds.RescaleIntercept, ds.RescaleSlope, ds.Units = "0", "1", "BQML"


def set_pixels(ds: Dataset, pixels: np.ndarray) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    ds.add_new(0x7FE00010, "OB" if pixels.dtype.itemsize == 1 else "OW", data + bytes(len(data) % 2))


def stack(
    rng: np.random.Generator,
    *,
    slices: int = 5,
    shape: tuple[int, int] = (6, 8),
    modality: str = "CT",
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-10.0, -20.0, 30.0),
    step: float | Sequence[float] = 2.5,
    positions: Sequence[Sequence[float]] | None = None,
    dtype: str = "i2",
) -> list[Dataset]:
    """One series with random pixels: slice k lies at ``origin + k * step`` (along the normal if step is a number)."""
    if positions is None:
        vector = np.array(step) if np.ndim(step) else np.array(normal(orientation)) * step
        positions = [np.array(origin) + k * vector for k in range(slices)]
    low, high = (0, 200) if dtype == "u1" else (0 if dtype.startswith("u") else -500, 2000)
    planes = (rng.integers(low, high, shape, dtype=dtype) for _ in positions)
    images = [image(modality, plane, position, orientation) for plane, position in zip(planes, positions, strict=True)]
    for k, ds in enumerate(images):
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(ds, keyword, images[0][keyword].value)
        ds.InstanceNumber = str(k + 1)
    return images


def save(images: Sequence[Dataset], folder: Path, rng: np.random.Generator | None = None) -> list[Path]:
    """Write a series under names that hold the patient's and do not tell the order; paths in the order given."""
    folder = folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    taken = len(list(folder.iterdir()))
    names = np.arange(len(images)) + taken if rng is None else rng.permutation(len(images)) + taken
    paths = [folder / f"{FOLDER}_{n:04d}.dcm" for n in names]
    for ds, path in zip(images, paths, strict=True):
        ds.save_as(path, enforce_file_format=True)
    return paths


def enhanced(frames: Sequence[Dataset]) -> Dataset:
    """An enhanced multi-frame CT or MR object of single-frame images, frames in the order given."""
    first = frames[0]
    ct = first.Modality == "CT"
    ds = Dataset()
    skip = {"ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope"}
    skip |= {"RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth", "KVP", "PixelData", "EchoTime"}
    skip |= {"RepetitionTime", "EchoTrainLength", "ScanningSequence", "SequenceVariant", "ScanOptions"}
    for element in first:
        if element.keyword not in skip and not element.tag.is_private:
            ds.add(copy(element))
    ds.SOPClassUID = EnhancedCTImageStorage if ct else EnhancedMRImageStorage
    ds.SOPInstanceUID, ds.NumberOfFrames = uid(), str(len(frames))
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.EchoPulseSequence, ds.Spoiling = "GRADIENT", "RF"
    shared, kind = Dataset(), Dataset()
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    kind.FrameType = ds.ImageType
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    setattr(shared, "CTImageFrameTypeSequence" if ct else "MRImageFrameTypeSequence", [kind])
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = [_group(frame, ct) for frame in frames]
    pixels = np.stack([np.frombuffer(f.PixelData, f"<{'i' if f.PixelRepresentation else 'u'}2") for f in frames])
    set_pixels(ds, pixels.reshape(len(frames), first.Rows, first.Columns))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.preamble = bytes(128)
    return ds


def _group(frame: Dataset, ct: bool) -> Dataset:
    group, place, value, content = Dataset(), Dataset(), Dataset(), Dataset()
    place.ImagePositionPatient = frame.ImagePositionPatient
    content.FrameAcquisitionNumber = int(frame.AcquisitionNumber)
    group.PlanePositionSequence, group.FrameContentSequence = [place], [content]
    value.RescaleSlope, value.RescaleIntercept = frame.get("RescaleSlope", "1"), frame.get("RescaleIntercept", "0")
    value.RescaleType = "HU" if ct else "US"
    group.PixelValueTransformationSequence = [value]
    if not ct:
        echo = Dataset()
        echo.EffectiveEchoTime = float(frame.EchoTime)
        group.MREchoSequence = [echo]
    return group
