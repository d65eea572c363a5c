"""Raw MR data without identifiers: HDF5 (fastMRI, ISMRMRD and their relatives), BART and numpy arrays.

A new file is built from what is known to be data; everything else (unknown data sets, texts, attributes) is left
behind, and how much was is said in the notes.
"""

import os
import re
import tokenize
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import FormatError
from medseq.io.atomic import clear, fsync, publish_bytes, whole, written
from medseq.io.deidentify import FACES, Cleaned, Identifiers, Options, Pseudonyms, Refused
from medseq.io.deidentify_mrd import clean_mrd_header, mrd_patient
from medseq.io.privacy import path_label

__all__ = ["deidentify_array", "deidentify_bart", "deidentify_hdf5"]

_HEADERS = ("ismrmrd_header", "xml")
_ARRAYS = re.compile(
    r"(kspace|mask|reconstruction_(rss|esc)|reconstruction|sens_maps|sensitivity_maps?|maps|noise(_cov)?|data|target"
    r"|image|acs|trajectory|dcf|features|coords|echo[12]|contrast_?\d*)$"
)
_GROUPS = re.compile(r"dataset(_?\d+)?$")
# Text attributes with a technical vocabulary (fastMRI); numbers are kept whatever their name.
_TEXT_ATTRIBUTES = re.compile(r"acquisition$|encoder$|layout$|axes$")
_PATIENT = "patient_id"


def deidentify_hdf5(path: Path, name: str, out: Path, names: Pseudonyms, options: Options) -> Cleaned:
    """Write ``out/file-….h5`` (or ``out/P-…/file-….h5`` where the file names a patient) with the arrays alone.

    Raises:
        Refused: It holds no array that is known.
        FormatError: Not an HDF5 file, or a damaged one.
        OutputError: The folder cannot be written.
    """
    import h5py

    where = path_label(path)
    try:
        with h5py.File(path, "r") as source:
            patient, marks = _who(source, where)
            folder = out / names.patient(patient) if patient else out
            suffix = path.suffix.lower() if path.suffix.lower() in (".h5", ".hdf5", ".mrd") else ".h5"
            target = folder / f"file-{names.name('file', name)}{suffix}"
            with whole(target) as partial:
                with h5py.File(partial, "w", track_order=True) as new:
                    copier = _Copier(patient, marks, names, options, where)
                    copier.group(source, new)
                if not copier.arrays:
                    raise Refused("no data set that is known", where=where, wanted="kspace, or an ISMRMRD dataset")
                fsync(partial)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, Refused | FormatError):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            with written("the output"):
                raise
        raise FormatError("the HDF5 file cannot be read", where=where, found=type(error).__name__) from None
    left = (f"{copier.dropped} unknown data sets, texts or attributes were left out",) if copier.dropped else ()
    return Cleaned(target, (FACES, *left))


def deidentify_array(path: Path, name: str, out: Path, names: Pseudonyms) -> Cleaned:
    """Write ``out/file-….npy``: the array of a ``.npy`` file, and nothing that stands behind it."""
    where = path_label(path)
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, tokenize.TokenError):
        raise FormatError("not a numpy array", where=where) from None
    if array.dtype.kind not in "biufc":
        raise Refused("not an array of numbers", where=where, found=array.dtype)
    target = out / f"file-{names.name('file', name)}.npy"
    with whole(target) as partial, written("the output"), open(partial, "wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return Cleaned(target, (FACES,))


def deidentify_bart(path: Path, name: str, out: Path, names: Pseudonyms) -> Cleaned:
    """Write ``out/file-….cfl`` and ``.hdr``: of the header, which quotes commands and files, the dimensions alone."""
    where = path_label(path)
    header = path.with_suffix(".hdr")
    try:
        lines = header.read_text("utf-8", "replace").splitlines()
        sizes = [int(word) for word in lines[lines.index("# Dimensions") + 1].split()]
    except (OSError, ValueError, IndexError):
        raise FormatError("no header with dimensions", where=where, wanted="the .hdr file beside it") from None
    if path.stat().st_size != int(np.prod(sizes, dtype=object)) * 8:
        raise FormatError("the array is not as large as its header says", where=where, found=f"{sizes}")
    stem = names.name("file", name.removesuffix(path.suffix))
    target = out / f"file-{stem}.cfl"
    text = f"# Dimensions\n{' '.join(map(str, sizes))}\n".encode()
    publish_bytes(clear(target.with_suffix(".hdr")), target.with_suffix(".hdr"), text)
    with whole(target) as partial, written("the output"):
        with open(path, "rb") as source, open(partial, "wb") as file:
            while block := source.read(1 << 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    return Cleaned(target, (FACES,))


class _Copier:
    """Copies known arrays from one HDF5 file to another and counts what it leaves behind."""

    def __init__(self, patient: str, marks: Identifiers, names: Pseudonyms, options: Options, where: str):
        self._patient, self._marks, self._names, self._options = patient, marks, names, options
        self._where = where
        self.arrays = self.dropped = 0

    def group(self, source: Any, new: Any) -> None:
        import h5py

        self._attributes(source, new)
        for name in source:
            # A link may lead out of the file, to anything on the disk.
            if not isinstance(source.get(name, getlink=True), h5py.HardLink):
                self.dropped += 1
                continue
            item = source[name]
            if isinstance(item, h5py.Group) and _GROUPS.match(name):
                self.group(item, new.create_group(name))
            elif isinstance(item, h5py.Dataset) and name in _HEADERS:
                self._header(item, new, name)
            elif isinstance(item, h5py.Dataset) and _ARRAYS.match(name) and _is_data(name, item.dtype):
                source.copy(item, new, name, without_attrs=True)
                self._attributes(item, new[name])
                self.arrays += 1
            else:
                self.dropped += 1

    def _header(self, item: Any, new: Any, name: str) -> None:
        import h5py

        raw = item[()] if item.shape == () else item[0]
        text = clean_mrd_header(raw, self._names, self._options, self._where)
        kind = h5py.string_dtype()
        if item.shape == ():
            new.create_dataset(name, data=text, dtype=kind)
        else:
            new.create_dataset(name, data=np.array([text], dtype=object), dtype=kind)

    def _attributes(self, source: Any, new: Any) -> None:
        for name in source.attrs:
            value = source.attrs[name]
            safe_name = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,31}", name) and not self._marks.found(name)
            if name == _PATIENT:
                new.attrs[name] = self._names.patient(self._patient)
            elif safe_name and _numeric(np.asarray(value).dtype) and np.asarray(value).dtype.itemsize > 1:
                new.attrs[name] = value
            elif _TEXT_ATTRIBUTES.match(name) and isinstance(value, str) and not self._marks.found(value):
                new.attrs[name] = value
            else:
                self.dropped += 1


def _is_data(name: str, dtype: np.dtype) -> bool:
    # Bytes may be a text; a mask may be bytes.
    return _numeric(dtype) and (dtype.base.itemsize > 1 or name == "mask")


def _numeric(dtype: np.dtype) -> bool:
    """Numbers, complex numbers, or records and lists of them (ISMRMRD); no texts, no references, no opaque bytes."""
    import h5py

    if dtype.names:
        return all(_numeric(dtype[name]) for name in dtype.names)
    listed = h5py.check_vlen_dtype(dtype)
    if listed is not None:
        return listed not in (str, bytes) and _numeric(np.dtype(listed))
    base = dtype.base
    return base.kind in "biufc" or (base.names is not None and _numeric(base))


def _who(source: Any, where: str) -> tuple[str, Identifiers]:
    """The patient, from the attribute `patient_id` or the XML header; an empty text if neither says."""
    groups = [source, *(source[name] for name in source if _GROUPS.match(name) and hasattr(source[name], "keys"))]
    said = next((str(group.attrs[_PATIENT]) for group in groups if _PATIENT in group.attrs), "")
    for group in groups:
        for name in _HEADERS:
            if name in group:
                raw = group[name][()] if group[name].shape == () else group[name][0]
                patient, marks = mrd_patient(raw, where)
                return (f"|{said}" if said else patient), marks
    return (f"|{said}" if said else ""), Identifiers((), (said,))
