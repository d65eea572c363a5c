"""How a DICOM source wants to be shown: window values, VOI look-up table, MONOCHROME1.

Pictures only; pixels that are processed never pass through here.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from medseq.errors import FormatError, ShapeError
from medseq.io.dicom_frames import flatten, is_enhanced
from medseq.io.dicom_header import understood
from medseq.io.dicom_types import DicomSource
from medseq.io.privacy import path_label
from medseq.io.volume import VolumeHeader

__all__ = ["DisplayWindow", "read_window"]

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True)
class DisplayWindow:
    """A mapping from values in `VolumeHeader.units` to grey, 0 black to 1 white.

    Attributes:
        center: Window centre, in the units of the volume; NaN where there is only a look-up table.
        width: Window width.
        function: VOI LUT function.
        inverted: Small values are white (MONOCHROME1).
        lut: VOI look-up table, or None; it takes precedence over the window.
        lut_first: Value that maps to the first entry.
        lut_bits: Bits of the entries.
    """

    center: float
    width: float
    function: Function = "LINEAR"
    inverted: bool = False
    lut: np.ndarray | None = field(default=None, repr=False, compare=False)
    lut_first: float = 0.0
    lut_bits: int = 8

    def grey(self, plane: np.ndarray) -> np.ndarray:
        """A plane as float32 in [0, 1].

        Reference:
            DICOM PS3.3 C.11.2.1.2 (LINEAR), .3.1 (SIGMOID), .3.2 (LINEAR_EXACT) and C.11.2.1.1 (table).
        """
        plane = plane.astype(np.float64)
        if self.lut is not None:
            index = np.clip(np.rint(plane - self.lut_first), 0, len(self.lut) - 1).astype(np.int64)
            grey = self.lut[index] / (2.0**self.lut_bits - 1)
        elif self.function == "SIGMOID":
            grey = 1 / (1 + np.exp(np.clip(-4 * (plane - self.center) / self.width, -700, 700)))
        elif self.function == "LINEAR_EXACT":
            grey = (plane - self.center) / self.width + 0.5
        else:
            # LINEAR counts grey levels, not distances: hence the halves, and a width of 1 is a threshold.
            grey = (plane - (self.center - 0.5)) / max(self.width - 1, 1e-6) + 0.5
        grey = np.clip(grey, 0, 1).astype(np.float32)
        return 1 - grey if self.inverted else grey


def read_window(header: VolumeHeader, plane: int | None = None) -> DisplayWindow | None:
    """Read the first window of a plane's header (default: the middle plane); see `medseq.io.dicom.display_window`."""
    source = header.source.header
    if not isinstance(source, DicomSource):
        return None
    plane = len(source.frames) // 2 if plane is None else plane
    if not 0 <= plane < len(source.frames):
        raise ShapeError("no such plane", found=plane, wanted=f"0 <= plane < {len(source.frames)}")
    frame = source.frames[plane]
    try:
        with understood(path_label(frame.path), "the window makes no sense"):
            dataset = dcmread(frame.path, stop_before_pixels=True, force=True)
            groups = flatten(dataset, frame.index or 0) if is_enhanced(dataset) else Dataset()
            return _window(dataset, groups, frame.pixels.photometric == "MONOCHROME1")
    except FormatError:
        # No reason to fail: the caller falls back to the values themselves.
        return None


def _window(dataset: Dataset, groups: Dataset, inverted: bool) -> DisplayWindow | None:
    def get(keyword: str):
        value = groups.get(keyword)
        return dataset.get(keyword) if value is None else value

    inverted = inverted != (str(dataset.get("PresentationLUTShape", "")) == "INVERSE")
    tables = dataset.get("VOILUTSequence")
    if tables and tables[0].get("LUTData") is not None:
        table = tables[0]
        entries, first, bits = (int(number) for number in table.LUTDescriptor)
        data = table.LUTData
        lut = np.frombuffer(data, dtype="<u2") if isinstance(data, bytes) else np.atleast_1d(data)
        # The descriptor's first value has the sign of the pixels, whatever its VR says.
        if first > 0x7FFF and int(dataset.get("PixelRepresentation") or 0) == 1:
            first -= 0x10000
        lut = lut[: entries or 65536].astype(np.float64)
        return DisplayWindow(np.nan, np.nan, inverted=inverted, lut=lut, lut_first=first, lut_bits=bits)
    center, width = _first(get("WindowCenter")), _first(get("WindowWidth"))
    if center is None or width is None or not np.isfinite([center, width]).all() or width <= 0:
        return None
    function = str(get("VOILUTFunction") or "LINEAR")
    return DisplayWindow(center, width, function, inverted)  # type: ignore[arg-type]


def _first(value: object) -> float | None:
    if value in (None, "") or (not isinstance(value, str | float | int) and not len(value)):  # type: ignore[arg-type]
        return None
    return float(value if isinstance(value, str | float | int) else value[0])  # type: ignore[index]
