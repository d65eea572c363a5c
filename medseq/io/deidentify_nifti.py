"""A NIfTI file without texts: description, file names, extensions and whatever stands between header and voxels."""

import gzip
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medseq.errors import FormatError
from medseq.io.atomic import whole, written
from medseq.io.deidentify import FACES, Cleaned, Pseudonyms
from medseq.io.nifti import open_nifti
from medseq.io.privacy import path_label

__all__ = ["deidentify_nifti"]

_TEXTS = ("descrip", "aux_file", "intent_name", "data_type", "db_name", "unused_str")
_BLOCK = 1 << 20


def deidentify_nifti(path: Path, name: str, out: Path, names: Pseudonyms) -> Cleaned:
    """Write ``out/file-….nii[.gz]``: the same voxels, geometry and scale, no text.

    Args:
        path: The file.
        name: Its path below the input folder; the pseudonym of the file follows from it.
        out: Output folder.
        names: Pseudonyms.

    Raises:
        FormatError: Not a NIfTI file, or a damaged one.
        OutputError: The folder cannot be written.
    """
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    header = open_nifti(path).header
    source = header.source.header
    kind, size = (Nifti1Header, 348) if source.version == 1 else (Nifti2Header, 540)
    order = "<" if int.from_bytes(source.prefix[:4], "little") == size else ">"
    nifti: Any = kind(source.prefix[:size], endianness=order, check=False)
    for field in _TEXTS:
        if field in nifti.keys():
            nifti[field] = b""
    nifti["vox_offset"] = size + 4
    suffix = ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
    target = out / f"file-{names.name('file', name)}{suffix}"
    length = int(np.prod(header.shape, dtype=object)) * nifti.get_data_dtype().itemsize
    with whole(target) as partial, written("the output"), open(partial, "wb") as file:
        # No name and no time in the gzip header.
        stream = gzip.GzipFile("", "wb", 1, fileobj=file, mtime=0) if suffix == ".nii.gz" else file
        stream.write(nifti.binaryblock + bytes(4))
        _copy(path, len(source.prefix), length, stream)  # type: ignore[arg-type]
        if stream is not file:
            stream.close()
        file.flush()
        os.fsync(file.fileno())
    # NIfTI does not say which part of the body it shows.
    return Cleaned(target, (FACES,))


def _copy(path: Path, start: int, length: int, stream: BinaryIO) -> None:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    where = path_label(path)
    with opener(path, "rb") as source:

        def block(left: int) -> bytes:
            try:
                data = source.read(min(left, _BLOCK))
            except (EOFError, zlib.error, gzip.BadGzipFile):
                raise FormatError("the compressed voxels are damaged", where=where) from None
            if not data:
                raise FormatError("the voxels are cut short", where=where, found=f"{left} bytes are missing")
            return data

        while start:
            start -= len(block(start))
        while length:
            data = block(length)
            stream.write(data)
            length -= len(data)
