"""K-space in BART's format: ``NAME.hdr``, text with 16 dimensions, and ``NAME.cfl``, complex64, first axis fastest.

Dimensions 0 to 2 are space, 3 the coils, 4 sets of sensitivity maps, 5 echoes, 10 and 11 time, 13 slices, 14 averages.
A 2-D acquisition leaves one of the first three at 1. Maps are taken from ``NAME_sens.cfl`` beside the data.
"""

from pathlib import Path

import numpy as np

from medseq.errors import FormatError, ShapeError
from medseq.io.kspace import FFTConvention
from medseq.io.kspace_fft import Origin
from medseq.io.kspace_hdf5 import settle_fourier
from medseq.io.kspace_layout import ArrayKSpace, Axes, Placed
from medseq.io.kspace_stored import FileArray, readable
from medseq.io.privacy import path_label
from medseq.io.volume import SourceRef

__all__ = ["open_bart_kspace", "open_bart_maps", "write_cfl"]

_NAMES = {3: "coil", 4: "map", 5: "contrast", 10: "phase", 11: "repetition", 13: "slice", 14: "average"}
_DIMS = 16


def open_bart_kspace(path: Path, *, fft: Origin | None = None) -> list[ArrayKSpace]:
    """Readers over a ``.cfl``/``.hdr`` pair, one an item (echo, time, average).

    Args:
        path: Either file of the pair.
        fft: Fourier convention; default ``centre`` (BART's), unless the energy says otherwise.

    Raises:
        FormatError: A missing half of the pair, a header that makes no sense, a short file, or a 3-D acquisition.
    """
    base, where = _base(path), path_label(path)
    dims = _dims(base, where)
    space = _space_axes(dims, where)
    kspace = _placed(base, dims, space, where)
    if kspace.size("map") > 1:
        raise FormatError(
            "k-space with an axis of sensitivity maps", where=where, found=f"{dims[4]} sets", wanted="dimension 4 = 1"
        )
    maps, sidecar = None, base.with_name(f"{base.name}_sens")
    files = [base.with_name(f"{base.name}.cfl"), base.with_name(f"{base.name}.hdr")]
    if sidecar.with_name(f"{sidecar.name}.cfl").is_file():
        name = f"{where}: sensitivity maps"
        map_dims = _dims(sidecar, name)
        maps = _placed(sidecar, map_dims, space, name)
        files.append(sidecar.with_name(f"{sidecar.name}.cfl"))
    _, rows, cols = kspace.shape
    reader = ArrayKSpace(
        kspace, FFTConvention("centre", "ortho"), (rows, cols), SourceRef("kspace", tuple(files)), maps=maps
    )
    settle_fourier(reader, fft)
    return reader.items()


def open_bart_maps(path: Path) -> Placed:
    """Sensitivity maps of a pair of their own, as ``bart ecalib`` and ``bart caldir`` write them."""
    base, where = _base(path), f"{path_label(path)}: sensitivity maps"
    dims = _dims(base, where)
    return _placed(base, dims, _space_axes(dims, where), where)


def write_cfl(base: Path, array: np.ndarray) -> None:
    """Write an array of at most 16 axes as ``base.cfl`` and ``base.hdr``, for BART to read."""
    dims = [*array.shape, *[1] * (_DIMS - array.ndim)]
    base.with_name(f"{base.name}.hdr").write_text("# Dimensions\n" + " ".join(str(n) for n in dims) + "\n")
    array.astype("<c8").T.tofile(base.with_name(f"{base.name}.cfl"))


def _base(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in (".cfl", ".hdr") else path


def _dims(base: Path, where: str) -> tuple[int, ...]:
    header = base.with_name(f"{base.name}.hdr")
    if not header.is_file() or not base.with_name(f"{base.name}.cfl").is_file():
        raise FormatError(
            "half of a BART pair is missing", where=where, wanted="NAME.cfl and NAME.hdr in the same folder"
        )
    with readable(where):
        lines = header.read_bytes()[:65536].decode("utf-8", "replace").splitlines()
    found: list[int] = []
    for number, line in enumerate(lines):
        if line.strip().lower() == "# dimensions" and number + 1 < len(lines):
            found = [int(word) for word in lines[number + 1].split() if word.isdecimal()]
    if not 1 <= len(found) <= _DIMS or min(found) < 1:
        raise FormatError(
            "the BART header has no usable dimensions", where=where, found=found[:_DIMS], wanted="1 to 16 numbers >= 1"
        )
    return tuple(found + [1] * (_DIMS - len(found)))


def _space_axes(dims: tuple[int, ...], where: str) -> tuple[int, int]:
    """Which two of the first three dimensions are row and column."""
    used = [axis for axis in range(3) if dims[axis] > 1]
    if len(used) == 3:
        raise FormatError(
            "a 3-D acquisition cannot be read slice by slice",
            where=where,
            found=f"dimensions {dims[:3]}",
            wanted="one of the first three = 1",
            remedy="transform the readout and move it to the slices: bart fft -iu 1 in t; bart transpose 0 13 t out",
        )
    others = {13, *_NAMES} | set(range(3))
    odd = [axis for axis in range(_DIMS) if dims[axis] > 1 and axis not in others]
    if odd:
        raise ShapeError(
            "a BART dimension that is not understood",
            where=where,
            found=f"dimension {odd[0]} = {dims[odd[0]]}",
            wanted="1",
            remedy="pick one with bart slice",
        )
    if len(used) == 2:
        return used[0], used[1]
    # A single line or point: keep the order and take what is there.
    return (0, 1) if not used or used[0] < 2 else (1, 2)


def _placed(base: Path, dims: tuple[int, ...], space: tuple[int, int], where: str) -> Placed:
    names: list[str] = [_NAMES.get(axis, "one") for axis in range(_DIMS)]
    names[space[0]], names[space[1]] = "row", "col"
    path = base.with_name(f"{base.name}.cfl")
    kept: list[tuple[str, int]] = [(name, n) for name, n in zip(names, dims, strict=True) if name != "one" or n > 1]
    # Trailing axes of 1 carry nothing; leaving them out keeps reads simple.
    axes: Axes = tuple(name for name, _ in kept)
    array = FileArray(path, 0, tuple(n for _, n in kept), np.dtype("<c8"), fortran=True)
    return Placed(array, axes, where)
