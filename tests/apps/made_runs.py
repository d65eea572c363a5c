"""Finished runs made in the test without a model: what `medseq predict` leaves, from a phantom that tells left from right.

A sphere of water in air, a dense marker at the patient's left and anterior side and a hollow at the top: whoever mirrors
or turns it shows the marker on the wrong side.
"""

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset
from scipy.ndimage import gaussian_filter

from medseq import __version__
from medseq.inference.ledger import Ledger
from medseq.inference.ledger_schema import FileRow, OutputRow, RunRow
from medseq.io.dicom import DicomSeriesWriter, group_dicom, open_dicom
from tests.io import synthetic

SIDE = 64
STEP_MM, ROW_MM, COL_MM = 3.0, 1.5, 1.0
CREATED = "2026-01-02T03:04:05Z"
WATER, MARKER, AIR = 40.0, 900.0, -1000.0


def phantom(slices: int = 24) -> np.ndarray:
    """HU ``[slice, row, col]``; rows run to the back, columns to the left, slices to the head."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (slices, SIDE, SIDE)), indexing="ij")
    volume = np.where(x**2 + y**2 + z**2 < 0.8, WATER, AIR)
    volume[(np.abs(x - 0.45) < 0.12) & (np.abs(y + 0.4) < 0.12) & (np.abs(z) < 0.4)] = MARKER
    volume[(x**2 + y**2 < 0.03) & (z > 0.3)] = AIR
    return volume


def noisy(volume: np.ndarray, sd: float = 40.0) -> np.ndarray:
    """The same noise every time: pictures of it are compared."""
    return volume + np.random.default_rng(7).normal(0, sd, volume.shape)


def ct_images(volume: np.ndarray) -> list[Dataset]:
    """A CT series of it, anisotropic; made alike every time."""
    pixels = np.round(volume + 1024).astype(np.int16)
    found = []
    for k, plane in enumerate(pixels):
        image = synthetic.image("CT", plane, (-32.0, -48.0, -36.0 + STEP_MM * k), synthetic.AXIAL)
        image.PixelSpacing, image.SliceThickness = [str(ROW_MM), str(COL_MM)], str(STEP_MM)
        image.StudyInstanceUID, image.SeriesInstanceUID = "2.25.1", "2.25.2"
        image.FrameOfReferenceUID, image.SOPInstanceUID = "2.25.3", f"2.25.{100 + k}"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.InstanceNumber = str(k + 1)
        found.append(image)
    return found


class MadeRun:
    """A run folder that is being made: `folder`/out beside `folder`/input."""

    def __init__(self, folder: Path, name: str, bundle: dict[str, object]) -> None:
        self.input, self.out = folder / "input" / name, folder / "out" / name
        self.input.mkdir(parents=True)
        self.out.mkdir(parents=True)
        self.ledger = Ledger(self.out / "run.sqlite")
        digest = hashlib.sha256(json.dumps(bundle).encode()).hexdigest()
        self.ledger.begin_run(RunRow(digest, {"names": "id", "modality": None}, "p" * 64, __version__, CREATED))
        (self.out / "report.json").write_text(json.dumps({"schema": 1, "run": {"bundle": bundle}}))

    def add(
        self,
        item_id: str,
        kind: str,
        label: str,
        inputs: list[Path],
        outputs: dict[str, list[Path]],
        *,
        metrics: dict[str, float] | None = None,
        flags: tuple[dict[str, str], ...] = (),
    ) -> None:
        """A finished item; `outputs` by role lie below the run's folder already."""
        files = [_file(self.input, path) for path in inputs]
        self.ledger.add_item(item_id, kind, label, files)
        self.ledger.claim("w", 60, item_id)
        rows = [
            OutputRow(role, path.relative_to(self.out).as_posix(), _sha256(path), path.stat().st_size)
            for role, paths in outputs.items()
            for path in paths
        ]
        self.ledger.stage_outputs(item_id, rows)
        self.ledger.finish(
            item_id, "w", seconds=1.0, peak_mb=1.0, input_sha256="0" * 64, metrics=metrics or {}, flags=flags
        )

    def close(self) -> Path:
        """The finished output folder."""
        self.ledger.close()
        return self.out


def ct_run(folder: Path, name: str = "ct", items: int = 1) -> Path:
    """Restored CT series, with DICOM in and out."""
    run = MadeRun(folder, name, _bundle("ct-denoise", "restore", ["CT"], "HU"))
    clean = phantom()
    for number in range(items):
        inputs = synthetic.save(ct_images(noisy(clean)), run.input / str(number))
        stacks, _, _ = group_dicom(inputs)
        with_header = open_dicom(stacks[0])
        item_id = f"{number:016x}"
        writer = DicomSeriesWriter(
            run.out / item_id / "result",
            bundle_name="ct-denoise",
            bundle_hash="b" * 64,
            params_hash="p" * 64,
            version=__version__,
            role="result",
            created_utc=CREATED,
            description="RUO restored",
        )
        writer.begin(with_header.header)
        writer.write(0, gaussian_filter(noisy(clean), (0, 1, 1)).astype(np.float32))
        result = writer.commit()
        metrics = {"noise_sd_before": 40.0, "noise_sd_after": 12.0}
        flags = ({"code": "clipped", "level": "warn", "message": "3 pixels were clipped"},) if number % 2 else ()
        run.add(item_id, "dicom", f"id-ct{number:04d}", inputs, {"result": result}, metrics=metrics, flags=flags)
    return run.close()


def mr_run(folder: Path, name: str = "mr") -> Path:
    """A restored MR volume, NIfTI, with uncertainty."""
    run = MadeRun(folder, name, _bundle("mr-denoise", "restore", ["MR"], "1"))
    clean = phantom() + 1000.0
    affine = np.diag([-COL_MM, -ROW_MM, STEP_MM, 1.0])
    affine[:3, 3] = [32, 48, -36]
    before = _nifti(run.input / "head.nii.gz", noisy(clean), affine)
    item_id = "a" * 16
    (run.out / item_id).mkdir()
    after = _nifti(run.out / item_id / "result.nii.gz", gaussian_filter(noisy(clean), 1), affine)
    spread = _nifti(run.out / item_id / "uncertainty.nii.gz", np.abs(clean - gaussian_filter(clean, 2)) / 10, affine)
    run.add(item_id, "nifti", "id-mr0001", [before], {"result": [after], "uncertainty": [spread]}, metrics={"uncertainty": 4.2})
    return run.close()


def _bundle(name: str, task: str, modality: list[str], units: str) -> dict[str, object]:
    return {"name": name, "version": "1.0.0", "hash": "b" * 64, "task": task, "modality": modality, "units": units}


def _nifti(path: Path, volume: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(volume.T.astype(np.float32), affine), path)
    return path


def _file(root: Path, path: Path) -> FileRow:
    status = path.stat()
    return FileRow(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
