"""Stain normalisation of a stream of tiles: how the slide looks is measured once, on tiles spread over its tissue.

Measured tile by tile instead, a tile of one stain alone would be given the other.
"""

from collections.abc import Callable

import numpy as np

from medseq.errors import FormatError
from medseq.inference.extract_settings import StainMethod
from medseq.io.slide_file import SlideFile
from medseq.io.tiles import TileGrid, read_tiles
from medseq.ops.stain import lab_statistics, normalise_macenko, normalise_reinhard, stain_statistics

__all__ = ["fit_stain"]

_SAMPLE_TILES = 32
# Every so many pixels of a tile: neighbours say the same.
_STRIDE = 5


def fit_stain(slide: SlideFile, grid: TileGrid, method: StainMethod | None) -> Callable[[np.ndarray], np.ndarray]:
    """A function from tiles ``(row, col, 3)`` uint8 to such tiles in the colours of the reference.

    Raises:
        InputError: Hardly any stained pixels, or one colour only.
        FormatError: No tile of the sample can be read.
    """
    if method is None:
        return lambda tile: tile
    picks = np.unique(np.linspace(0, len(grid) - 1, _SAMPLE_TILES).round().astype(int))
    tiles = (next(read_tiles(slide, grid, int(pick))).pixels for pick in picks)
    pixels = [tile[::_STRIDE, ::_STRIDE].reshape(-1, 3) for tile in tiles if tile is not None]
    if not pixels:
        raise FormatError("no tile can be read", where=slide.label)
    sample = np.concatenate(pixels)
    if method == "macenko":
        stains = stain_statistics(sample)
        return lambda tile: normalise_macenko(tile, stains)
    colours = lab_statistics(sample)
    return lambda tile: normalise_reinhard(tile, colours)
