"""Slides in the formats of scanner vendors (SVS, NDPI, MRXS, SCN, DICOM …), read by OpenSlide."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import BackendError, FormatError
from medseq.io.privacy import path_label
from medseq.io.slide_colour import ColourTransform
from medseq.io.slide_directory import require_sound
from medseq.io.slide_file import SlideFile
from medseq.io.slide_mpp import file_mpp

__all__ = ["OpenSlideFile", "detect_vendor"]

# Decoded tiles that OpenSlide keeps.
_CACHE_BYTES = 64 << 20


def detect_vendor(path: Path) -> str | None:
    """The vendor's name if OpenSlide knows the format, else None.

    Raises:
        BackendError: OpenSlide is not installed.
    """
    try:
        return _openslide().OpenSlide.detect_format(path)
    except _openslide().OpenSlideError:
        # It knows the vendor but not this file; opening says what is wrong.
        return None


class OpenSlideFile(SlideFile):
    """A slide that OpenSlide reads.

    Args:
        path: The file; of a slide in several files the one that OpenSlide opens.
        mpp: Microns per pixel if the caller knows better than the file.
        icc: Bring colours to sRGB where the file has a profile.

    Raises:
        FormatError: Damaged, truncated, or a kind of this format that OpenSlide does not read.
        BackendError: OpenSlide is not installed.
    """

    def __init__(self, path: Path, mpp: float | Sequence[float] | None = None, *, icc: bool = True) -> None:
        super().__init__(path)
        require_sound(path)
        self._handle = self._open()
        properties = self._handle.properties
        self.dims = tuple((int(w), int(h)) for w, h in self._handle.level_dimensions)
        self.levels = len(self.dims)
        self.format = str(properties.get("openslide.vendor", "unknown"))
        self.objective_power = _number(properties.get("openslide.objective-power"))
        self._set_mpp(file_mpp(properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y")), mpp)
        self._background = _background(properties.get("openslide.background-color"))
        profile = self._handle.color_profile
        self._colours = ColourTransform(profile.tobytes() if profile is not None else None, icc)

    def _open(self) -> Any:
        openslide = _openslide()
        try:
            handle = openslide.OpenSlide(self.path)
        except (openslide.OpenSlideError, OSError) as error:
            # `from None`: OpenSlide's text may hold the path.
            raise FormatError(
                "damaged, truncated, or a variant that OpenSlide does not read",
                where=path_label(self.path),
                found=type(error).__name__,
                remedy="copy the file again, or export it as a pyramidal TIFF",
            ) from None
        handle.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
        return handle

    def _read(self, x0: int, y0: int, level: int, width: int, height: int) -> np.ndarray:
        openslide = _openslide()
        try:
            rgba = np.asarray(self._handle.read_region((x0, y0), level, (width, height)))
        except openslide.OpenSlideError:
            # After its first error a handle answers nothing but that error.
            self._handle.close()
            self._handle = self._open()
            raise FormatError(
                "a part of the slide cannot be read",
                where=self.label,
                found=f"level {level}, x {x0}, y {y0}",
                remedy="medseq wsi check --scan all counts such places",
            ) from None
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if (alpha == 255).all():
            return np.ascontiguousarray(rgb)
        # Transparent: nothing was scanned there, or it lies outside.
        weight = alpha.astype(np.float32) / 255
        return np.round(rgb * weight + self._background * (1 - weight)).astype(np.uint8)

    def close(self) -> None:
        self._handle.close()


def _openslide() -> Any:
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise BackendError(
            "OpenSlide is not installed", found=type(error).__name__, remedy="pip install 'medseq[wsi]'"
        ) from None
    return openslide


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if 0 < value < 1000 else None


def _background(text: str | None) -> np.ndarray:
    """``RRGGBB`` as three numbers; white where the file does not say."""
    try:
        return np.frombuffer(bytes.fromhex(text or "ffffff"), np.uint8)[:3].astype(np.float32)
    except ValueError:
        return np.full(3, 255, np.float32)
