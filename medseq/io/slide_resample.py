"""Any part of a slide at any resolution: from the best level of the pyramid, resampled without aliasing."""

import math

import numpy as np
from PIL import Image

from medseq.errors import InputError
from medseq.io.slide import Slide

__all__ = ["best_level", "level_scale", "read_scaled"]

# Levels are rounded to whole pixels: 4.0004 is still the level for 4.
_TOLERANCE = 1.01
# Reduced by an integer box first where that leaves at least twice the wanted size, then bicubic.
_REDUCING_GAP = 2.0
# Pixels of a level that one read takes.
_MAX_SOURCE = 1 << 25


def level_scale(slide: Slide, level: int) -> tuple[float, float]:
    """Pixels of level 0 in one pixel of a level, ``(x, y)``."""
    (width, height), (w, h) = slide.dims[0], slide.dims[level]
    return width / w, height / h


def best_level(slide: Slide, scale: float) -> int:
    """The smallest level that still has at least the resolution of `scale` pixels of level 0 a pixel."""
    fine = [level for level in range(slide.levels) if min(level_scale(slide, level)) <= scale * _TOLERANCE]
    return max(fine, key=lambda level: level_scale(slide, level)[0], default=0)


def read_scaled(slide: Slide, x0: float, y0: float, scale: tuple[float, float], width: int, height: int) -> np.ndarray:
    """A part of a slide, resampled so that one pixel is exactly `scale` pixels of level 0.

    Box reduction by an integer, then bicubic (with a support that grows with the remaining factor).

    Args:
        slide: The slide.
        x0: Left edge in pixels of level 0.
        y0: Top edge in pixels of level 0.
        scale: Pixels of level 0 in one pixel of the result, ``(x, y)``.
        width: Width of the result.
        height: Height of the result.

    Returns:
        ``(height, width, 3)`` uint8.

    Raises:
        InputError: So much would have to be read at once that memory would not be bounded.
        FormatError: The part cannot be read.
    """
    level = best_level(slide, min(scale))
    down_x, down_y = level_scale(slide, level)
    factor_x, factor_y = scale[0] / down_x, scale[1] / down_y
    if factor_x == factor_y == 1 and x0 == round(x0) and y0 == round(y0) and width * height <= _MAX_SOURCE:
        return slide.region(round(x0), round(y0), level, width, height)
    # What bicubic looks at beyond the edge.
    margin_x, margin_y = (math.ceil(2 * max(factor, 1.0)) + 1 for factor in (factor_x, factor_y))
    left, top = math.floor(x0 / down_x) - margin_x, math.floor(y0 / down_y) - margin_y
    source_w = math.ceil(width * factor_x) + 2 * margin_x + 1
    source_h = math.ceil(height * factor_y) + 2 * margin_y + 1
    if source_w * source_h > _MAX_SOURCE:
        found = f"{source_w} x {source_h} pixels of level {level}"
        raise InputError("too large a part of a slide", found=found, wanted=f"up to {_MAX_SOURCE / 1e6:.0f} million")
    origin_x, origin_y = round(left * down_x), round(top * down_y)
    source = slide.region(origin_x, origin_y, level, source_w, source_h)
    box_x, box_y = (x0 - origin_x) / down_x, (y0 - origin_y) / down_y
    box = (box_x, box_y, box_x + width * factor_x, box_y + height * factor_y)
    image = Image.fromarray(source).resize((width, height), Image.Resampling.BICUBIC, box, _REDUCING_GAP)
    return np.asarray(image)
