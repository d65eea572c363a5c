"""What every reader of slide files shares: resolution, colours, bounds, a label for messages, and closing."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

from medseq.errors import InputError
from medseq.io.privacy import path_label
from medseq.io.slide_colour import ColourTransform, IccState
from medseq.io.slide_mpp import Mpp, require_mpp, user_mpp

__all__ = ["MAX_REGION_PIXELS", "SlideFile"]

# 3 bytes a pixel: no region takes more than 200 MB, whoever asks.
MAX_REGION_PIXELS = 1 << 26


class SlideFile(ABC):
    """A `medseq.io.slide.Slide` over a file; a context manager. Use `medseq.io.slide_open.open_slide`.

    Label and macro images are never read: a label shows names and numbers of a person.

    Attributes:
        dims: ``(width, height)`` of every level, level 0 first and largest.
        levels: Number of levels.
        mpp: ``(x, y)`` microns per pixel of level 0, or None.
        mpp_source: ``file``, ``user`` or None.
        format: What kind of file this is: ``aperio``, ``hamamatsu``, ``ome-tiff`` …
        objective_power: Magnification of the objective, or None.
        label: Stands for the file in messages; see `medseq.io.privacy`.
    """

    dims: tuple[tuple[int, int], ...]
    levels: int
    mpp: Mpp | None
    mpp_source: Literal["file", "user"] | None
    format: str
    objective_power: float | None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = path_label(path)
        self._colours = ColourTransform(None)

    @property
    def downsamples(self) -> tuple[float, ...]:
        """Pixels of level 0 in a pixel of each level, along one side."""
        width, height = self.dims[0]
        return tuple(math.sqrt(width / w * height / h) for w, h in self.dims)

    @property
    def icc(self) -> IccState:
        """What became of the colour profile."""
        return self._colours.state

    def require_mpp(self) -> Mpp:
        """Microns per pixel of level 0.

        Raises:
            InputError: Unknown, or pixels are not square.
        """
        return require_mpp(self.mpp, self.mpp_source, self.objective_power, self.label)

    def region(self, x0: int, y0: int, level: int, width: int, height: int) -> np.ndarray:
        """Part of a level as ``(height, width, 3)`` uint8 sRGB; white outside of the slide.

        Args:
            x0: Left edge in pixels of level 0, whatever the level; may lie outside.
            y0: Top edge in pixels of level 0.
            level: Pyramid level to read.
            width: Width in pixels of that level.
            height: Height in pixels of that level.

        Raises:
            InputError: No such level, or a region that is empty or above 64 million pixels.
            FormatError: This part of the file cannot be read; others may be.
        """
        if not 0 <= level < self.levels:
            raise InputError("no such level", where=self.label, found=level, wanted=f"0 to {self.levels - 1}")
        if width < 1 or height < 1 or width * height > MAX_REGION_PIXELS:
            found = f"{width} x {height} pixels"
            raise InputError("no such region", where=self.label, found=found, wanted="1 to 64 million pixels")
        return self._colours(self._read(int(x0), int(y0), level, int(width), int(height)))

    @abstractmethod
    def _read(self, x0: int, y0: int, level: int, width: int, height: int) -> np.ndarray:
        """As `region`, in the colours of the file."""

    @abstractmethod
    def close(self) -> None:
        """Give the file back."""

    def _set_mpp(self, found: Mpp | None, given: float | Sequence[float] | None) -> None:
        """The user's word counts more than the file's."""
        if given is not None:
            self.mpp, self.mpp_source = user_mpp(given), "user"
        else:
            self.mpp, self.mpp_source = found, ("file" if found else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
