"""K-space in HDF5 files as the public data sets store it: fastMRI, Stanford, SKM-TEA, Calgary-Campinas.

    fastMRI     kspace (slice[, coil], row, col) complex; ismrmrd_header, mask (test data)
    Stanford    the same, with sensitivity_map (slice, coil, row, col)
    SKM-TEA     kspace (slice, row, col, echo, coil) complex; maps (…, coil, 1); masks/<name> (row, col)
    Calgary     kspace (slice, row, col, 2 * coil) real, coils as interleaved real and imaginary parts; already an
                image along the slices; see `kspace_fft` for its Fourier convention

Which one a file is shows in the type and the shape of `kspace`, not in its name.
"""

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import FormatError
from medseq.io.kspace import FFTConvention
from medseq.io.kspace_fft import Origin, checked_origin, image_wrapped
from medseq.io.kspace_layout import ArrayKSpace, Axes, Placed
from medseq.io.kspace_stored import H5Array, h5_opened
from medseq.io.kspace_values import is_complex
from medseq.io.mrd_header import MRDHeader, parse_mrd_header
from medseq.io.privacy import path_label
from medseq.io.source import SourceWarning
from medseq.io.volume import SourceRef

__all__ = ["MAP_KEYS", "find_maps", "open_h5_kspace", "require_key", "settle_fourier"]

MAP_KEYS = ("sensitivity_map", "sensitivity_maps", "sens_maps", "maps")
_MASKS = ("mask", "masks")
# No array of receive coils has more elements; no image has fewer columns than its coils in the data sets above.
_MAX_COILS = 64
# Calgary-Campinas sampled this share of the columns of the second phase axis.
_CALGARY_SAMPLED = 0.85


def open_h5_kspace(
    path: Path, *, fft: Origin | None = None, mask: str | None = None, as_stored: bool = False
) -> list[ArrayKSpace]:
    """Readers over the dataset `kspace` of an HDF5 file, one an item (an echo of SKM-TEA).

    Args:
        path: The file.
        fft: Fourier convention; default: what the format and the energy say.
        mask: Name of a dataset to take the mask from, ``masks/poisson_8.0x``; default: ``mask`` or ``masks``, if that
            is a single array.
        as_stored: Calgary only: no change of the phase, and the convention ``corner`` of the original toolkits.

    Raises:
        FormatError: No such dataset (the message lists the keys found), damage, or a layout that is not known.
    """
    where = path_label(path)
    with h5_opened(path) as file:
        contents = _contents(file)
    require_key(contents, "kspace", where)
    kspace = H5Array(path, "kspace")
    axes, notices = _axes(kspace, where)
    placed = Placed(kspace, axes, where)
    stored_mask, mask_notices = _mask(path, contents, mask, placed)
    header = _header(path, contents, where)
    recon, fov, padding = _geometry(header, placed, notices)
    reader = ArrayKSpace(
        placed,
        FFTConvention("centre", "ortho"),
        recon,
        SourceRef("kspace", (path,), header),
        fov_mm=fov,
        mask=stored_mask,
        maps=_maps(path, contents, placed),
        padding=padding,
        notices=notices + mask_notices,
    )
    _settle_fourier(reader, "channel" in axes, fft, as_stored)
    if "channel" in axes:
        reader.tidy = lambda data: _without_tail(data, reader)
    return reader.items()


def require_key(contents: dict[str, Any], key: str, where: str) -> None:
    """Refuse a file without a dataset, listing what it has.

    Raises:
        FormatError: No such dataset.
    """
    if key not in contents or contents[key] == "group":
        listed = ", ".join(sorted(contents)[:12]) or "none"
        raise FormatError(
            f"no dataset '{key}'",
            where=where,
            found=f"keys: {listed}",
            wanted=f"'{key}', or an ISMRMRD group with 'xml' and 'data'",
            remedy="name the dataset as 'key' in a sidecar (see docs/recon.md)",
        )


def _contents(file: Any) -> dict[str, Any]:
    """Shape of every dataset of the root, ``group`` for a group."""
    return {str(key): getattr(file.get(key), "shape", "group") for key in file}


def _axes(kspace: H5Array, where: str) -> tuple[Axes, list[SourceWarning]]:
    shape, guessed = kspace.shape, ""
    axes: Axes | None = None
    if is_complex(kspace.dtype):
        if len(shape) == 4 and shape[1] > _MAX_COILS >= shape[3]:
            axes, guessed = ("slice", "row", "col", "coil"), "the last axis is taken for the coils"
        elif len(shape) == 5:
            axes, guessed = ("slice", "row", "col", "contrast", "coil"), "taken for slice, row, col, echo, coil"
        else:
            axes = {2: ("row", "col"), 3: ("slice", "row", "col"), 4: ("slice", "coil", "row", "col")}.get(len(shape))
    elif kspace.dtype.kind in "fiu" and shape and shape[-1] % 2 == 0:
        if shape[-1] == 2 and len(shape) in (3, 5):
            axes = ("slice", "coil", "row", "col", "parts") if len(shape) == 5 else ("row", "col", "parts")
        elif len(shape) == 4 and shape[-1] <= 2 * _MAX_COILS:
            axes = ("slice", "row", "col", "channel")
    if axes is None:
        raise FormatError(
            "the layout of 'kspace' is not known",
            where=where,
            found=f"{kspace.dtype} {shape}",
            wanted="complex (slice, coil, row, col) or real (slice, row, col, 2 * coil)",
            remedy="name the axes in a sidecar (see docs/recon.md)",
        )
    notices = [SourceWarning("axes-guessed", f"shape {shape}: {guessed}")] if guessed else []
    return axes, notices


def _mask(
    path: Path, contents: dict[str, Any], asked: str | None, kspace: Placed
) -> tuple[Callable[[int], np.ndarray] | None, list[SourceWarning]]:
    key = asked or next((name for name in _MASKS if name in contents), None)
    if key is None:
        return None, []
    with h5_opened(path) as file:
        found = file.get(key)
        if found is None or not hasattr(found, "shape"):
            names = [f"{key}/{name}" for name in list(found or ())[:8]]
            if asked is None:
                text = f"the file offers masks for retrospective use ({', '.join(names)}); none is applied"
                return None, [SourceWarning("mask-choice", text)]
            raise FormatError(
                f"no mask '{asked}'", where=kspace.where, found=f"keys: {', '.join(names or sorted(contents)[:12])}"
            )
        shape = tuple(found.shape)
    array, slices = H5Array(path, key), kspace.size("slice")
    _, rows, cols = kspace.shape
    per_slice = shape[:1] == (slices,) and (len(shape) >= 3 or (shape == (slices, cols) and slices != rows))
    whole = [None] * (len(shape) - per_slice)
    return (lambda i: array.take([i, *whole] if per_slice else whole)), []


def _maps(path: Path, contents: dict[str, Any], kspace: Placed) -> Placed | None:
    key = next((name for name in MAP_KEYS if name in contents and contents[name] != "group"), None)
    if key is None:
        return None
    array, (coils, rows, cols) = H5Array(path, key), kspace.shape
    shape = array.shape
    if len(shape) == 5 and shape[1:4] == (rows, cols, coils):
        axes: Axes = ("slice", "row", "col", "coil", "map")
    elif len(shape) == 4 and shape[1:] == (rows, cols, coils) and coils != rows:
        axes = ("slice", "row", "col", "coil")
    elif len(shape) in (3, 4):
        axes = ("slice", "coil", "row", "col")[4 - len(shape) :]
    else:
        axes = ()
    return Placed(array, axes, f"{kspace.where}: '{key}'")


def find_maps(path: Path, where: str) -> H5Array:
    """The sensitivity maps of an HDF5 file.

    Raises:
        FormatError: None of the known names.
    """
    with h5_opened(path) as file:
        contents = _contents(file)
    key = next((name for name in (*MAP_KEYS, *sorted(contents)) if contents.get(name, "group") != "group"), None)
    if key is None or (key not in MAP_KEYS and len(contents) > 1):
        raise FormatError(
            "no sensitivity maps in this file",
            where=where,
            found=f"keys: {', '.join(sorted(contents)[:12]) or 'none'}",
            wanted=f"one of {', '.join(MAP_KEYS)}",
        )
    return H5Array(path, key)


def _header(path: Path, contents: dict[str, Any], where: str) -> MRDHeader | None:
    if "ismrmrd_header" not in contents:
        return None
    with h5_opened(path) as file:
        stored = file["ismrmrd_header"]
        if getattr(stored, "size", None) != 1:
            raise FormatError("the ISMRMRD header is no text", where=where, wanted="one string")
        text = np.asarray(stored[()]).item()
    return parse_mrd_header(text if isinstance(text, str | bytes) else b"", where)


def _geometry(
    header: MRDHeader | None, kspace: Placed, notices: list[SourceWarning]
) -> tuple[tuple[int, int], tuple[float, float] | None, tuple[int, int] | None]:
    """Shown shape, its field of view and the padding, from the header."""
    _, rows, cols = kspace.shape
    if header is None:
        return (rows, cols), None, None
    encoding = header.encodings[0]
    shown = encoding.recon.matrix
    recon = (min(shown[0], rows), min(shown[1], cols))
    if recon != shown[:2]:
        text = f"the scanner's image is {shown[0]} x {shown[1]}, k-space {rows} x {cols}: the image is {recon}"
        notices.append(SourceWarning("recon-shape", text))
    # One pixel is the encoded field of view over the encoded matrix, whatever the crop.
    (width, height, _), (x, y, _) = encoding.encoded.fov_mm, encoding.encoded.matrix
    fov = (width / x * recon[0], height / y * recon[1]) if width > 0 and height > 0 else None
    limit, padding = encoding.limits.get("kspace_encoding_step_1"), None
    if limit is not None and encoding.encoded.matrix[1] == cols:
        first = max(0, cols // 2 - limit.center)
        last = min(cols, cols // 2 - limit.center + limit.maximum + 1)
        if 0 <= first < last and (first, last) != (0, cols):
            padding = (first, last)
    return recon, fov, padding


def _settle_fourier(reader: ArrayKSpace, calgary: bool, fft: Origin | None, as_stored: bool) -> None:
    """Choose the convention by format and energy; the remarks say what was chosen against the format."""
    if calgary and as_stored:
        reader.fft = FFTConvention("corner", "ortho")
        return
    settle_fourier(reader, None if calgary and fft == "corner" else fft, calgary)


def settle_fourier(reader: ArrayKSpace, fft: Origin | None, calgary: bool = False, assumed: Origin = "centre") -> None:
    """Set `fft` and `modulate` of a reader from one slice in its middle.

    Args:
        reader: Its convention is replaced; its norm is kept.
        fft: What the caller asks for.
        calgary: The format stores the zero frequency in the middle and images by the plain inverse FFT.
        assumed: What the format or the sidecar says of the zero frequency.
    """
    probe = reader.kspace.read(reader.n // 2, reader.item)
    if not np.isfinite(probe).all() or not probe.any():
        # Refused or remarked on when that slice is read.
        reader.fft, reader.modulate = FFTConvention(fft or assumed, reader.fft.norm), calgary
        return
    origin, notices = checked_origin(fft, assumed, probe)
    wrapped = image_wrapped(probe, origin)
    reader.fft = FFTConvention(origin, reader.fft.norm)
    if origin == "centre":
        reader.modulate = wrapped if wrapped is not None else calgary
    reader.note(*notices)
    if wrapped and not calgary:
        text = "the image comes out wrapped round by half the field of view"
        if fft is None and origin == "centre":
            text += "; it is moved back"
        else:
            reader.modulate = False
            text += "; the Fourier convention looks wrong"
        reader.note(SourceWarning("fft-wrapped", text))


def _without_tail(kspace: np.ndarray, reader: ArrayKSpace) -> np.ndarray:
    """Zero the columns that Calgary-Campinas did not measure; some of its files hold rounding noise there."""
    cols = kspace.shape[2]
    first = ceil(_CALGARY_SAMPLED * cols)
    tail, mirror = kspace[..., first:], kspace[..., 1 : cols - first + 1]
    if not tail.any() or np.abs(tail).mean() > 1e-2 * np.abs(mirror).mean():
        return kspace
    text = f"columns {first} to {cols - 1} hold next to nothing and count as unmeasured (partial Fourier)"
    reader.note(SourceWarning("partial-fourier", text))
    out = kspace.copy()
    out[..., first:] = 0
    return out
