"""What the DICOM modules hand to one another: plain values, no pydicom."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseq.errors import MedseqError
from medseq.io.source import SourceWarning
from medseq.io.volume import VolumeHeader

__all__ = ["Broken", "DicomSource", "DicomStack", "Frame", "PixelFormat", "Skipped"]


@dataclass(frozen=True)
class Skipped:
    """A file that is not an image input.

    Attributes:
        path: The file.
        reason_code: ``not-dicom``, ``dicomdir``, ``sr``, ``pr``, ``ko``, ``seg``, ``rt``, ``scout``,
            ``report-screen``, ``no-geometry``, ``copy`` or ``non-image``.
        reason: One sentence for a person; no identifiers.
    """

    path: Path = field(repr=False)
    reason_code: str
    reason: str


@dataclass(frozen=True)
class Broken:
    """An input that cannot be read: its files, its label and why."""

    paths: tuple[Path, ...] = field(repr=False)
    label: str
    error: MedseqError


@dataclass(frozen=True)
class PixelFormat:
    """How a frame's pixels are stored.

    Attributes:
        rows: Rows.
        columns: Columns.
        bits_allocated: 8, 16 or 32.
        bits_stored: Bits that carry the value.
        signed: Two's complement (PixelRepresentation 1).
        photometric: ``MONOCHROME1`` (small values white) or ``MONOCHROME2``; stored values are never inverted.
        transfer_syntax: UID; guessed for a file without a file meta header.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    transfer_syntax: str

    @property
    def dtype(self) -> np.dtype:
        """Numpy dtype of the stored values."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.bits_allocated // 8}")


@dataclass(frozen=True)
class Frame:
    """One plane of a series: a single-frame file, or a frame of a multi-frame one.

    Attributes:
        path: Its file.
        index: Frame number from 0 in a multi-frame object; None for a single-frame object.
        sop_class: SOP class UID.
        sop_uid: SOP instance UID of the object.
        position: ImagePositionPatient, centre of the first pixel, LPS mm.
        orientation: ImageOrientationPatient: direction of growing columns, then of growing rows (LPS).
        spacing: PixelSpacing ``(row, column)`` in mm.
        thickness: SliceThickness in mm, or None.
        step: SpacingBetweenSlices in mm, or None.
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        padding: First and last stored value that mean "no pixel here", or None.
        lut: The stored values go through a modality look-up table instead of slope and intercept.
        pixels: Stored format.
        instance_number: InstanceNumber, or None.
        keys: Attributes by keyword that separate, or may separate, several stacks of one series.
    """

    path: Path = field(repr=False)
    index: int | None
    sop_class: str
    sop_uid: str = field(repr=False)
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    spacing: tuple[float, float]
    thickness: float | None
    step: float | None
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    lut: bool
    pixels: PixelFormat
    instance_number: int | None
    keys: tuple[tuple[str, str], ...] = ()

    def key(self, keyword: str) -> str:
        """Value of one of the `keys`, or an empty string."""
        return next((value for word, value in self.keys if word == keyword), "")


@dataclass(frozen=True)
class DicomSource:
    """What `VolumeHeader.source.header` holds for DICOM: everything the reader and the writer need.

    Attributes:
        series_uid: SeriesInstanceUID of the source.
        frames: Planes in slice order.
        label: What messages call the series.
        warnings: What a reader of the result must know (`gantry-tilt`, `uneven-spacing`, `series-split`,
            `lossy-source`).
    """

    series_uid: str = field(repr=False)
    frames: tuple[Frame, ...] = field(repr=False)
    label: str
    warnings: tuple[SourceWarning, ...] = ()


@dataclass(frozen=True)
class DicomStack:
    """One volume: planes of one series that share orientation, pixel grid and acquisition, in slice order.

    Attributes:
        series_uid: SeriesInstanceUID.
        sop_uids: What identifies the planes: SOP instance UIDs; ``uid#frame`` (from 1) where a multi-frame object
            is shared with another stack.
        files: Source files in slice order, each once.
        header: Shape, geometry, units; ``header.source.header`` is a `DicomSource`.
    """

    series_uid: str = field(repr=False)
    sop_uids: tuple[str, ...] = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    header: VolumeHeader
