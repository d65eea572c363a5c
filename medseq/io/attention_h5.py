"""Attention of the patches of one slide, as HDF5: in the order of the bag it belongs to."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseq.io.atomic import clear, discard, fsync, publish, written

__all__ = ["write_attention"]


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
