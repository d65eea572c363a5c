"""Slides in TIFF of no vendor, OME-TIFF included: levels, resolution and regions. Its pieces: `slide_segments`.

Read with tifffile, piece by piece; never the whole image. Brightfield only: three colours in one image. Images that
are not levels of the first one (labels, macros, other series) are not touched.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import FormatError
from medseq.io.slide_colour import ColourTransform
from medseq.io.slide_file import SlideFile
from medseq.io.slide_mpp import Mpp, file_mpp
from medseq.io.slide_segments import SegmentedImage, damage, open_tiff, quiet

__all__ = ["TiffSlideFile", "is_tiff"]

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_PAGES = 1000
_XRESOLUTION, _YRESOLUTION, _RESOLUTION_UNIT, _ICC_PROFILE = 282, 283, 296, 34675
_MICRONS_PER_UNIT = {2: 25_400.0, 3: 10_000.0}
_OME_UNITS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4}
_REDUCED = 1
# Levels are rounded to whole pixels; a label or macro image has another shape.
_ASPECT = 0.02


def is_tiff(path: Path) -> bool:
    """Does the file start like a TIFF or BigTIFF?"""
    with path.open("rb") as stream:
        return stream.read(4) in _MAGIC


class TiffSlideFile(SlideFile):
    """A TIFF that no vendor's rules apply to.

    Args:
        path: The file.
        mpp: Microns per pixel if the caller knows better than the file.
        icc: Bring colours to sRGB where the file has a profile.

    Raises:
        FormatError: Damaged or truncated, several channels, planes or times, not 8 or 16 bits.
        BackendError: tifffile is not installed.
    """

    def __init__(self, path: Path, mpp: float | Sequence[float] | None = None, *, icc: bool = True) -> None:
        super().__init__(path)
        self._tiff = open_tiff(path)
        try:
            with quiet(), damage(self.label, "its directory cannot be read"):
                self._describe(mpp, icc)
        except BaseException:
            self._tiff.close()
            raise

    def _describe(self, mpp: float | Sequence[float] | None, icc: bool) -> None:
        first = self._tiff.pages[0]
        ome = _ome_pixels(self._tiff.ome_metadata, self.label) if self._tiff.is_ome else None
        self.format = "tiff" if ome is None else "ome-tiff"
        self.objective_power = None
        pages = _levels(self._tiff, first, nested=ome is not None)
        self._images = [SegmentedImage(self._tiff, page, self.label) for page in pages]
        self.dims = tuple((image.width, image.height) for image in self._images)
        self.levels = len(self.dims)
        found = None if ome is None else _ome_mpp(ome)
        self._set_mpp(found or _resolution_mpp(first), mpp)
        profile = first.tags.get(_ICC_PROFILE)
        self._colours = ColourTransform(bytes(profile.value) if profile is not None else None, icc)

    @property
    def missing_share(self) -> float:
        """Share of the pieces of level 0 that lie beyond the end of the file: above 0, it is truncated."""
        return self._images[0].missing_share

    def _read(self, x0: int, y0: int, level: int, width: int, height: int) -> np.ndarray:
        image = self._images[level]
        left = round(x0 * image.width / self.dims[0][0])
        top = round(y0 * image.height / self.dims[0][1])
        out = np.full((height, width, 3), 255, np.uint8)
        x_range = max(left, 0), min(left + width, image.width)
        y_range = max(top, 0), min(top + height, image.height)
        if x_range[0] < x_range[1] and y_range[0] < y_range[1]:
            target = out[y_range[0] - top : y_range[1] - top, x_range[0] - left : x_range[1] - left]
            image.read(target, x_range[0], y_range[0])
        return out

    def close(self) -> None:
        self._tiff.close()


def _levels(tiff: Any, first: Any, *, nested: bool) -> list[Any]:
    """Pages of the pyramid, largest first: sub-images of the first page, and reduced images of its shape."""
    candidates = list(_pages(first.pages or []))
    if not nested:
        candidates += [page for page in list(_pages(tiff.pages))[1:] if page.subfiletype == _REDUCED]
    levels = [first]
    for page in sorted(candidates, key=lambda page: -page.imagewidth):
        smaller = page.imagewidth < levels[-1].imagewidth and page.imagelength < levels[-1].imagelength
        same_kind = (page.samplesperpixel, page.dtype) == (first.samplesperpixel, first.dtype)
        # Both sides shrink by the same factor, to within the rounding to a pixel.
        by_width, by_height = first.imagewidth / page.imagewidth, first.imagelength / page.imagelength
        rounding = max(by_width / first.imagewidth, by_height / first.imagelength)
        if smaller and same_kind and abs(by_width / by_height - 1) <= _ASPECT + rounding:
            levels.append(page)
    return levels


def _pages(pages: Any) -> Iterator[Any]:
    for number, page in enumerate(pages):
        if number >= _MAX_PAGES:
            return
        yield page


def _ome_pixels(text: str | None, where: str) -> dict[str, str]:
    """Attributes of the first image's ``Pixels`` element."""
    try:
        root = ElementTree.fromstring(text or "")
    except ElementTree.ParseError:
        raise FormatError("its OME-XML cannot be read", where=where) from None
    pixels = root.find("./{*}Image/{*}Pixels")
    if pixels is None:
        raise FormatError("its OME-XML describes no pixels", where=where)
    sizes = {name: int(pixels.get(f"Size{name}", "1")) for name in "CZT"}
    channel = pixels.find("./{*}Channel")
    samples = int(channel.get("SamplesPerPixel", "1")) if channel is not None else 1
    if sizes["Z"] > 1 or sizes["T"] > 1 or sizes["C"] not in (1, samples):
        found = f"{sizes['C']} channels, {sizes['Z']} planes, {sizes['T']} times"
        raise FormatError("not a brightfield slide", where=where, found=found, wanted="one RGB image")
    return dict(pixels.attrib)


def _ome_mpp(pixels: dict[str, str]) -> Mpp | None:
    sides: list[float | None] = []
    for axis in "XY":
        scale = _OME_UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        size = pixels.get(f"PhysicalSize{axis}")
        sides.append(float(size) * scale if size and scale else None)
    return file_mpp(*sides)


def _resolution_mpp(page: Any) -> Mpp | None:
    """From XResolution and YResolution, pixels per inch or centimetre (TIFF 6.0, section 8)."""
    unit = page.tags.get(_RESOLUTION_UNIT)
    microns = _MICRONS_PER_UNIT.get(int(unit.value)) if unit is not None else None
    tags = [page.tags.get(code) for code in (_XRESOLUTION, _YRESOLUTION)]
    if microns is None or any(tag is None or not all(tag.value) for tag in tags):
        return None
    x, y = (microns * tag.value[1] / tag.value[0] for tag in tags)
    return file_mpp(x, y)
