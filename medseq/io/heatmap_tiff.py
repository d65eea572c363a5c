"""Heat maps as pyramidal OME-TIFF: QuPath, OpenSlide and other viewers open them like a slide."""

import hashlib
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import BackendError, ShapeError
from medseq.io.atomic import clear, fsync, publish, written

__all__ = ["write_heatmap_tiff"]

_TILE = 256


def write_heatmap_tiff(path: Path, rgb: np.ndarray, pixel_um: float | None) -> Path:
    """Write a picture with halved copies of itself; tiles, lossless.

    Args:
        path: The file, ``….ome.tiff``; appears when it is complete.
        rgb: ``(row, col, 3)`` uint8.
        pixel_um: Microns a pixel, for viewers that lay the map over its slide.

    Raises:
        ShapeError: Not such a picture.
        BackendError: tifffile is missing.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ShapeError("not a picture", found=f"{rgb.dtype} {rgb.shape}", wanted="uint8 (row, col, 3)")
    try:
        import tifffile
    except ImportError:
        raise BackendError("writing a pyramidal TIFF needs tifffile", remedy="pip install 'medseq[wsi]'") from None
    levels = [rgb]
    while max(levels[-1].shape[:2]) > _TILE:
        levels.append(_halved(levels[-1]))
    # JPEG would smear the edges of patches; zlib needs no codec package.
    options: dict[str, Any] = {"photometric": "rgb", "tile": (_TILE, _TILE), "compression": "zlib", "metadata": None}
    base: dict[str, Any] = {**options, "metadata": _ome(rgb, pixel_um)}
    if pixel_um is not None:
        base |= {"resolution": (1e4 / pixel_um, 1e4 / pixel_um), "resolutionunit": "CENTIMETER"}
    part = clear(path)
    with written("the heat map"):
        with tifffile.TiffWriter(part, ome=True) as writer:
            writer.write(levels[0], subifds=len(levels) - 1, **base)
            for level in levels[1:]:
                writer.write(level, subfiletype=1, **options)
        fsync(part)
    publish(part, path)
    return path


def _ome(rgb: np.ndarray, pixel_um: float | None) -> dict[str, object]:
    # The identifier that OME wants comes from the content: the same map is the same file.
    digest = hashlib.sha256(rgb.tobytes()).digest()
    about: dict[str, object] = {"axes": "YXS", "UUID": str(uuid.UUID(bytes=digest[:16], version=4))}
    if pixel_um is None:
        return about
    size = {f"PhysicalSize{axis}": pixel_um for axis in "XY"}
    return {**about, **size, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}


def _halved(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; an odd edge is repeated."""
    padded = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), "edge").astype(np.uint16)
    quarter = padded[::2, ::2] + padded[1::2, ::2] + padded[::2, 1::2] + padded[1::2, 1::2]
    return ((quarter + 2) // 4).astype(np.uint8)
