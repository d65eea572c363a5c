"""Attention of the patches of one slide, as HDF5: in the order of the bag it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseq.errors import FormatError
from medseq.io.atomic import clear, discard, fsync, publish, written
from medseq.io.privacy import path_label

__all__ = ["Attention", "read_attention", "write_attention"]


def write_attention(
    path: Path,
    values: Mapping[str, np.ndarray],
    coords: np.ndarray | None,
    attributes: Mapping[str, str | int | float],
) -> Path:
    """Write one number a patch and method, and where the patches are.

    Args:
        path: The file; appears when it is complete.
        values: Name -> ``(n,)``: ``attention``, ``attention_percentile``, …
        coords: ``(n, 2)`` top-left corners (x, y) in level-0 pixels, or None.
        attributes: Of the file.

    Raises:
        OutputError: Not writable.
        RetryableError: No space.
    """
    import h5py

    part = clear(path)
    try:
        with written("the attention"):
            with h5py.File(part, "w") as file:
                for name, array in values.items():
                    file.create_dataset(name, data=array.astype(np.float32), compression="gzip", shuffle=True)
                if coords is not None:
                    file.create_dataset("coords", data=coords, compression="gzip", shuffle=True)
                file.attrs.update(attributes)
            fsync(part)
        publish(part, path)
    finally:
        discard(part)
    return path


@dataclass(frozen=True)
class Attention:
    """What `write_attention` wrote.

    Attributes:
        values: Name -> ``(n,)`` float32.
        coords: ``(n, 2)`` top-left corners (x, y) in level-0 pixels, or None.
        attributes: Of the file.
    """

    values: dict[str, np.ndarray]
    coords: np.ndarray | None
    attributes: dict[str, str | int | float]


def read_attention(path: Path) -> Attention:
    """Read the numbers of one slide.

    Raises:
        FormatError: Damaged, or another kind of file.
    """
    import h5py

    where = path_label(path)
    try:
        with h5py.File(path, "r") as file:
            # Only what this module writes: no links that lead to other files.
            names = [name for name in file if file.get(name, getlink=True).__class__ is h5py.HardLink]
            values = {name: np.asarray(file[name][()]) for name in names if isinstance(file[name], h5py.Dataset)}
            found = {key: getattr(value, "item", lambda value=value: value)() for key, value in file.attrs.items()}
            attributes = {key: value for key, value in found.items() if isinstance(value, str | int | float)}
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise FormatError("the attention cannot be read", where=where, found=type(error).__name__) from None
    coords = values.pop("coords", None)
    lengths = {array.shape for array in values.values()}
    fits = len(lengths) == 1 and len(next(iter(lengths))) == 1
    if not fits or (coords is not None and coords.shape != (*next(iter(lengths)), 2)):
        raise FormatError("not the attention of a slide", where=where, found=f"{len(values)} arrays")
    return Attention(values, coords, attributes)
