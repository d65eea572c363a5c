"""A series whose values left the source's integers gets others, without loss: another sign, or a moved intercept.

Results are written plane by plane, on the source's integers. Planes that do not fit are kept aside as wider integers
of the same unit; when all are known, the files are rewritten, all in one format. Nothing is rounded twice.
"""

import os
from pathlib import Path

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from medseq.io.atomic import discard, written
from medseq.io.dicom_header import understood
from medseq.io.dicom_regrid import put_pixels
from medseq.io.integers import integer_limits

__all__ = ["WideValues"]

_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")


class WideValues:
    """Stored values of a series, as far as they are wider than its format.

    Args:
        folder: Where the series is written; wide planes wait there.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._planes: dict[str, Path] = {}
        self._first, self._last = 0, 0
        self._seen = False

    def seen(self, values: np.ndarray) -> None:
        """Note the range of one plane's stored values, whether they fit or not."""
        first, last = int(values.min()), int(values.max())
        self._first, self._last = (min(first, self._first), max(last, self._last)) if self._seen else (first, last)
        self._seen = True

    def keep(self, name: str, values: np.ndarray) -> None:
        """Keep the wide values ``(row, col)`` int64 of the plane that is written, clipped, as `name`."""
        path = self._folder / f".{name}.npy"
        with written("the output folder"):
            np.save(path, values)
        self._planes[name] = path

    def settle(self, names: list[str], slope: float, intercept: float, where: str) -> bool:
        """Rewrite the series in a format that holds all values; False if there is none in 16 bits."""
        chosen = self._format()
        if self._planes and chosen is not None:
            dtype, shift = chosen
            for name in names:
                with understood(where, "the series cannot be written", remedy="write NIfTI instead"):
                    out = dcmread(self._folder / name)
                    values = np.load(self._planes[name], allow_pickle=False) if name in self._planes else None
                    values = out.pixel_array.astype(np.int64) if values is None else values
                    put_pixels(out, (values - shift).astype(dtype), 16)
                    _move_padding(out, dtype, shift)
                    if shift:
                        out.RescaleSlope = format_number_as_ds(slope)
                        out.RescaleIntercept = format_number_as_ds(intercept + shift * slope)
                with written("the output folder"), open(self._folder / name, "wb") as file:
                    dcmwrite(file, out, implicit_vr=False, little_endian=True, enforce_file_format=True)
                    file.flush()
                    os.fsync(file.fileno())
        for path in self._planes.values():
            discard(path)
        return bool(self._planes) and chosen is not None

    def _format(self) -> tuple[np.dtype, int] | None:
        for name in ("i2", "u2"):
            limits = integer_limits(np.dtype(name))
            if limits[0] <= self._first and self._last <= limits[1]:
                return np.dtype(name), 0
        return (np.dtype("u2"), self._first) if self._last - self._first <= 65535 else None


def _move_padding(out: Dataset, dtype: np.dtype, shift: int) -> None:
    for keyword in _PADDING:
        if keyword in out:
            element = out[keyword]
            value = int.from_bytes(element.value, "little") if isinstance(element.value, bytes) else int(element.value)
            out.add_new(element.tag, "SS" if dtype.kind == "i" else "US", value - shift)
