"""Bags that CLAM stores as ``.pt``: a tensor ``(n, d)``, or a dictionary with ``features`` and ``coords``. No torch.

The description of the tensors is read without running anything (`medseq.io.tensor_description`): a file that wants
code to be run is refused. The numbers themselves are read as they are asked for.

    zip     data.pkl, data/<key>: the numbers of a storage, byteorder
    before torch 1.6: five pickles behind each other (magic, version, machine, tensors, keys), then, for every key, how
    many numbers (int64) and the numbers
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import FormatError
from medseq.io.features import Bag
from medseq.io.features_h5 import COORD_KEYS, as_coords, attribute_facts, checked_shape, require_key
from medseq.io.features_stored import FileFeatures
from medseq.io.kspace_stored import readable
from medseq.io.privacy import path_label
from medseq.io.tensor_description import StoredTensor, read_description

__all__ = ["open_pt_bag"]

_MAGIC = 0x1950A86A20F9469CFC6C
# A description is text of some hundred bytes; features are not in it.
_DESCRIPTION_BYTES = 16 << 20
_LEGACY_BYTES = 1 << 20


def open_pt_bag(path: Path, *, slide_id: str | None = None, patient_id: str | None = None) -> Bag:
    """The bag of a ``.pt`` file.

    Raises:
        FormatError: The file wants code to be run; holds no features; or see `medseq.io.features_h5.open_h5_bag`.
    """
    where = path_label(path)
    with readable(where):
        content, offsets, prefix = _zipped(path, where) if zipfile.is_zipfile(path) else _legacy(path, where)
    entries = content if isinstance(content, dict) else {"features": content}
    entries = {str(key): value for key, value in entries.items()}
    found = entries[require_key(entries, where)]
    if not isinstance(found, StoredTensor):
        raise FormatError(
            "no tensor of features", where=where, found=type(found).__name__, wanted="a tensor (n, d), or a dictionary"
        )
    features = _features(path, found, offsets, prefix, where)
    corners = next((entries[name] for name in COORD_KEYS if name in entries), None)
    coords = None
    if isinstance(corners, StoredTensor):
        coords = as_coords(_whole(path, corners, offsets, prefix, 16 * len(features), where), len(features), where)
    facts = attribute_facts([{key: value for key, value in entries.items() if isinstance(value, str | int | float)}])
    slide = slide_id or facts.pop("slide_id", None) or path.stem
    patient = patient_id or facts.pop("patient_id", None) or slide
    for name in ("slide_id", "patient_id"):
        facts.pop(name, None)
    return Bag(features, slide, patient, coords, **facts)


def _zipped(path: Path, where: str) -> tuple[Any, dict[str, int], str | None]:
    """Description, offset of each storage in its member, and the folder of the members."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        described = next((name for name in names if name.rpartition("/")[2] == "data.pkl"), None)
        if described is None:
            raise FormatError("not a file of torch", where=where, found="an archive without data.pkl")
        folder = described.removesuffix("data.pkl")
        if archive.getinfo(described).file_size > _DESCRIPTION_BYTES:
            raise FormatError("the description of the tensors is too large", where=where, wanted="one tensor a file")
        order = f"{folder}byteorder"
        if order in names and archive.read(order) != b"little":
            raise FormatError("the numbers are big-endian", where=where, remedy="save them on a usual machine")
        content = read_description(io.BytesIO(archive.read(described)), where)
    prefix = f"{folder}data/"
    return content, {name.removeprefix(prefix): 0 for name in names if name.startswith(prefix)}, prefix


def _legacy(path: Path, where: str) -> tuple[Any, dict[str, int], str | None]:
    """Description and offset of each storage in the file."""
    with open(path, "rb") as stream:
        # A damaged description may ask for more text than there is memory; here it gets what there is.
        head = io.BytesIO(stream.read(_LEGACY_BYTES))
        magic, _, machine, content, keys = (read_description(head, where) for _ in range(5))
        stream.seek(head.tell())
        if magic != _MAGIC or not isinstance(keys, list) or not dict(machine).get("little_endian", True):
            raise FormatError("not a file of torch", where=where, wanted="what torch.save writes")
        sizes = {tensor.key: tensor.itemsize for tensor in _tensors(content)}
        offsets: dict[str, int] = {}
        for key in keys:
            count = int.from_bytes(stream.read(8), "little")
            offsets[str(key)] = stream.tell()
            if key in sizes:
                stream.seek(count * sizes[key], 1)
            elif key != keys[-1]:
                raise FormatError("a storage belongs to no tensor", where=where, remedy="save one tensor a file")
    return content, offsets, None


def _tensors(content: Any) -> list[StoredTensor]:
    values = content.values() if isinstance(content, dict) else [content]
    return [value for value in values if isinstance(value, StoredTensor)]


def _features(
    path: Path, tensor: StoredTensor, offsets: dict[str, int], prefix: str | None, where: str
) -> FileFeatures:
    shape = tensor.shape[1:] if len(tensor.shape) == 3 and tensor.shape[0] == 1 else tensor.shape
    shape = checked_shape(shape, where)
    if not tensor.is_contiguous:
        raise FormatError(
            "the rows of the tensor do not lie behind each other",
            where=where,
            found=f"stride {tensor.stride}",
            remedy="save tensor.contiguous()",
        )
    member, offset = _place(tensor, offsets, prefix)
    return FileFeatures(path, member, offset, shape, tensor.dtype)


def _whole(
    path: Path, tensor: StoredTensor, offsets: dict[str, int], prefix: str | None, most: int, where: str
) -> np.ndarray:
    """A small tensor; nothing larger than `most` bytes is read."""
    count = int(np.prod(tensor.shape, dtype=object))
    if isinstance(tensor.dtype, str) or not tensor.is_contiguous or count * tensor.itemsize > most:
        raise FormatError(
            "coords have the wrong form", where=where, found=f"{tensor.dtype} {tensor.shape}", wanted="integers (n, 2)"
        )
    member, offset = _place(tensor, offsets, prefix)
    with readable(where), open(path, "rb") as plain:
        if member is None:
            plain.seek(offset)
            data = plain.read(count * tensor.itemsize)
        else:
            with zipfile.ZipFile(path) as archive, archive.open(member) as inside:
                inside.seek(offset)
                data = inside.read(count * tensor.itemsize)
        if len(data) < count * tensor.itemsize:
            raise EOFError
    return np.frombuffer(data, tensor.dtype).reshape(tensor.shape)


def _place(tensor: StoredTensor, offsets: dict[str, int], prefix: str | None) -> tuple[str | None, int]:
    """Member of the archive, or None, and the byte of the tensor's first number in it."""
    member = None if prefix is None else f"{prefix}{tensor.key}"
    return member, offsets.get(tensor.key, 0) + tensor.first * tensor.itemsize
