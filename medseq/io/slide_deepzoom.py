"""Any slide as a Deep Zoom pyramid: every level half as large as the next, cut into tiles that overlap by a pixel.

Made from whatever levels the file has, so that a viewer sees SVS, MRXS and plain TIFF alike. Tiles are resampled from
the best level (`medseq.io.slide_resample`); where a flat file would have to be read as a whole, from a small overview.

Reference:
    Deep Zoom File Format Overview, Microsoft, 2011: level n is ``ceil(size / 2**(last - n))``.
"""

import math
import threading
from functools import cached_property
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from medseq.errors import InputError
from medseq.io.slide_file import SlideFile
from medseq.io.slide_resample import read_scaled
from medseq.io.tissue import Overview, TissueRules, read_overview

__all__ = ["DeepZoom"]

_NAMESPACE = "http://schemas.microsoft.com/deepzoom/2008"


class DeepZoom:
    """Tiles of one open slide.

    Args:
        slide: The slide; reads of several threads take turns.
        tile_size: Side of a tile without its overlap.
        overlap: Pixels that a tile shares with each neighbour.
    """

    def __init__(self, slide: SlideFile, tile_size: int = 254, overlap: int = 1) -> None:
        self.slide, self.tile_size, self.overlap = slide, tile_size, overlap
        self.last = math.ceil(math.log2(max(slide.dims[0]))) if max(slide.dims[0]) > 1 else 0
        self._lock = threading.Lock()

    def size(self, level: int) -> tuple[int, int]:
        """Width and height of a level; level 0 is one pixel, the last one the slide itself.

        Raises:
            InputError: No such level.
        """
        if not 0 <= level <= self.last:
            raise InputError("no such level", found=level, wanted=f"0 to {self.last}")
        factor = 2 ** (self.last - level)
        width, height = self.slide.dims[0]
        return math.ceil(width / factor), math.ceil(height / factor)

    def tiles(self, level: int) -> tuple[int, int]:
        """Columns and rows of tiles of a level."""
        width, height = self.size(level)
        return math.ceil(width / self.tile_size), math.ceil(height / self.tile_size)

    def tile(self, level: int, col: int, row: int) -> np.ndarray:
        """A tile as ``(row, col, 3)`` uint8; those at the edges are smaller.

        Raises:
            InputError: No such tile.
            FormatError: This part of the file cannot be read.
        """
        cols, rows = self.tiles(level)
        if not (0 <= col < cols and 0 <= row < rows):
            raise InputError("no such tile", found=f"{col}, {row}", wanted=f"within {cols} x {rows}")
        width, height = self.size(level)
        x0, x1 = self._span(col, width)
        y0, y1 = self._span(row, height)
        factor = float(2 ** (self.last - level))
        if level < self.last and max(self.size(level + 1)) <= self.tile_size:
            # Small pictures are made of small pictures.
            larger = Image.fromarray(self.tile(level + 1, 0, 0))
            return np.asarray(larger.resize((width, height), Image.Resampling.BOX))
        with self._lock:
            try:
                return read_scaled(self.slide, x0 * factor, y0 * factor, (factor, factor), x1 - x0, y1 - y0)
            except InputError:
                # Too much to read at once: the file has no level that is small enough.
                return _from_overview(self._overview, x0 * factor, y0 * factor, factor, x1 - x0, y1 - y0)

    def region(self, x0: int, y0: int, side: int, pixels: int) -> np.ndarray:
        """A square of level 0 as a picture of `pixels` a side."""
        with self._lock:
            return read_scaled(self.slide, x0, y0, (side / pixels, side / pixels), pixels, pixels)

    def thumbnail(self, side: int) -> np.ndarray:
        """The whole slide, its longer side `side` pixels."""
        width, height = self.slide.dims[0]
        factor = max(1.0, max(width, height) / side)
        cols, rows = max(1, round(width / factor)), max(1, round(height / factor))
        with self._lock:
            try:
                return read_scaled(self.slide, 0, 0, (width / cols, height / rows), cols, rows)
            except InputError:
                return _from_overview(self._overview, 0, 0, width / cols, cols, rows)

    def descriptor(self, kind: str = "jpeg") -> str:
        """The ``.dzi`` file."""
        width, height = self.slide.dims[0]
        image = ElementTree.Element(
            "Image", TileSize=str(self.tile_size), Overlap=str(self.overlap), Format=kind, xmlns=_NAMESPACE
        )
        ElementTree.SubElement(image, "Size", Width=str(width), Height=str(height))
        return '<?xml version="1.0" encoding="UTF-8"?>' + ElementTree.tostring(image, encoding="unicode")

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self.slide.close()

    def _span(self, place: int, size: int) -> tuple[int, int]:
        first = place * self.tile_size
        return max(0, first - self.overlap), min(size, first + self.tile_size + self.overlap)

    @cached_property
    def _overview(self) -> Overview:
        # For looking, not for judging: parts that cannot be read stay white.
        return read_overview(self.slide, TissueRules(max_bad_share=1.0))


def _from_overview(overview: Overview, x0: float, y0: float, factor: float, width: int, height: int) -> np.ndarray:
    """Nearest pixels of the overview; it is at least as fine as what asks for it, or all there is."""
    x = np.clip(
        ((x0 + (np.arange(width) + 0.5) * factor) / overview.scale[0]).astype(int), 0, overview.rgb.shape[1] - 1
    )
    y = np.clip(
        ((y0 + (np.arange(height) + 0.5) * factor) / overview.scale[1]).astype(int), 0, overview.rgb.shape[0] - 1
    )
    return overview.rgb[y[:, None], x[None]]
