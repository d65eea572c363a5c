"""Raw data to HDF5 as fastMRI and Stanford lay it out, for examples and tests: `kspace` and `sensitivity_map`."""

from pathlib import Path

import numpy as np
from jaxtyping import Complex

from medseq.errors import ShapeError
from medseq.io.atomic import whole, written

__all__ = ["write_kspace_h5"]


def write_kspace_h5(
    path: Path,
    kspace: Complex[np.ndarray, "slice coil row col"],
    sens_maps: Complex[np.ndarray, "slice coil row col"] | None = None,
) -> None:
    """Write one scan; an earlier file of this name is replaced.

    Raises:
        ShapeError: Not ``(slice, coil, row, col)``, or maps of another shape.
        OutputError: It cannot be written.
    """
    if kspace.ndim != 4 or (sens_maps is not None and sens_maps.shape != kspace.shape):
        found = (kspace.shape, None if sens_maps is None else sens_maps.shape)
        raise ShapeError("raw data and maps do not fit", found=found, wanted="(slice, coil, row, col), both")
    import h5py

    with written("the raw data"), whole(path) as partial, h5py.File(partial, "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
        if sens_maps is not None:
            file["sensitivity_map"] = sens_maps.astype(np.complex64)
