"""Folders of simulated data to begin with: raw MR data, and CT volumes with and without noise.

All of it is drawn, none of it is of a person. Each folder has a manifest that splits the drawn subjects.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from medseq.data.content import sample_phantom
from medseq.data.recon import ellipses
from medseq.data.simulate import simulate_scan
from medseq.io.atomic import written
from medseq.io.kspace_h5_write import write_kspace_h5
from medseq.io.nifti_write import NiftiWriter
from medseq.io.volume import VolumeHeader, slice_affines

__all__ = ["TaskExample", "write_recon_example", "write_restore_example"]

_ROLES = ("train", "train", "train", "val", "test")


class TaskExample(NamedTuple):
    """What was written: `what` is one sentence for people, `use` the commands that take it."""

    folder: Path
    what: str
    use: tuple[str, ...]


def write_recon_example(folder: str | Path, *, size: int = 48, slices: int = 4, seed: int = 0) -> TaskExample:
    """Five simulated scans of four coils in HDF5, a manifest, and a configuration that trains on them.

    Raises:
        OutputError: The folder cannot be written.
    """
    folder, generator = Path(folder), torch.Generator().manual_seed(seed)
    for number, _ in enumerate(_ROLES):
        scans = [simulate_scan(ellipses((size, size), generator), 4, 0.01, generator) for _ in range(slices)]
        kspace = np.stack([scan.kspace.numpy() for scan in scans])
        maps = np.stack([scan.sens_maps.numpy() for scan in scans])
        write_kspace_h5(folder / "scans" / f"subject{number + 1}.h5", kspace, maps)
    _write_manifest(
        folder, "Simulated raw data of drawn phantoms", "scans/subject{}.h5", "medseq.data.recon_files.KSpaceFiles"
    )
    common = {"manifest": str((folder / "manifest.yaml").resolve()), "maps": "given"}
    reader = "medseq.data.recon_files.KSpaceFiles"
    data = {role: {"class_path": reader, "init_args": {**common, "role": role}} for role in ("train", "val")}
    _write_text(folder / "data.yaml", yaml.safe_dump({"data": data}, sort_keys=False))
    return TaskExample(
        folder,
        f"{len(_ROLES)} simulated scans of drawn phantoms, {slices} slices each, {size} x {size}, 4 coils",
        (
            f"medseq fit recon --config recon/tiny --config {folder / 'data.yaml'}",
            f"medseq data verify {folder / 'manifest.yaml'}",
        ),
    )


def write_restore_example(folder: str | Path, *, size: int = 48, slices: int = 2, seed: int = 0) -> TaskExample:
    """Five drawn CT volumes in NIfTI, as they are (``clean``) and with white noise of 40 HU (``noisy``).

    Raises:
        OutputError: The folder cannot be written.
    """
    folder, generator = Path(folder), torch.Generator().manual_seed(seed)
    for number, _ in enumerate(_ROLES):
        clean = torch.cat([sample_phantom(size, generator) for _ in range(slices)]).numpy()
        noise = 40.0 * torch.randn(clean.shape, generator=generator).numpy()
        for kind, volume in (("clean", clean), ("noisy", clean + noise)):
            _write_volume(folder / kind / f"subject{number + 1}.nii.gz", volume)
    _write_manifest(folder, "Simulated CT of drawn phantoms", "noisy/subject{}.nii.gz", "medseq.io.nifti.open_nifti")
    return TaskExample(
        folder,
        f"{len(_ROLES)} simulated CT volumes of drawn phantoms, {slices} slices of {size} x {size}, clean and noisy",
        (f"medseq predict ct-denoise {folder / 'noisy'} {folder / 'out'} --modality CT",),
    )


def _write_volume(path: Path, volume: np.ndarray) -> None:
    affine = np.diag([0.8, 0.8, 3.0, 1.0])
    planes = slice_affines(affine, len(volume))
    header = VolumeHeader(volume.shape, np.dtype("f4"), affine, planes, "CT", "HU")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = NiftiWriter(path)
    writer.begin(header)
    writer.write(0, volume)
    writer.commit()


def _write_manifest(folder: Path, title: str, path: str, reader: str) -> None:
    files = [
        {"path": path.format(number + 1), "subject": f"subject{number + 1}", "role": role}
        for number, role in enumerate(_ROLES)
    ]
    content: dict[str, Any] = {
        "title": title,
        "licence": "none needed: drawn by medseq",
        "get": "medseq data example",
        "cite": "not to be cited: simulated",
        "what": "for trying commands, not for results",
        "reader": reader,
        "files": files,
    }
    _write_text(folder / "manifest.yaml", yaml.safe_dump(content, sort_keys=False, width=110))


def _write_text(path: Path, text: str) -> None:
    with written("the example"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
