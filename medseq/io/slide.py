"""What a whole-slide image is: the contract that slide readers fulfil."""

from typing import Literal, Protocol, runtime_checkable

import numpy as np

__all__ = ["Slide"]


@runtime_checkable
class Slide(Protocol):
    """A pyramid of one slide, read region by region; memory is bounded by the region.

    Attributes:
        dims: ``(width, height)`` of every level in pixels, level 0 first and largest.
        levels: Number of levels.
        mpp: ``(x, y)`` microns per pixel of level 0, or None if neither the file nor the user says.
        mpp_source: Who said so: ``file`` or ``user``; None if unknown.
    """

    dims: tuple[tuple[int, int], ...]
    levels: int
    mpp: tuple[float, float] | None
    mpp_source: Literal["file", "user"] | None

    def region(self, x0: int, y0: int, level: int, width: int, height: int) -> np.ndarray:
        """Part of a level as ``(height, width, 3)`` uint8 RGB.

        Args:
            x0: Left edge in pixels of level 0, whatever the level.
            y0: Top edge in pixels of level 0.
            level: Pyramid level to read.
            width: Width in pixels of that level.
            height: Height in pixels of that level.
        """
        ...
