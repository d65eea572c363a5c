"""The one door to bags of patch features: what a file is shows in its first bytes, not in its name.

HDF5       CLAM, TRIDENT, `medseq wsi`             medseq.io.features_h5
.pt        CLAM; read without torch                medseq.io.features_pt
.npz .npy  numpy                                   medseq.io.features_arrays
zarr       a folder                                medseq.io.features_arrays
text       label, bag, features …: many bags       medseq.io.features_table
"""

import os
from pathlib import Path

from medseq.errors import FormatError, InputError
from medseq.io.features import Bag
from medseq.io.features_arrays import open_npy_bag, open_npz_bag, open_zarr_bag
from medseq.io.features_h5 import open_h5_bag
from medseq.io.features_pt import open_pt_bag
from medseq.io.features_table import read_bag_csv
from medseq.io.kspace_stored import readable
from medseq.io.privacy import path_label

__all__ = ["BAG_SUFFIXES", "bag_files", "bag_kind", "open_bag", "open_bags"]

# In the order in which a slide's bag is looked for where a folder has several.
BAG_SUFFIXES = (".h5", ".hdf5", ".pt", ".npz", ".npy", ".zarr")
_TEXT = (".csv", ".txt")
_HDF5, _ZIP, _NUMPY, _PICKLE = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x93NUMPY", b"\x80"
_ZARR = ("zarr.json", ".zgroup", ".zattrs")
_OPEN = {"h5": open_h5_bag, "pt": open_pt_bag, "npz": open_npz_bag, "npy": open_npy_bag, "zarr": open_zarr_bag}


def open_bag(path: str | os.PathLike, *, slide_id: str | None = None, patient_id: str | None = None) -> Bag:
    """The bag of one slide; its features stay in their file.

    Args:
        path: The file, or the folder of a zarr group.
        slide_id: Pseudonym of the slide; default: what the file says, else its name.
        patient_id: Pseudonym of the patient; default: what the file says, else the slide's.

    Raises:
        FormatError: No bag, an empty one, or one that contradicts itself; see the module of each format.
        InputError: A table of many bags, or no such file.
    """
    path = Path(path)
    kind = bag_kind(path)
    if kind in _OPEN:
        return _OPEN[kind](path, slide_id=slide_id, patient_id=patient_id)
    bags = read_bag_csv(path).bags
    if len(bags) != 1:
        raise InputError(
            "the table holds many bags", where=path_label(path), found=len(bags), wanted=1, remedy="use open_bags"
        )
    bag = bags[0]
    return Bag(bag.features, slide_id or bag.slide_id, patient_id or slide_id or bag.patient_id)


def open_bags(path: str | os.PathLike) -> list[Bag]:
    """All bags of a file or of a folder, the latter by name.

    Raises:
        FormatError: See `open_bag`.
        InputError: A folder without bags, or no such file.
    """
    path = Path(path)
    if path.is_dir() and not _is_zarr(path):
        return [bag for file in bag_files(path) for bag in open_bags(file)]
    return read_bag_csv(path).bags if bag_kind(path) == "csv" else [open_bag(path)]


def bag_files(folder: Path) -> list[Path]:
    """Files and zarr groups of a folder that are named like bags, by name.

    Raises:
        InputError: None.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (*BAG_SUFFIXES, *_TEXT))
    if not found:
        raise InputError(
            "the folder holds no bags", where=path_label(folder), wanted=", ".join((*BAG_SUFFIXES, *_TEXT))
        )
    return found


def bag_kind(path: Path) -> str:
    """``h5``, ``pt``, ``npz``, ``npy``, ``zarr`` or ``csv``.

    Raises:
        FormatError: None of them.
        InputError: No such file.
    """
    where = path_label(path)
    if path.is_dir():
        if _is_zarr(path):
            return "zarr"
        raise FormatError("a folder that is no zarr group", where=where, wanted="one bag", remedy="use open_bags")
    if not path.is_file():
        raise InputError("no such file", where=where)
    with readable(where), open(path, "rb") as file:
        start = file.read(8)
    if start == _HDF5:
        return "h5"
    if start.startswith(_NUMPY):
        return "npy"
    if start.startswith(_ZIP):
        return _zip_kind(path)
    if start.startswith(_PICKLE):
        return "pt"
    if path.suffix.lower() in _TEXT:
        return "csv"
    if path.suffix.lower() in (".h5", ".hdf5") and start:
        # HDF5 may begin behind a block of its user's.
        return "h5"
    raise FormatError(
        "not a bag of features",
        where=where,
        found=f"{path.stat().st_size} bytes of something else",
        wanted="HDF5, .pt, .npz, .npy, zarr or a table",
        remedy="copy the file again, if it should be one",
    )


def _zip_kind(path: Path) -> str:
    import zipfile

    with readable(path_label(path)), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return "pt" if any(name.rpartition("/")[2] == "data.pkl" for name in names) else "npz"


def _is_zarr(path: Path) -> bool:
    return path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in _ZARR)
