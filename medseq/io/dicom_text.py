"""Text drawn into pixels: rows of small, sharp signs of one brightness near the edges, where scanners write names.

It finds writing, it does not read it. What it finds is reason enough to leave an image out; that it finds nothing is
no proof that there is none, so whatever a header says against an image still counts.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import iter_pixels
from pydicom.uid import UID

from medseq.io.dicom_codecs import decoded_frames, decoder_plugin
from medseq.io.dicom_types import PixelFormat

__all__ = ["looked_at", "text_place"]

# A band of each edge that is looked at, as a share of the side.
_BAND = 0.3
# Rows and columns of a sign: fonts of scanners on images of 256 to 2048 rows.
_HEIGHT, _WIDTH = (5, 60), (1, 60)
# A sign is far from what surrounds it, as a share of the image's range of values, and of one value itself.
_CONTRAST, _SPREAD = 0.25, 0.08
# Of its box: neither a block nor a scratch. A vertical stroke (I, l, 1) fills its own.
_FILLED = (0.12, 0.95)
_SIGNS = 5


def looked_at(path: Path, dataset: Dataset) -> Iterator[np.ndarray]:
    """Three frames at most, the first, the middle and the last, each ``(row, col)``, the brightest of its colours.

    Args:
        path: The file.
        dataset: Its content.

    Raises:
        Exception: Of pydicom and its decoders, where the pixels are damaged; see `medseq.io.dicom_header.understood`.
    """
    count = int(dataset.get("NumberOfFrames") or 1)
    indices = sorted({0, count // 2, count - 1})
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if int(dataset.get("SamplesPerPixel") or 1) == 1 and syntax.is_encapsulated:
        allocated = int(dataset.BitsAllocated)
        pixels = PixelFormat(
            int(dataset.Rows),
            int(dataset.Columns),
            allocated,
            int(dataset.get("BitsStored") or allocated),
            int(dataset.get("PixelRepresentation") or 0) == 1,
            str(dataset.PhotometricInterpretation),
            str(syntax),
        )
        yield from decoded_frames(path, indices, pixels)
        return
    plugin = decoder_plugin(syntax)
    for frame in iter_pixels(dataset, indices=indices, raw=True, decoding_plugin=plugin):
        if frame.ndim == 3:
            luminance = str(dataset.PhotometricInterpretation).startswith("YBR")
            frame = frame[..., 0] if luminance else frame.max(axis=2)
        yield frame


def text_place(frame: np.ndarray) -> str | None:
    """Where a row of signs stands, ``top`` or ``bottom``; None if there is none.

    Args:
        frame: ``(row, col)`` of any real type.
    """
    image = np.asarray(frame, np.float32)
    low, high = float(image.min()), float(image.max())
    if high <= low or min(image.shape) < 2 * _HEIGHT[0]:
        return None
    image = (image - low) / (high - low)
    rows = image.shape[0]
    band = max(_HEIGHT[0], round(rows * _BAND))
    for name, part in (("top", image[:band]), ("bottom", image[rows - band :])):
        for ink in (_bright(part), _dark(part)):
            if _has_line(_signs(part, ink)):
                return name
    return None


def _bright(part: np.ndarray) -> np.ndarray:
    return part > (np.median(part) + part.max()) / 2


def _dark(part: np.ndarray) -> np.ndarray:
    return part < (np.median(part) + part.min()) / 2


def _signs(part: np.ndarray, ink: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes (top, bottom, left, right) of what has the size, the sharpness and the evenness of a sign."""
    from scipy.ndimage import binary_dilation, find_objects, label

    marks, count = label(ink, np.ones((3, 3)))
    found = []
    for number, box in enumerate(find_objects(marks), start=1):
        height, width = (piece.stop - piece.start for piece in box)
        if not (_HEIGHT[0] <= height <= _HEIGHT[1] and _WIDTH[0] <= width <= _WIDTH[1] and width <= 2 * height):
            continue
        wide = tuple(slice(max(0, piece.start - 1), piece.stop + 1) for piece in box)
        own = marks[wide] == number
        share = own.sum() / (height * width)
        if not (_FILLED[0] <= share <= _FILLED[1] or width <= max(2, height // 4)):
            continue
        # The pixels next to the sign's own, some of which may be its softened edge.
        ring = binary_dilation(own, np.ones((3, 3))) & ~own
        core, around = part[wide][own], part[wide][ring]
        if abs(np.median(core) - np.median(around)) < _CONTRAST or np.std(core) > 4 * _SPREAD:
            continue
        if np.quantile(around, 0.9) - np.quantile(around, 0.1) > 2 * _CONTRAST:
            continue
        found.append((box[0].start, box[0].stop, box[1].start, box[1].stop))
    return found


def _has_line(signs: list[tuple[int, int, int, int]]) -> bool:
    """Whether enough signs stand side by side on one line, about as high as each other."""
    signs = sorted(signs, key=lambda sign: sign[2])
    for first in signs:
        height, line = first[1] - first[0], [first]
        for sign in signs:
            gap = sign[2] - line[-1][3]
            same = abs(sign[1] - first[1]) <= 0.35 * height and 0.6 <= (sign[1] - sign[0]) / height <= 1.7
            if same and 0 <= gap <= 2 * height:
                line.append(sign)
        if len(line) >= _SIGNS:
            return True
    return False
