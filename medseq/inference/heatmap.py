"""From one number a patch to a picture in the slide's own coordinates. numpy only.

A heat map is an image of the whole slide in which a patch is a few pixels wide: `scale` level-0 pixels are one pixel.
Values are shown by percentile over the slide (`percentiles`), since raw attention depends on the number of patches.
"""

from dataclasses import dataclass

import numpy as np

from medseq.errors import InputError

__all__ = ["HeatMap", "colours", "heat_map", "percentiles", "top_patches"]

# A patch is this many pixels wide, less where the picture would be too large for a report.
_PATCH_PX = 8
_MAX_SIDE = 8192


@dataclass(frozen=True)
class HeatMap:
    """Values on a grid over the slide.

    Attributes:
        values: ``(row, col)`` float32, 0 to 1; NaN where there is no patch.
        scale: Level-0 pixels of one pixel of the map, along both axes; pixel ``(row, col)`` covers
            ``[col * scale, (col + 1) * scale)`` of x.
        dims: ``(width, height)`` of the slide at level 0.
        mpp: Microns per level-0 pixel, or None.
    """

    values: np.ndarray
    scale: float
    dims: tuple[int, int]
    mpp: float | None = None


def percentiles(values: np.ndarray) -> np.ndarray:
    """Share of patches with a lower value, plus half of those with an equal one: 0 to 1, one half where all are equal.

    Args:
        values: ``(n,)``, finite.
    """
    if values.size == 0:
        return np.zeros(0, np.float32)
    ordered = np.sort(values)
    below, upto = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return ((below + upto) / (2 * values.size)).astype(np.float32)


def heat_map(
    values: np.ndarray,
    coords: np.ndarray,
    patch_size: int,
    dims: tuple[int, int] | None = None,
    mpp: float | None = None,
) -> HeatMap:
    """Paint patches; where they overlap, the mean.

    Args:
        values: ``(n,)``, 0 to 1.
        coords: ``(n, 2)`` top-left corners (x, y) in level-0 pixels.
        patch_size: Side of a patch in level-0 pixels.
        dims: ``(width, height)`` of the slide; None for what the patches cover.
        mpp: Microns per level-0 pixel.

    Raises:
        InputError: Patches outside the slide, or none.
    """
    if len(values) == 0 or patch_size < 1 or coords.shape != (len(values), 2):
        raise InputError("a heat map needs patches", found=f"{len(values)} values, {len(coords)} places")
    if coords.min() < 0:
        raise InputError("a patch lies outside its slide", found=f"corner at {coords.min()}", wanted="0 or more")
    reach = (coords + patch_size).max(0)
    width, height = dims if dims is not None else (int(reach[0]), int(reach[1]))
    if (coords >= (width, height)).any():
        raise InputError(
            "a patch lies outside its slide",
            found=f"a corner at {tuple(int(x) for x in coords.max(0))}",
            wanted=f"within {width} x {height} level-0 pixels",
            remedy="give the features of this slide",
        )
    scale = max(patch_size / _PATCH_PX, max(width, height) / _MAX_SIDE, 1.0)
    rows, cols = (int(np.ceil(side / scale)) for side in (height, width))
    # Corners of a summed-area table: any number of patches of any size in one pass.
    total, count = np.zeros((rows + 1, cols + 1)), np.zeros((rows + 1, cols + 1))
    x0, y0 = (np.round(coords[:, axis] / scale).astype(int) for axis in (0, 1))
    x1, y1 = (np.round((coords[:, axis] + patch_size) / scale).astype(int) for axis in (0, 1))
    x0, y0 = np.minimum(x0, cols - 1), np.minimum(y0, rows - 1)
    x1, y1 = np.clip(x1, x0 + 1, cols), np.clip(y1, y0 + 1, rows)
    for table, weight in ((total, values.astype(np.float64)), (count, np.ones(len(values)))):
        for y, x, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
            np.add.at(table, (y, x), sign * weight)
    total, count = (table.cumsum(0).cumsum(1)[:-1, :-1] for table in (total, count))
    covered = count > 0.5
    painted = np.full((rows, cols), np.nan, np.float32)
    painted[covered] = (total[covered] / count[covered]).clip(0, 1)
    return HeatMap(painted, scale, (width, height), mpp)


def colours(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 as ``(…, 3)`` uint8 RGB, dark to light and readable without colour vision; NaN is white."""
    from matplotlib import colormaps

    rgb = np.round(255 * colormaps["magma"](np.nan_to_num(values))[..., :3]).astype(np.uint8)
    rgb[np.isnan(values)] = 255
    return rgb


def top_patches(values: np.ndarray, k: int) -> np.ndarray:
    """Indices of the `k` highest values, highest first; equal ones in the order of the input."""
    return np.argsort(-values, kind="stable")[:k]
