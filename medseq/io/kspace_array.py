"""K-space in plain arrays: ``.npy``, ``.npz``, or any dataset of an HDF5 file, with a sidecar for what they mean."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from medseq.errors import FormatError
from medseq.io.kspace import FFTConvention
from medseq.io.kspace_fft import Origin
from medseq.io.kspace_hdf5 import require_key, settle_fourier
from medseq.io.kspace_layout import ArrayKSpace, Axes, Placed
from medseq.io.kspace_sidecar import Sidecar
from medseq.io.kspace_stored import FileArray, H5Array, NpzArray, StoredArray, h5_opened, open_npy, readable
from medseq.io.kspace_values import as_complex64, is_complex
from medseq.io.privacy import path_label
from medseq.io.source import SourceWarning
from medseq.io.volume import SourceRef

__all__ = ["open_array_kspace"]

_HDF5 = (".h5", ".hdf5", ".mat", ".mrd")


def open_array_kspace(path: Path, sidecar: Sidecar, *, fft: Origin | None = None) -> list[ArrayKSpace]:
    """Readers over an array file, one an item.

    Args:
        path: ``.npy``, ``.npz`` or HDF5.
        sidecar: What the array means; an empty one leaves it to the number of axes.
        fft: Fourier convention; default: the sidecar's, else what the energy says.

    Raises:
        FormatError: A missing array, Python objects, or axes that nothing names.
        ShapeError: Axes, mask or maps that do not fit.
    """
    where = path_label(path)
    key = sidecar.key or ("kspace" if path.suffix.lower() != ".npy" else None)
    array = _array(path, key, where)
    axes, notices = _axes(array, sidecar, where)
    kspace = Placed(array, axes, where)
    _, rows, cols = kspace.shape
    recon = sidecar.recon_shape or (rows, cols)
    recon = (min(recon[0], rows), min(recon[1], cols))
    fov, affine = _space(sidecar, recon)
    maps = None
    if sidecar.sens_maps is not None:
        stored = _companion(path, sidecar.sens_maps, where)
        maps = Placed(stored, sidecar.sens_axes or _map_axes(axes, stored.shape), f"{where}: 'sens_maps'")
    convention = sidecar.fft or FFTConvention()
    reader = ArrayKSpace(
        kspace,
        convention,
        recon,
        SourceRef("kspace", (path,)),
        fov_mm=fov,
        affine=affine,
        mask=_mask(path, sidecar, kspace, where),
        maps=maps,
        noise_cov=_noise(path, sidecar, where),
        phase_axis=sidecar.phase_axis,
        notices=notices,
    )
    settle_fourier(reader, fft or (sidecar.fft.origin if sidecar.fft else None))
    return reader.items()


def _array(path: Path, key: str | None, where: str) -> StoredArray:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return open_npy(path)
    if key is None:
        raise FormatError("no dataset is named", where=where, wanted="'key' in the sidecar")
    if suffix in _HDF5:
        with h5_opened(path) as file:
            names = {str(name): getattr(file.get(name), "shape", "group") for name in file}
            if key in file and hasattr(file[key], "shape"):
                names[key] = file[key].shape
        require_key(names, key, where)
        return H5Array(path, key)
    import zipfile

    with readable(where), zipfile.ZipFile(path) as archive:
        members = [name.removesuffix(".npy") for name in archive.namelist()]
    if key not in members:
        raise FormatError(
            f"no array '{key}'",
            where=where,
            found=f"arrays: {', '.join(members[:12]) or 'none'}",
            wanted="kspace, or 'key' in the sidecar",
        )
    return NpzArray(path, key)


def _companion(path: Path, name: str, where: str) -> StoredArray:
    """An array of the same file, or the whole of a ``.npy`` file beside it."""
    if name.lower().endswith(".npy"):
        beside = path.with_name(name)
        if "/" in name or not beside.is_file():
            raise FormatError(
                "a file that the sidecar names is missing", where=where, wanted="a .npy file in the same folder"
            )
        return open_npy(beside)
    if isinstance(_array(path, name, where), FileArray) and path.suffix.lower() == ".npy":
        raise FormatError(
            "a .npy file holds one array", where=where, found=name, wanted="the name of a .npy file in the same folder"
        )
    return _array(path, name, where)


def _axes(array: StoredArray, sidecar: Sidecar, where: str) -> tuple[Axes, list[SourceWarning]]:
    if sidecar.axes is not None:
        return sidecar.axes, []
    by_count: dict[int, Axes] = {2: ("row", "col"), 4: ("slice", "coil", "row", "col")}
    if is_complex(array.dtype) and len(array.shape) in by_count:
        axes = by_count[len(array.shape)]
        text = f"no sidecar names the axes of {array.shape}; they are taken for {', '.join(axes)}"
        return axes, [SourceWarning("axes-guessed", text)]
    raise FormatError(
        "nothing says what the axes of this array are",
        where=where,
        found=f"{array.dtype} {array.shape}",
        wanted="a sidecar of the same name with 'axes'",
        remedy="write one beside it: axes: [coil, row, col]",
    )


def _map_axes(axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Axes of maps stored as k-space is; per item or slice only if they have that many axes."""
    shared = tuple(name for name in axes if name in ("slice", "coil", "row", "col", "channel", "parts"))
    return shared if len(shared) == len(shape) else tuple(name for name in shared if name != "slice")


def _mask(path: Path, sidecar: Sidecar, kspace: Placed, where: str) -> Callable[[int], np.ndarray] | None:
    if sidecar.mask is None:
        return None
    array = _companion(path, sidecar.mask, where)
    per_slice = len(array.shape) >= 3 and array.shape[0] == kspace.size("slice")
    whole = [None] * (len(array.shape) - per_slice)
    return lambda i: array.take([i, *whole] if per_slice else whole)


def _noise(path: Path, sidecar: Sidecar, where: str) -> np.ndarray | None:
    if sidecar.noise_cov is None:
        return None
    array = _companion(path, sidecar.noise_cov, where)
    return as_complex64(array.take([None] * len(array.shape)), where)


def _space(sidecar: Sidecar, recon: tuple[int, int]) -> tuple[tuple[float, float] | None, np.ndarray | None]:
    """Field of view of the image and its affine; spacing without an affine gives axis-aligned slices."""
    if sidecar.affine is not None:
        row = float(np.linalg.norm(sidecar.affine[:3, 1]))
        col = float(np.linalg.norm(sidecar.affine[:3, 0]))
        return (row * recon[0], col * recon[1]), sidecar.affine
    if sidecar.spacing_mm is not None:
        step, row, col = sidecar.spacing_mm
        return (row * recon[0], col * recon[1]), np.diag([col, row, step, 1.0])
    return sidecar.fov_mm, None
