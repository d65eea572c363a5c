"""Open raw MR data of any format that medseq reads; which one it is shows in the file's content, not in its name.

Remarks are collected in ``reader.notices``; reading slices may add some. Codes:

    fft-convention     the energy of k-space contradicts the Fourier convention assumed or asked for
    fft-wrapped        the image came out wrapped round by half the field of view
    mask-derived       no mask in the file: taken from the zeros
    mask-disagrees     mask and k-space contradict each other
    mask-choice        the file offers masks for retrospective use; none is applied
    no-centre          the centre of k-space was not sampled
    zero-coils         coils that measured nothing          empty-slice     a slice of zeros
    axes-guessed       nothing names the axes               map-sets        several sets of maps, the first is used
    recon-shape        the scanner's image would have another size
    padding-not-empty  padded columns hold samples          partial-fourier, partial-echo, repeated-lines, epi
    calibration-left-out  readouts that are neither image nor noise were not used
    no-orientation, uneven-spacing  no affine               prewhitened     noise made independent, unit variance
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from medseq.errors import FormatError, InputError
from medseq.io.kspace import KSpaceReader
from medseq.io.kspace_array import open_array_kspace
from medseq.io.kspace_bart import open_bart_kspace, open_bart_maps
from medseq.io.kspace_fft import Origin, origin_name
from medseq.io.kspace_hdf5 import MAP_KEYS, find_maps, open_h5_kspace
from medseq.io.kspace_ismrmrd import MRDKSpace, open_mrd_kspace
from medseq.io.kspace_ismrmrd_index import find_group
from medseq.io.kspace_layout import ArrayKSpace, Axes, Placed
from medseq.io.kspace_process import Compression, with_fewer_coils, with_maps, with_white_noise
from medseq.io.kspace_sidecar import Sidecar, find_sidecar, read_sidecar
from medseq.io.kspace_stored import NpzArray, StoredArray, open_npy, readable
from medseq.io.privacy import path_label

__all__ = ["KSpaceKind", "kspace_companions", "kspace_files", "kspace_kind", "open_kspace", "open_kspace_items"]

KSpaceKind = Literal["hdf5", "numpy", "bart"]
_HDF5_SUFFIXES = (".h5", ".hdf5", ".mrd", ".mat")


def kspace_kind(path: Path) -> KSpaceKind | None:
    """The family of a file by its first bytes; None for what is no raw data, the sidecars included."""
    path = Path(path)
    if path.suffix.lower() == ".cfl" or (not path.suffix and path.with_name(f"{path.name}.cfl").is_file()):
        return "bart"
    if not path.is_file():
        return None
    with readable(path_label(path)), open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if start.startswith(b"\x93NUMPY") or (start.startswith(b"PK") and path.suffix.lower() == ".npz"):
        return "numpy"
    if path.suffix.lower() == ".hdr" and start.lstrip().lower().startswith(b"# dimensions"):
        return "bart"
    # Named so, but damaged or with a user block in front: opening says what is wrong.
    return "hdf5" if path.suffix.lower() in _HDF5_SUFFIXES else None


def kspace_files(paths: Iterable[Path]) -> list[Path]:
    """The files among these that are raw data of their own: no headers, maps or arrays that belong to another one."""
    paths = sorted(Path(path) for path in paths)
    belongs = {other for path in paths for other in kspace_companions(path)}
    return [path for path in paths if path.suffix.lower() != ".hdr" and path not in belongs and kspace_kind(path)]


def kspace_companions(path: Path) -> list[Path]:
    """The other files that a file of raw data consists of: header, maps, sidecar and what the sidecar names.

    Raises:
        FormatError: A sidecar that cannot be read.
    """
    found: list[Path] = []
    suffix = path.suffix.lower()
    side = find_sidecar(path) if suffix in (".npy", ".npz", *_HDF5_SUFFIXES) else None
    if side is not None:
        fields = read_sidecar(side)
        named = (fields.mask, fields.sens_maps, fields.noise_cov)
        found = [side, *(path.with_name(name) for name in named if name is not None and name.lower().endswith(".npy"))]
    if suffix == ".cfl":
        maps = path.with_name(f"{path.stem}_sens")
        found = [path.with_suffix(".hdr"), maps.with_name(f"{maps.name}.cfl"), maps.with_name(f"{maps.name}.hdr")]
    return [other for other in found if other.is_file()]


def open_kspace_items(
    path: Path | str,
    *,
    fft: str | None = None,
    mask: str | None = None,
    sens: Path | str | None = None,
    virtual_coils: int | None = None,
    compression: Compression = "svd",
    prewhiten: bool = True,
) -> list[KSpaceReader]:
    """Readers over a file of raw data, one for each contrast, phase, repetition, average and set.

    Each has, besides what `KSpaceReader` asks for, ``label`` (empty for the only item of a file) and ``notices``.

    Args:
        path: fastMRI, Stanford, SKM-TEA or Calgary-Campinas HDF5, ISMRMRD, BART ``.cfl``/``.hdr``, ``.npy``, ``.npz``
            or any HDF5 with a sidecar.
        fft: ``centre`` (or ``centred``) or ``corner``; obeyed, with a remark if the energy contradicts. Default: what
            the format says, corrected by clear evidence, with a remark.
        mask: Dataset of an HDF5 file to take the sampling mask from.
        sens: File of coil sensitivities to use: ``.cfl``, ``.npy``, ``.npz`` or HDF5, on the grid of k-space.
        virtual_coils: Compress to at most this many coils.
        compression: ``svd`` or ``geometric``.
        prewhiten: Make known noise independent with unit variance.

    Raises:
        FormatError: Not raw data, damaged, or not understood; the message lists what was found.
        ShapeError: Mask, maps, axes or noise that do not fit k-space.
        InputError: An option that makes no sense.
    """
    path = Path(path)
    bases = _opened(path, None if fft is None else origin_name(fft), mask)
    readers: list[KSpaceReader] = list(bases)
    if sens is not None:
        maps = _maps(Path(sens))
        readers = [with_maps(reader, maps) for reader in readers]
    if prewhiten and bases[0].noise_cov is not None:
        readers = [with_white_noise(reader) for reader in readers]
    if virtual_coils is not None:
        readers = [with_fewer_coils(reader, virtual_coils, compression) for reader in readers]
    return readers


def open_kspace(path: Path | str, *, item: str | None = None, **options: object) -> KSpaceReader:
    """The reader of a file with one item, or of the item named.

    Args:
        path: See `open_kspace_items`.
        item: Its label, ``contrast-1``; not needed for a file with one item.
        **options: See `open_kspace_items`.

    Raises:
        InputError: Several items and none, or an unknown one, named.
    """
    readers = open_kspace_items(path, **options)  # type: ignore[arg-type]
    labels = [str(getattr(reader, "label", "")) for reader in readers]
    if item is None and len(readers) == 1:
        return readers[0]
    if item not in labels:
        raise InputError(
            "the file holds several items" if item is None else "no such item",
            where=path_label(path),
            found=item,
            wanted=f"item = one of {', '.join(labels[:12])}",
            remedy="name one, or open them all with open_kspace_items",
        )
    return readers[labels.index(item)]


def _opened(path: Path, fft: Origin | None, mask: str | None) -> list[ArrayKSpace] | list[MRDKSpace]:
    where, kind = path_label(path), kspace_kind(path)
    side = find_sidecar(path) if kind in ("hdf5", "numpy") else None
    if mask is not None and kind != "hdf5":
        raise InputError("only HDF5 files hold masks by name", where=where, found=mask, wanted="no 'mask'")
    if kind == "bart":
        return open_bart_kspace(path, fft=fft)
    if side is not None or kind == "numpy":
        return open_array_kspace(path, read_sidecar(side) if side is not None else Sidecar(), fft=fft)
    if kind == "hdf5":
        group = find_group(path)
        return open_h5_kspace(path, fft=fft, mask=mask) if group is None else open_mrd_kspace(path, group, fft=fft)
    raise FormatError(
        "not raw MR data that can be read" if path.exists() else "no such file",
        where=where,
        wanted="HDF5 (fastMRI, Calgary-Campinas, ISMRMRD), BART .cfl/.hdr, .npy or .npz",
    )


def _maps(path: Path) -> Placed:
    """Sensitivity maps of a file of their own: ``([slice,] coil, row, col)``, or BART's dimensions."""
    where, kind = f"{path_label(path)}: sensitivity maps", kspace_kind(path)
    if kind == "bart":
        return open_bart_maps(path)
    array: StoredArray
    if kind == "hdf5":
        array = find_maps(path, where)
    elif kind == "numpy" and path.suffix.lower() == ".npz":
        with readable(where), zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        array = NpzArray(path, next((name for name in MAP_KEYS if name in names), names[0] if names else ""))
    elif kind == "numpy":
        array = open_npy(path)
    else:
        raise FormatError("sensitivity maps cannot be read", where=where, wanted=".cfl, .npy, .npz or HDF5")
    side = find_sidecar(path)
    axes: Axes | None = read_sidecar(side).axes if side is not None else None
    return Placed(array, axes or ("slice", "coil", "row", "col")[4 - len(array.shape) :], where)
