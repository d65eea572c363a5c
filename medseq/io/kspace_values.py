"""From what files store to what a `KSpaceSlice` holds: complex64 samples, a boolean mask, and remarks on both.

Pure functions over arrays; no files.
"""

import numpy as np

from medseq.errors import FormatError, ShapeError
from medseq.io.source import SourceWarning

__all__ = ["as_complex64", "as_mask", "derived_mask", "is_complex", "reconciled", "require_finite", "zero_coils"]

_PARTS = ({"r", "i"}, {"real", "imag"}, {"re", "im"})


def is_complex(dtype: np.dtype) -> bool:
    """Whether one element is a complex number: complex64/128, or a compound of a real and an imaginary part."""
    return dtype.kind == "c" or (dtype.names is not None and {name.lower() for name in dtype.names} in _PARTS)


def as_complex64(array: np.ndarray, where: str) -> np.ndarray:
    """Samples as complex64.

    Args:
        array: Complex of any precision, or a compound ``(r, i)``, ``(real, imag)`` or ``(re, im)`` of any float or
            integer; real numbers get no imaginary part.
        where: What messages call the file.

    Returns:
        Same shape, complex64. Values beyond float32 become infinite (see `require_finite`).

    Raises:
        FormatError: Elements that are not numbers.
    """
    with np.errstate(over="ignore"):
        if array.dtype.names is not None and is_complex(array.dtype):
            real, imag = sorted(array.dtype.names, key=lambda name: name.lower()[0] == "i")
            out = np.empty(array.shape, np.complex64)
            out.real, out.imag = array[real], array[imag]
            return out
        if array.dtype.kind not in "cfiu":
            raise FormatError(
                "k-space of this type cannot be read", where=where, found=array.dtype, wanted="complex or real numbers"
            )
        return np.ascontiguousarray(array, dtype=np.complex64)


def require_finite(kspace: np.ndarray, where: str) -> None:
    """Refuse NaN and infinite samples: one of them makes every pixel of the image NaN.

    Raises:
        FormatError: With the number of bad samples and the coils that hold them.
    """
    # The sum is finite unless a sample is not (or float32 overflows): a pass without a temporary array.
    with np.errstate(all="ignore"):
        if np.isfinite(kspace.sum(dtype=np.complex128)):
            return
    bad = ~np.isfinite(kspace)
    if not bad.any():
        return
    coils = np.flatnonzero(bad.any(axis=(1, 2)))
    raise FormatError(
        "k-space holds NaN or infinite samples",
        where=where,
        found=f"{int(bad.sum())} of {bad.size} samples, in coils {_few(coils)}",
        wanted="finite samples",
        remedy="export the data again, or set what was not measured to 0",
    )


def zero_coils(kspace: np.ndarray) -> np.ndarray:
    """Indices of the coils that measured nothing."""
    return np.flatnonzero(~kspace.any(axis=(1, 2)))


def derived_mask(kspace: np.ndarray) -> np.ndarray:
    """Where anything was measured, from the zeros of k-space ``(coil, row, col)``.

    Returns:
        ``(1, 1, col)`` bool if only whole columns were skipped, else ``(1, row, col)``.
    """
    measured = np.logical_or.reduce(kspace != 0, axis=0)
    columns = np.logical_or.reduce(measured, axis=0)
    if (measured == columns).all():
        return columns[None, None]
    return measured[None]


def as_mask(stored: np.ndarray, shape: tuple[int, int], where: str) -> np.ndarray:
    """A stored sampling mask as ``(1, 1, col)`` or ``(1, row, col)`` bool.

    Args:
        stored: Bool, integers or floats, non-zero where measured; ``(col,)`` or ``(row, col)``, with any axes of 1.
        shape: ``(row, col)`` of k-space.
        where: What messages call the file.

    Raises:
        ShapeError: A mask of another size.
        FormatError: NaN in the mask.
    """
    if stored.dtype.kind not in "?biuf" or (stored.dtype.kind == "f" and not np.isfinite(stored).all()):
        raise FormatError(
            "the sampling mask is not one of numbers", where=where, found=stored.dtype, wanted="bool, 0 or 1"
        )
    mask = np.asarray(stored, dtype=bool)
    rows, cols = shape
    if mask.size == cols and max(mask.shape, default=1) == cols:
        return mask.reshape(1, 1, cols)
    if mask.size == rows * cols and tuple(n for n in mask.shape if n > 1) == tuple(n for n in shape if n > 1):
        return mask.reshape(1, rows, cols)
    raise ShapeError(
        "the sampling mask and k-space disagree",
        where=where,
        found=f"a mask of {stored.shape}",
        wanted=f"({cols},) or {shape}",
        remedy="store the mask on the grid of k-space, or leave it out: it is derived from the zeros then",
    )


def reconciled(
    kspace: np.ndarray, mask: np.ndarray, where: str
) -> tuple[np.ndarray, np.ndarray, tuple[SourceWarning, ...]]:
    """K-space and a mask that say the same: zero outside the mask, nothing but zeros not claimed as measured.

    Args:
        kspace: ``(coil, row, col)`` complex64.
        mask: ``(1, row or 1, col)`` bool, as stored beside it.
        where: What messages call the slice.

    Returns:
        K-space, mask and the remark ``mask-disagrees`` where either had to give way.

    Raises:
        FormatError: The mask excludes everything that was measured.
    """
    measured = np.logical_or.reduce(kspace != 0, axis=0)[None]
    outside = int((measured & ~mask).sum())
    if not measured.any():
        return kspace, np.zeros_like(mask), ()
    if not (measured & mask).any():
        raise FormatError(
            "the sampling mask excludes every sample of k-space",
            where=where,
            found=f"{int(mask.sum())} sampled positions, all of them zero in k-space",
            wanted="the mask that the data was measured with",
            remedy="leave the mask out: it is derived from the zeros then",
        )
    texts = []
    # A sample of a sampled column may be zero (partial echo, float16); a column that is all zero was not measured.
    empty = np.asarray(mask & ~(measured if mask.shape[1] > 1 else measured.any(axis=1, keepdims=True)), dtype=bool)
    if outside:
        texts.append(f"{outside} positions hold samples although the mask excludes them; they are ignored")
        kspace = np.where(mask, kspace, np.complex64(0))
    if empty.any():
        what = "positions" if mask.shape[1] > 1 else "columns"
        texts.append(f"the mask claims {int(empty.sum())} {what} that hold only zeros; they count as unmeasured")
        mask = mask & ~empty
    return kspace, mask, (SourceWarning("mask-disagrees", "; ".join(texts)),) if texts else ()


def _few(numbers: np.ndarray) -> str:
    text = ", ".join(str(n) for n in numbers[:8])
    return text + (" …" if len(numbers) > 8 else "")
