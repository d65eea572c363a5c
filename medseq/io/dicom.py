"""DICOM images: group files into volumes, read them piece by piece, write derived series.

This is the public face. Importing it loads no pydicom; calling it does.

    stacks, skipped, broken = group_dicom(folder.rglob("*"))
    reader = open_dicom(stacks[0])
    reader.header.affine, reader.read(0, 10), reader.valid(0, 10)

Stored values are never inverted: a MONOCHROME1 image keeps its values, the photometric interpretation is recorded
for pictures (`display_window`) and written back.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from medseq.errors import BackendError
from medseq.io.dicom_types import Broken, DicomSource, DicomStack, Frame, PixelFormat, Skipped
from medseq.io.volume import VolumeHeader, VolumeReader

if TYPE_CHECKING:
    from medseq.io.dicom_display import DisplayWindow
    from medseq.io.dicom_raw import RawDicomWriter
    from medseq.io.dicom_write import DicomSeriesWriter

__all__ = [
    "Broken",
    "DicomSeriesWriter",
    "DicomSource",
    "DicomStack",
    "Frame",
    "PixelFormat",
    "RawDicomWriter",
    "Skipped",
    "display_window",
    "group_dicom",
    "open_dicom",
    "require_pydicom",
    "split_series",
]


def group_dicom(paths: Iterable[Path]) -> tuple[list[DicomStack], list[Skipped], list[Broken]]:
    """Sort files into volumes; reads headers only.

    Every file ends in exactly one place: in a stack, skipped with a reason (reports, scouts, segmentations, not
    DICOM), or broken with an error (truncated, no pixels, duplicated or missing slices).

    Args:
        paths: Files, in any order; the result does not depend on it.

    Returns:
        Stacks, skipped files, broken inputs.

    Raises:
        BackendError: pydicom is not installed.
    """
    require_pydicom()
    from medseq.io.dicom_sort import group

    return group(paths)


def split_series(paths: Iterable[Path]) -> list[list[Path]]:
    """Files that may form volumes together; to `group_dicom` one after another, so that few headers are held at once.

    Raises:
        BackendError: pydicom is not installed.
    """
    require_pydicom()
    from medseq.io.dicom_series import by_series

    return by_series(paths)


def open_dicom(stack: DicomStack) -> VolumeReader:
    """A reader that decodes pixels on `read(lo, hi)`; memory is bounded by the piece."""
    require_pydicom()
    from medseq.io.dicom_pixels import DicomReader

    return DicomReader(stack.header)


def display_window(header: VolumeHeader, plane: int | None = None) -> "DisplayWindow | None":
    """How the source wants a plane (default: the middle one) to be shown; None if it does not say."""
    require_pydicom()
    from medseq.io.dicom_display import read_window

    return read_window(header, plane)


def require_pydicom() -> None:
    """Raise `BackendError`, which says what to install, where pydicom is missing."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise BackendError("DICOM needs pydicom", found="not installed", remedy="pip install 'medseq[dicom]'") from None


def __getattr__(name: str) -> object:
    # The writers' modules need pydicom; everything else here is importable without it.
    if name == "DicomSeriesWriter":
        require_pydicom()
        from medseq.io.dicom_write import DicomSeriesWriter

        return DicomSeriesWriter
    if name == "RawDicomWriter":
        require_pydicom()
        from medseq.io.dicom_raw import RawDicomWriter

        return RawDicomWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
