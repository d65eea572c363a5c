"""One image of a TIFF, read piece by piece: tiles or strips, decoded when needed, a few kept.

Uncompressed pieces are mapped into memory instead, so that a flat file in one strip costs what is looked at.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import BackendError, FormatError, MedseqError
from medseq.io.oversize import no_memory
from medseq.io.privacy import path_label

__all__ = ["SegmentedImage", "damage", "open_tiff", "quiet"]

_CACHE_BYTES = 64 << 20
# A compressed piece is decoded whole.
_MAX_PIECE_BYTES = 1 << 29
_UNCOMPRESSED, _NO_PREDICTOR = 1, 1
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6
_CONTIGUOUS = 1
_tifffile_log = logging.getLogger("tifffile")


def open_tiff(path: Path) -> Any:
    """A ``tifffile.TiffFile``.

    Raises:
        FormatError: Damaged or truncated.
        BackendError: tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError:
        raise BackendError("tifffile is not installed", remedy="pip install 'medseq[wsi]'") from None
    with quiet(), damage(path_label(path), "its directory cannot be read"):
        tiff = tifffile.TiffFile(path)
        if not len(tiff.pages):
            tiff.close()
            raise ValueError("no images")
        return tiff


@contextmanager
def quiet() -> Iterator[None]:
    """Keep tifffile's log silent: its messages hold file names."""
    before = _tifffile_log.disabled
    _tifffile_log.disabled = True
    try:
        yield
    finally:
        _tifffile_log.disabled = before


@contextmanager
def damage(where: str, what: str) -> Iterator[None]:
    """Turn what tifffile and the decoders raise on damaged files into `FormatError`."""
    try:
        yield
    except MedseqError:
        raise
    except MemoryError:
        raise no_memory(where) from None
    except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError, AttributeError, OSError) as error:
        if "imagecodecs" in str(error) and "require" in str(error):
            raise BackendError(
                "no decoder for the compression of a slide", where=where, remedy="pip install 'medseq[wsi]'"
            ) from None
        raise FormatError(
            what, where=where, found=type(error).__name__, remedy="the file is damaged or truncated: copy it again"
        ) from None


class SegmentedImage:
    """Pixels of one TIFF page as RGB.

    Args:
        tiff: The open file.
        page: The page.
        where: Label of the file for messages.

    Raises:
        FormatError: Pixels that are not 8 or 16 bits of grey or RGB, or pieces too large to decode.
    """

    def __init__(self, tiff: Any, page: Any, where: str) -> None:
        self._tiff, self._page, self._where = tiff, page, where
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        self._piece_w = int(page.tilewidth) if page.is_tiled else self.width
        self._piece_h = int(page.tilelength) if page.is_tiled else min(int(page.rowsperstrip), self.height)
        self._across, self._down = -(-self.width // self._piece_w), -(-self.height // self._piece_h)
        # Colours in separate planes are separate pieces.
        self._planes = 1 if page.planarconfig == _CONTIGUOUS else int(page.samplesperpixel)
        self._samples = int(page.samplesperpixel) // self._planes
        self._offsets, self._counts = page.dataoffsets, page.databytecounts
        self._is_mapped = page.compression == _UNCOMPRESSED and page.predictor == _NO_PREDICTOR
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cached_bytes = 0
        self._check()

    def _check(self) -> None:
        page, samples = self._page, int(self._page.samplesperpixel)
        good = (page.photometric in (_RGB, _YCBCR) and samples in (3, 4)) or (
            page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and samples in (1, 2)
        )
        if not good or page.dtype not in (np.dtype("u1"), np.dtype("u2")):
            found = f"{samples} samples of {page.dtype}, photometric {int(page.photometric)}"
            raise FormatError("not a brightfield slide", where=self._where, found=found, wanted="8 or 16 bit RGB")
        if len(self._offsets) < self._across * self._down * self._planes or len(self._counts) != len(self._offsets):
            raise FormatError("its list of pieces is incomplete", where=self._where, found=len(self._offsets))
        size = self._piece_w * self._piece_h * self._samples * page.dtype.itemsize
        if size > _MAX_PIECE_BYTES and not self._is_mapped:
            raise FormatError(
                "stored in pieces too large to decode",
                where=self._where,
                found=f"{size / 1e9:.1f} GB a piece",
                wanted=f"up to {_MAX_PIECE_BYTES / 1e9:.1f} GB",
                remedy="convert it to a tiled TIFF",
            )

    @property
    def missing_share(self) -> float:
        """Share of the pieces that end beyond the end of the file."""
        size = self._tiff.filehandle.size
        ends = np.asarray(self._offsets, dtype=np.float64) + np.asarray(self._counts, dtype=np.float64)
        return float(np.mean(ends > size))

    def read(self, target: np.ndarray, left: int, top: int) -> None:
        """Fill ``(row, col, 3)`` uint8 `target` with the pixels from ``(left, top)`` on; all of it lies inside.

        Raises:
            FormatError: A piece cannot be read.
        """
        height, width = target.shape[:2]
        for row in range(top // self._piece_h, (top + height - 1) // self._piece_h + 1):
            for col in range(left // self._piece_w, (left + width - 1) // self._piece_w + 1):
                y, x = row * self._piece_h, col * self._piece_w
                y0, y1 = max(y, top), min(y + self._piece_h, top + height)
                x0, x1 = max(x, left), min(x + self._piece_w, left + width)
                planes = [
                    self._piece((plane * self._down + row) * self._across + col)[y0 - y : y1 - y, x0 - x : x1 - x]
                    for plane in range(self._planes)
                ]
                pixels = self._rgb(planes[0] if self._planes == 1 else np.concatenate(planes, axis=-1))
                if pixels.shape[:2] != (y1 - y0, x1 - x0):
                    raise FormatError("a piece is smaller than stated", where=self._where, found=f"x {x}, y {y}")
                target[y0 - top : y1 - top, x0 - left : x1 - left] = pixels

    def _piece(self, index: int) -> np.ndarray:
        """``(row, col, sample)`` of one tile or strip."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        with quiet(), damage(self._where, "a part of the slide cannot be read"):
            piece = self._mapped(index) if self._is_mapped else self._decoded(index)
        if not self._is_mapped:
            self._cache[index] = piece
            self._cached_bytes += piece.nbytes
            while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return piece

    def _decoded(self, index: int) -> np.ndarray:
        page, offset, count = self._page, int(self._offsets[index]), int(self._counts[index])
        if count == 0:
            return self._empty()
        if offset + count > self._tiff.filehandle.size:
            raise ValueError("beyond the end of the file")
        # Not seek and read: threads may share the file.
        data = os.pread(self._tiff.filehandle.fileno(), count, offset)
        piece = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
        if piece is None:
            return self._empty()
        return np.asarray(piece).reshape(piece.shape[-3:])

    def _mapped(self, index: int) -> np.ndarray:
        offset, rows = int(self._offsets[index]), self._piece_h
        if int(self._counts[index]) == 0:
            return self._empty()
        if not self._page.is_tiled:
            rows = min(rows, self.height - index % self._down * self._piece_h)
        dtype = self._page.dtype.newbyteorder(self._tiff.byteorder)
        shape = (rows, self._piece_w, self._samples)
        return np.memmap(self._tiff.filehandle.path, dtype, "r", offset, shape)

    def _empty(self) -> np.ndarray:
        """A piece that was left out: nothing was scanned there."""
        white = 0 if self._page.photometric == _WHITE_IS_ZERO else np.iinfo(self._page.dtype).max
        return np.full((self._piece_h, self._piece_w, self._samples), white, self._page.dtype)

    def _rgb(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.dtype.itemsize == 2:
            # 65535 / 255 = 257.
            pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if pixels.shape[-1] >= 3:
            return pixels[..., :3]
        grey = pixels[..., :1]
        return np.repeat(255 - grey if self._page.photometric == _WHITE_IS_ZERO else grey, 3, axis=-1)
