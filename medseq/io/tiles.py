"""Tiles of a slide at a requested resolution: where they lie, and their pixels as a stream.

A tile covers exactly ``size x mpp`` microns. Its corner is a whole pixel of level 0 and its neighbour lies a whole
number of pixels further, so that coordinates divide by `TileGrid.step_level0` without a rest: where a tile is not a
whole number of pixels wide, neighbours overlap or stand apart by less than one pixel of level 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from medseq.errors import FormatError, InputError
from medseq.io.slide_file import SlideFile
from medseq.io.slide_resample import read_scaled
from medseq.io.tissue import Tissue

__all__ = ["Tile", "TileGrid", "read_tiles", "tile_grid"]

# A slide scanned a little coarser than asked for (0.52 for 0.5) is resampled; more would invent detail.
_MAX_ENLARGEMENT = 1.1
_MAX_TILES = 20_000_000


@dataclass(frozen=True)
class TileGrid:
    """Where the tiles of one slide lie, row by row.

    Attributes:
        coords: ``(n, 2)`` int64: top-left corners ``(x, y)`` in pixels of level 0, row-major.
        tissue_share: ``(n,)`` float32: share of each tile that is tissue; 1 without a tissue mask.
        size: Side of a tile in pixels of the result.
        mpp: Microns per pixel of the result.
        scale: Pixels of level 0 in one pixel of the result, ``(x, y)``.
        patch_size_level0: Side of a tile in pixels of level 0, rounded.
        step_level0: From one tile to the next in pixels of level 0.
    """

    coords: np.ndarray = field(repr=False)
    tissue_share: np.ndarray = field(repr=False)
    size: int
    mpp: float
    scale: tuple[float, float]
    patch_size_level0: int
    step_level0: int

    def __len__(self) -> int:
        return len(self.coords)


@dataclass(frozen=True)
class Tile:
    """One tile of the stream: `pixels` ``(size, size, 3)`` uint8, or None and the `error` that reading it raised."""

    index: int
    pixels: np.ndarray | None = field(repr=False)
    error: FormatError | None = None


def tile_grid(
    slide: SlideFile,
    tissue: Tissue | None = None,
    *,
    mpp: float = 0.5,
    size: int = 256,
    overlap: float = 0.0,
    min_tissue: float = 0.25,
) -> TileGrid:
    """The tiles of a slide that hold tissue.

    Tiles start at the top-left corner of the slide; those at the right and bottom edge reach beyond it and are white
    there.

    Args:
        slide: The slide; its resolution must be known.
        tissue: Where the tissue is; None takes all tiles.
        mpp: Microns per pixel of the tiles.
        size: Side of a tile in pixels.
        overlap: Share of a tile that the next one covers too, below 1.
        min_tissue: Least share of tissue in a tile that is taken; above 0.

    Raises:
        InputError: The resolution is unknown or too coarse for `mpp`, or an option makes no sense.
    """
    _check_options(mpp, size, overlap, min_tissue)
    native = slide.require_mpp()
    if max(native) > mpp * _MAX_ENLARGEMENT:
        raise InputError(
            "the slide was scanned too coarsely",
            where=slide.label,
            found=f"{max(native):g} um/px",
            wanted=f"{mpp:g} um/px or finer",
            remedy=f"ask for --mpp-target {max(native):.3g} and an encoder made for it",
        )
    scale = mpp / native[0], mpp / native[1]
    patch = max(round(size * max(scale)), 1)
    step = max(round(patch * (1 - overlap)), 1)
    width, height = slide.dims[0]
    cols, rows = -(-width // step), -(-height // step)
    if rows * cols > _MAX_TILES:
        raise InputError("too many tiles", where=slide.label, found=rows * cols, wanted=f"up to {_MAX_TILES}")
    y, x = (axis.ravel() * step for axis in np.mgrid[:rows, :cols])
    coords = np.stack([x, y], axis=1).astype(np.int64)
    share = np.ones(len(coords), np.float32)
    if tissue is not None:
        share = _tissue_share(tissue, coords, (size * scale[0], size * scale[1]))
        # A share is a quotient of sums: half a mask's pixel of rounding must not decide.
        keep = share >= min_tissue - 1e-6
        coords, share = coords[keep], share[keep]
    return TileGrid(coords, share, size, mpp, scale, patch, step)


def read_tiles(slide: SlideFile, grid: TileGrid, start: int = 0) -> Iterator[Tile]:
    """The pixels of the tiles from number `start` on, one at a time, in the order of the grid.

    A tile that cannot be read comes with its error; the stream goes on.
    """
    for index in range(start, len(grid)):
        x, y = (int(value) for value in grid.coords[index])
        try:
            yield Tile(index, read_scaled(slide, x, y, grid.scale, grid.size, grid.size))
        except FormatError as error:
            yield Tile(index, None, error)


def _check_options(mpp: float, size: int, overlap: float, min_tissue: float) -> None:
    rules = {
        "mpp": (mpp, mpp > 0, "above 0"),
        "tile size": (size, 8 <= size <= 4096, "8 to 4096"),
        "overlap": (overlap, 0 <= overlap <= 0.95, "0 to 0.95"),
        "least share of tissue": (min_tissue, 0 < min_tissue <= 1, "above 0, up to 1"),
    }
    for name, (value, good, wanted) in rules.items():
        if not good:
            raise InputError(f"{name} out of range", found=value, wanted=wanted)


def _tissue_share(tissue: Tissue, coords: np.ndarray, extent: tuple[float, float]) -> np.ndarray:
    """Share of tissue in each tile, to half a pixel of the mask; what lies beyond the slide is none."""
    # sums[r, c] is the number of tissue pixels above row r and left of column c.
    sums = np.pad(np.cumsum(np.cumsum(tissue.mask, axis=0, dtype=np.int64), axis=1), ((1, 0), (1, 0)))
    rows, cols = tissue.mask.shape
    edges = []
    for axis, limit in ((0, cols), (1, rows)):
        low = np.rint(coords[:, axis] / tissue.overview.scale[axis]).astype(np.int64)
        # A tile smaller than a pixel of the mask has the value of that pixel.
        high = np.maximum(
            np.rint((coords[:, axis] + extent[axis]) / tissue.overview.scale[axis]).astype(np.int64), low + 1
        )
        edges.append((np.minimum(low, limit), np.minimum(high, limit), high - low))
    (left, right, width), (top, bottom, height) = edges
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return (inside / (width * height)).astype(np.float32)
