"""Open a whole-slide image of any format that medseq reads; which one it is shows in the content, not in the name."""

from collections.abc import Sequence
from pathlib import Path

from medseq.errors import BackendError, FormatError, InputError
from medseq.io.privacy import path_label
from medseq.io.slide_file import SlideFile
from medseq.io.slide_openslide import OpenSlideFile, detect_vendor
from medseq.io.slide_tiff import TiffSlideFile, is_tiff

__all__ = ["open_slide"]

_PLAIN_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")


def open_slide(path: str | Path, mpp: float | Sequence[float] | None = None, *, icc: bool = True) -> SlideFile:
    """A slide, opened without reading pixels.

    OpenSlide reads what it detects as a vendor's format: SVS, NDPI, MRXS, SCN, DICOM and others. TIFF of no vendor,
    OME-TIFF and single-level files included, is read tile by tile with tifffile.

    Args:
        path: The file; of a DICOM slide any file of its series, of MRXS the ``.mrxs`` file.
        mpp: Microns per pixel of level 0, one number or ``(x, y)``, if the caller knows better than the file.
        icc: Bring colours to sRGB where the file has a profile.

    Raises:
        InputError: No such file, or an `mpp` that no microscope has.
        FormatError: Not a slide, damaged, truncated, or not brightfield.
        BackendError: OpenSlide or tifffile is not installed.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise InputError("not a slide", where=path_label(path), found=found, wanted="a slide's file")
    is_plain = is_tiff(path)
    try:
        vendor = detect_vendor(path)
    except BackendError:
        # A plain TIFF needs no OpenSlide.
        if not (is_plain and path.suffix.lower() in _PLAIN_SUFFIXES):
            raise
        vendor = None
    if vendor not in (None, "generic-tiff"):
        return OpenSlideFile(path, mpp, icc=icc)
    if is_plain:
        return TiffSlideFile(path, mpp, icc=icc)
    raise FormatError(
        "not a slide that can be read",
        where=path_label(path),
        found="an unknown or damaged file",
        wanted="SVS, NDPI, MRXS, SCN, DICOM, TIFF or another format of OpenSlide",
    )
