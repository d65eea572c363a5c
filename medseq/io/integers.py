"""Real values to stored integers, the one way that every writer uses."""

import numpy as np

from medseq.errors import OutputError

__all__ = ["integer_limits", "row_blocks", "to_stored"]

_BLOCK = 1 << 20


def integer_limits(dtype: np.dtype, bits: int | None = None) -> tuple[int, int]:
    """Smallest and largest value of an integer dtype, or of its lowest `bits` bits (DICOM BitsStored)."""
    info = np.iinfo(dtype)
    if bits is None or bits >= info.bits:
        # Beyond 2**53 float64, in which the values are rounded, cannot tell neighbouring integers apart.
        return max(int(info.min), -(1 << 53)), min(int(info.max), 1 << 53)
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if info.min < 0 else (0, (1 << bits) - 1)


def to_stored(
    values: np.ndarray, slope: float, intercept: float, dtype: np.dtype, limits: tuple[int, int], where: str = "output"
) -> tuple[np.ndarray, np.ndarray]:
    """Solve ``stored * slope + intercept = values`` for integers.

    Args:
        values: Real values, at least one axis.
        slope: Not 0.
        intercept: In the units of `values`.
        dtype: Integer dtype of the result.
        limits: Smallest and largest integer allowed.
        where: Label for the error message.

    Returns:
        The nearest integers (off by at most half a unit) and a mask of the values that had to be clipped to `limits`.

    Raises:
        OutputError: A value is NaN or infinite: integers cannot hold it.
    """
    finite = np.isfinite(values)
    if not finite.all():
        raise OutputError(
            "integer pixels cannot hold NaN or infinite values",
            where=where,
            found=f"{int(finite.size - finite.sum())} of {finite.size} pixels",
            wanted="finite values",
            remedy="write a floating-point NIfTI or look why the result is not finite",
        )
    stored, clipped = np.empty(values.shape, dtype), np.empty(values.shape, bool)
    for rows in row_blocks(values.shape):
        exact = np.rint((values[rows].astype(np.float64) - intercept) / slope)
        clipped[rows] = (exact < limits[0]) | (exact > limits[1])
        stored[rows] = np.clip(exact, *limits)
    return stored, clipped


def row_blocks(shape: tuple[int, ...]) -> list[slice]:
    """Slices of the first axis of about a million values each, so that float64 intermediates stay small."""
    rows = max(1, _BLOCK // max(1, int(np.prod(shape[1:]))))
    return [slice(lo, lo + rows) for lo in range(0, shape[0], rows)]
