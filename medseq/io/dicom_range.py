"""How the values of a whole series are stored: bits, sign, slope and intercept, one choice for all its images.

The source's own format is kept while the values fit. Then, in this order, each step no coarser than the source's unit:
all allocated bits, 16 bits, the other sign, an intercept moved by whole units. Only values that span more than 65536
units get a larger slope, and whoever asked is told.
"""

from dataclasses import dataclass

import numpy as np

from medseq.io.dicom_types import PixelFormat
from medseq.io.integers import integer_limits
from medseq.io.volume import Modality

__all__ = ["StoredFormat", "series_format"]

_SPAN = 65535


@dataclass(frozen=True)
class StoredFormat:
    """Stored integers of a series.

    Attributes:
        dtype: Integer type.
        bits: BitsStored.
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        coarse: The unit is larger than the source's, so that rounding may exceed half a native unit.
    """

    dtype: np.dtype
    bits: int
    slope: float
    intercept: float
    coarse: bool = False

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest stored value."""
        return integer_limits(self.dtype, self.bits)


def series_format(
    low: float, high: float, slope: float, intercept: float, pixels: PixelFormat, modality: Modality
) -> StoredFormat:
    """Choose a format for values between `low` and `high`.

    Args:
        low: Smallest value of the series, in its units.
        high: Largest value.
        slope: The source's unit; positive or negative, not 0.
        intercept: The source's intercept.
        pixels: The source's stored format.
        modality: PET has no intercept; its slope grows instead.
    """
    ends = sorted((np.rint((low - intercept) / slope), np.rint((high - intercept) / slope)))
    first, last = float(ends[0]), float(ends[1])
    own, other = ("i2", "u2") if pixels.signed else ("u2", "i2")
    choices = [
        (pixels.dtype, pixels.bits_stored),
        (pixels.dtype, pixels.bits_allocated),
        (np.dtype(own), 16),
        (np.dtype(other), 16),
    ]
    for dtype, bits in choices:
        limits = integer_limits(dtype, bits)
        if limits[0] <= first and last <= limits[1]:
            return StoredFormat(dtype, bits, slope, intercept)
    if modality == "PT":
        reach = max(high / 32767, -low / 32768)
        return StoredFormat(np.dtype("i2"), 16, reach, 0.0, coarse=True)
    if last - first <= _SPAN:
        return StoredFormat(np.dtype("u2"), 16, slope, intercept + first * slope)
    return StoredFormat(np.dtype("u2"), 16, (high - low) / _SPAN, low, coarse=True)
