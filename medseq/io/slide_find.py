"""Which files of a folder are slides, by their names; whether they can be read shows when they are opened."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from medseq.errors import InputError

__all__ = ["SLIDE_SUFFIXES", "find_slides", "slide_name"]

SLIDE_SUFFIXES = (
    *(".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi"),
    *(".tif", ".tiff", ".btf", ".tf8"),
)
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_SERIES_UID, _CLASS_UID, _IMAGE_TYPE = 0x0020000E, 0x00080016, 0x00080008


def find_slides(path: Path) -> list[Path]:
    """The slides of a folder and its subfolders, or the one file; sorted. Hidden files and folders are left out.

    Of the many files of a DICOM slide the first pixel file of each series stands for it. The data folder of a MRXS
    slide holds no slides.

    Raises:
        InputError: Nothing of this name.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError("no such file or folder", where="input")
    files = sorted(_walk(path))
    slides = [file for file in files if file.suffix.lower() in SLIDE_SUFFIXES]
    dicom = [file for file in files if file.suffix.lower() in (".dcm", ".dicom")]
    return sorted(slides + _dicom_slides(dicom))


def slide_name(path: Path) -> str:
    """What a slide is called: its file's name without the suffix; of DICOM, whose files have numbers, its folder's."""
    return path.parent.name if path.suffix.lower() in (".dcm", ".dicom") else path.stem


def _walk(folder: Path) -> Iterator[Path]:
    # Links to files are followed, links to folders are not: they may lead anywhere, also back up.
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(here, name)
            if not name.startswith(".") and file.is_file():
                yield file


def _dicom_slides(files: list[Path]) -> list[Path]:
    """One file a series of whole-slide images; labels, overviews and anything else are left out."""
    if not files:
        return []
    # Without pydicom a folder of slides of other kinds is still good.
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ImportError:
        return files
    found: dict[tuple[Path, str], Path] = {}
    for file in files:
        try:
            # Its warnings quote what the file holds.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = dcmread(file, stop_before_pixels=True, specific_tags=[_SERIES_UID, _CLASS_UID, _IMAGE_TYPE])
        except (InvalidDicomError, OSError, ValueError, EOFError):
            continue
        kind = [str(word) for word in header.get("ImageType", [])]
        if str(header.get("SOPClassUID", "")) == _WHOLE_SLIDE and "VOLUME" in kind:
            found.setdefault((file.parent, str(header.get("SeriesInstanceUID", ""))), file)
    return list(found.values())
