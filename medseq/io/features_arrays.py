"""Bags in numpy archives and in zarr: ``features`` (n, d) and, where known, ``coords`` (n, 2).

An ``.npz`` may also hold ``encoder``, ``mpp`` and ``patch_size_level0`` as single values; zarr has them as attributes,
as HDF5 does. A plain ``.npy`` holds features and nothing else. Archives written by `numpy.savez` are read in pieces;
those of `numpy.savez_compressed` too, but only forwards, so that one patch of many costs reading all before it.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import BackendError, FormatError
from medseq.io.features import Bag
from medseq.io.features_h5 import COORD_KEYS, as_coords, attribute_facts, checked_shape, require_key
from medseq.io.features_stored import FileFeatures, Spans, StoredFeatures
from medseq.io.kspace_stored import npy_header, readable
from medseq.io.privacy import path_label

__all__ = ["ZarrFeatures", "open_npy_bag", "open_npz_bag", "open_zarr_bag"]

_SINGLES = ("encoder", "mpp", "patch_size", "patch_size_level0", "slide_id", "patient_id")
# A value that describes a bag is short; one that is not is not read.
_SINGLE_BYTES = 64 << 10


def open_npz_bag(path: Path, *, slide_id: str | None = None, patient_id: str | None = None) -> Bag:
    """The bag of an ``.npz`` archive.

    Raises:
        FormatError: See `medseq.io.features_h5.open_h5_bag`; or Python objects in the archive.
    """
    where = path_label(path)
    with readable(where), zipfile.ZipFile(path) as archive:
        contents = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
        key = require_key(contents, where)
        with archive.open(contents[key]) as file:
            shape, dtype, fortran = npy_header(file, where)
            offset = file.tell()
        shape = _c_ordered(shape, fortran, where)
        coords_key = next((name for name in COORD_KEYS if name in contents), None)
        coords = None
        if coords_key is not None:
            # A corner is two numbers of at most 8 bytes; what is larger is no corner, and is not read.
            coords = as_coords(_member(archive, contents[coords_key], 16 * shape[0], where), shape[0], where)
        singles = {
            name: _member(archive, contents[name], _SINGLE_BYTES, where) for name in _SINGLES if name in contents
        }
    features = FileFeatures(path, contents[key], offset, shape, dtype)
    return _bag(features, coords, {name: _single(value) for name, value in singles.items()}, path, slide_id, patient_id)


def open_npy_bag(path: Path, *, slide_id: str | None = None, patient_id: str | None = None) -> Bag:
    """The bag of an ``.npy`` file: its features.

    Raises:
        FormatError: Not two axes, no instances, Python objects, a type that is not read, damage.
    """
    where = path_label(path)
    with readable(where), open(path, "rb") as file:
        shape, dtype, fortran = npy_header(file, where)
        offset = file.tell()
    features = FileFeatures(path, None, offset, _c_ordered(shape, fortran, where), dtype)
    return _bag(features, None, {}, path, slide_id, patient_id)


def open_zarr_bag(path: Path, *, slide_id: str | None = None, patient_id: str | None = None) -> Bag:
    """The bag of a zarr group: a folder.

    Raises:
        FormatError: See `medseq.io.features_h5.open_h5_bag`; or pieces of the features are missing.
        BackendError: zarr is not installed.
    """
    where = path_label(path)
    with _zarr_group(path) as group:
        contents = dict.fromkeys(group.array_keys())
        key = require_key(contents, where)
        array = group[key]
        shape = checked_shape(tuple(array.shape), where)
        # zarr reads a piece that is not there as zeros.
        if array.nchunks_initialized < array.nchunks:
            raise FormatError(
                "pieces of the features are missing",
                where=where,
                found=f"{array.nchunks_initialized} of {array.nchunks} chunks",
                remedy="copy the folder again, or write it with write_empty_chunks=True",
            )
        coords_key = next((name for name in COORD_KEYS if name in contents), None)
        coords = None if coords_key is None else as_coords(np.asarray(group[coords_key][:]), shape[0], where)
        attributes = {**dict(group.attrs), **dict(array.attrs)}
        attributes |= {} if coords_key is None else dict(group[coords_key].attrs)
        stored = array.dtype
    return _bag(ZarrFeatures(path, key, shape, stored), coords, attributes, path, slide_id, patient_id)


class ZarrFeatures(StoredFeatures):
    """An array of a zarr group.

    Args:
        path: Folder of the group.
        key: Name of the array.
        shape, stored: See `StoredFeatures`.
    """

    def __init__(self, path: Path, key: str, shape: tuple[int, int], stored: np.dtype) -> None:
        super().__init__(path, shape, stored)
        self.key = key

    def _spans(self, spans: Spans) -> Iterator[np.ndarray]:
        with _zarr_group(self.path) as group:
            array = group[self.key]
            for lo, hi in spans:
                yield np.asarray(array[lo:hi])


@contextmanager
def _zarr_group(path: Path) -> Iterator[Any]:
    try:
        import zarr
    except ImportError:
        raise BackendError(
            "zarr is not installed", where=path_label(path), remedy="pip install 'medseq[wsi]'"
        ) from None
    where = path_label(path)
    try:
        with readable(where):
            yield zarr.open_group(str(path), mode="r")
    except FormatError:
        raise
    except ValueError:
        raise FormatError("not a zarr group, or damaged", where=where, remedy="copy the folder again") from None


def _member(archive: zipfile.ZipFile, name: str, most: int, where: str) -> np.ndarray:
    """A small array of an archive; nothing larger than `most` bytes is read."""
    with archive.open(name) as file:
        shape, dtype, fortran = npy_header(file, where)
        wanted = dtype.itemsize * int(np.prod(shape, dtype=object))
        if wanted > most:
            raise FormatError(
                f"'{name.removesuffix('.npy')}' is too large for what it is",
                where=where,
                found=f"{dtype} {shape}",
                wanted=f"at most {most} bytes",
            )
        data = file.read(wanted)
        if len(data) < wanted:
            raise EOFError
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _single(value: np.ndarray) -> Any:
    """A value as an attribute holds it: text as text."""
    return str(value.item()) if value.dtype.kind in "US" and value.size == 1 else value


def _c_ordered(shape: tuple[int, ...], fortran: bool, where: str) -> tuple[int, int]:
    shape = checked_shape(shape[1:] if len(shape) == 3 and shape[0] == 1 else shape, where)
    if fortran and min(shape) > 1:
        raise FormatError(
            "the features lie column by column",
            where=where,
            found="Fortran order",
            wanted="rows behind each other",
            remedy="save numpy.ascontiguousarray(features)",
        )
    return shape


def _bag(
    features: StoredFeatures,
    coords: np.ndarray | None,
    attributes: dict[str, Any],
    path: Path,
    slide_id: str | None,
    patient_id: str | None,
) -> Bag:
    facts = attribute_facts([attributes])
    slide = facts.pop("slide_id", None)
    patient = facts.pop("patient_id", None)
    slide = slide_id or slide or path.stem
    return Bag(features, slide, patient_id or patient or slide, coords, **facts)
