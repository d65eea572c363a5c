"""Small bundles, DICOM series and NIfTI volumes that every test of the engine builds for itself."""

import datetime
import os
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

CREATED = "2026-01-02T03:04:05Z"
# Planted in headers and file names; must not appear where a person reads.
PATIENT = "ZYXWVUT^PLANTEDNAME"
PATIENT_ID = "PLANTEDID987654"


@pytest.fixture
def seed(request) -> int:
    """A fresh seed, printed, so that a failure can be repeated with MEDSEQ_TEST_SEED."""
    value = int(os.environ.get("MEDSEQ_TEST_SEED") or int.from_bytes(os.urandom(4)))
    request.node.add_report_section("call", "seed", f"MEDSEQ_TEST_SEED={value}")
    return value


@pytest.fixture
def rng(seed) -> np.random.Generator:
    return np.random.default_rng(seed)


def save_tiny_bundle(folder: Path, *, modality=("CT",), units="HU", weights_seed=0, state=None, **changes):
    """A two-layer convolutional network as a bundle; `changes` replace whole sections of bundle.yaml."""
    import torch

    from medseq.inference.bundle import save_bundle
    from medseq.models.restore_unet import RestoreUNet

    channels = 2 if units == "HU" else 1
    init = {"in_channels": channels, "out_channels": 1, "dims": [4], "num_blocks": [1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed)
        model = RestoreUNet(**init)
    with torch.no_grad():
        for parameter in model.parameters():
            # The last layer starts at zero: a model that changes nothing would hide mistakes.
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(weights_seed)))
    steps = {"HU": "HounsfieldChannels", "1": "RobustScale"}
    config = {
        "name": folder.name,
        "version": "1.0",
        "task": "restore",
        "model": {"class_path": "medseq.models.restore_unet.RestoreUNet", "init_args": init},
        "input": {"kind": "volume", "modality": list(modality), "units": units, "channels": channels},
        "preprocess": [{"class_path": f"medseq.data.transforms.{steps[units]}"}],
        "inference": {"tile": 64, "overlap": 0.25, "batch": 4},
        "output": {"kind": "volume", "units": units},
        "valid_range": {"min": -1100, "max": 3100} if units == "HU" else None,
    }
    config = {key: value for key, value in (config | changes).items() if value is not None}
    metadata = {"intended_use": "tests", "training_data": [], "metrics": {}}
    return save_bundle(folder, config, state or model.state_dict(), metadata=metadata, card="# A test\n")


@pytest.fixture
def ct_bundle(tmp_path):
    return save_tiny_bundle(tmp_path / "tiny-ct")


@pytest.fixture
def mr_bundle(tmp_path):
    return save_tiny_bundle(tmp_path / "tiny-mr", modality=("MR",), units="1")


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """Everything below, since test modules cannot import from here."""
    return SimpleNamespace(
        bundle=save_tiny_bundle,
        series=write_series,
        nifti=write_nifti,
        head=head_phantom,
        tree=tree,
        created=CREATED,
        planted=(PATIENT, PATIENT_ID, PATIENT.split("^")[0], PATIENT.split("^")[1]),
    )


def write_series(
    folder: Path,
    pixels: np.ndarray,
    *,
    modality: str = "CT",
    intercept: float = -1024.0,
    padding: int | None = None,
    series: str | None = None,
    positions=None,
    orientation=(1, 0, 0, 0, 1, 0),
    name: str = "slice",
) -> list[Path]:
    """One DICOM series ``(slice, row, col)`` of stored uint16 values, 2 mm apart."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    # Calls that name a series write parts of the same one.
    series, paths = series or generate_uid(), []
    study, frame_of_reference = f"{series[:60]}.1", f"{series[:60]}.2"
    for number, plane in enumerate(pixels):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{name}{number:04d}.dcm"
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = PATIENT, PATIENT_ID, "19500101", "O"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame_of_reference
        ds.Modality, ds.StudyID, ds.AccessionNumber, ds.SeriesNumber = modality, "1", "A1", 1
        ds.StudyDate = ds.SeriesDate = ds.ContentDate = datetime.date(2020, 1, 1).strftime("%Y%m%d")
        ds.StudyTime = ds.ContentTime = "120000"
        ds.Manufacturer, ds.ReferringPhysicianName, ds.PositionReferenceIndicator = "Test", "", ""
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.InstanceNumber = number + 1
        z = number * 2.0 if positions is None else float(positions[number])
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [-10.0, -10.0, z], list(orientation)
        ds.PixelSpacing, ds.SliceThickness = [0.7, 0.8], 2.0
        ds.Rows, ds.Columns, ds.SamplesPerPixel = *plane.shape, 1
        ds.PhotometricInterpretation, ds.PixelRepresentation = "MONOCHROME2", 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
        if modality == "CT":
            ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType, ds.KVP = intercept, 1.0, "HU", 120
        if padding is not None:
            ds.add_new("PixelPaddingValue", "US", padding)
        ds.PixelData = plane.astype("<u2").tobytes()
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def head_phantom(rng: np.random.Generator, slices: int, size: int = 48) -> np.ndarray:
    """A round head in stored CT values (HU + 1024) with noise of sd 12."""
    grid = np.linspace(-1, 1, size)
    radius = np.hypot(*np.meshgrid(grid, grid))
    plane = np.where(radius < 0.6, 40.0, np.where(radius < 0.7, 900.0, -1000.0))
    stack = plane + rng.normal(0, 12, (slices, size, size)) * (plane > -900)
    return np.clip(np.round(stack + 1024), 0, 65535)


def write_nifti(path: Path, array: np.ndarray, dtype=np.int16) -> Path:
    """``(slice, row, col)`` as NIfTI with 1 x 1.2 x 3 mm voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.round(array).astype(dtype).transpose(2, 1, 0), np.diag([1.0, 1.2, 3.0, 1.0]))
    nib.save(image, path)
    return path


def tree(folder: Path, *, without=("run.sqlite", "run.sqlite-wal", "run.sqlite-shm", "report", ".run.lock")) -> dict:
    """Relative path -> bytes of the results in a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(tuple(without))
    }


@pytest.fixture(scope="session")
def recon_bundle(tmp_path_factory):
    """A small untrained reconstruction network."""
    import torch

    from medseq.models.recon_modl import MoDL
    from tests.inference.test_recon_folder import SIZES, save

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = MoDL(**SIZES)
    return save(tmp_path_factory.mktemp("bundle") / "tiny-recon", model, "medseq.models.recon_modl.MoDL", SIZES)
