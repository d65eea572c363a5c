"""Pixels of a DICOM stack, decoded when they are asked for; memory is bounded by the piece."""

import itertools
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.pixels import apply_modality_lut
from pydicom.uid import UID

from medseq.errors import FormatError, ShapeError
from medseq.io.dicom_codecs import decoded_frames
from medseq.io.dicom_header import quiet, understood
from medseq.io.dicom_types import DicomSource, Frame
from medseq.io.integers import row_blocks
from medseq.io.privacy import path_label
from medseq.io.volume import VolumeHeader

__all__ = ["DicomReader", "padding_mask"]

_UNDECODABLE = "the pixel data cannot be decoded"
_REMEDY = "copy the file again; `medseq doctor` lists the decoders that are installed"
# Below any real density: what is stored there, the same in the corners, is the outside of the reconstruction circle.
_OUTSIDE_HU = -1500.0


class DicomReader:
    """A `VolumeReader` over the frames of one stack.

    The stored values of the last piece are kept, so that `read` and `valid` of one piece, or of overlapping pieces,
    decode each frame once.
    """

    def __init__(self, header: VolumeHeader):
        self._header = header
        self._source: DicomSource = header.source.header
        self._stored: dict[int, np.ndarray] = {}

    @property
    def header(self) -> VolumeHeader:
        """See `VolumeReader.header`."""
        return self._header

    def read(self, lo: int, hi: int) -> np.ndarray:
        """Planes ``lo .. hi-1`` in ``header.units``: stored values x slope + intercept of each slice.

        Raises:
            FormatError: The pixels cannot be decoded.
            RetryableError: A file cannot be read.
        """
        stored = self.stored(lo, hi)
        out = np.empty((hi - lo, *self._header.plane_shape), dtype=np.float32)
        for i in range(lo, hi):
            _rescale(stored[i - lo], self._source.frames[i], out[i - lo])
        return out

    def valid(self, lo: int, hi: int) -> np.ndarray | None:
        """False at PixelPaddingValue (and its range) and outside the reconstruction circle; None if all are valid."""
        stored, frames = self.stored(lo, hi), self._source.frames[lo:hi]
        hounsfield = self._header.units == "HU"
        masks = [padding_mask(plane, frame, hounsfield) for plane, frame in zip(stored, frames, strict=True)]
        if all(mask is None for mask in masks):
            return None
        whole = np.zeros(self._header.plane_shape, dtype=bool)
        return ~np.stack([whole if mask is None else mask for mask in masks])

    def stored(self, lo: int, hi: int) -> list[np.ndarray]:
        """Planes ``lo .. hi-1`` as they are stored, without rescale."""
        if not 0 <= lo <= hi <= len(self._source.frames):
            raise ShapeError("no such planes", found=(lo, hi), wanted=f"0 <= lo <= hi <= {len(self._source.frames)}")
        self._stored = {i: plane for i, plane in self._stored.items() if lo <= i < hi}
        wanted = [i for i in range(lo, hi) if i not in self._stored]
        for path, group in itertools.groupby(wanted, key=lambda i: self._source.frames[i].path):
            self._decode(path, list(group))
        return [self._stored[i] for i in range(lo, hi)]

    def _decode(self, path: Path, planes: list[int]) -> None:
        frames = [self._source.frames[i] for i in planes]
        by_index = dict(sorted((frame.index or 0, i) for frame, i in zip(frames, planes, strict=True)))
        syntax = UID(frames[0].pixels.transfer_syntax).name
        with understood(path_label(path), _UNDECODABLE, found=f"{syntax}: ", remedy=_REMEDY):
            decoded = list(decoded_frames(path, by_index, frames[0].pixels))
        if len(decoded) != len(planes) or any(plane.shape != self._header.plane_shape for plane in decoded):
            found = f"{len(decoded)} planes of {[plane.shape for plane in decoded[:1]]}"
            raise FormatError(_UNDECODABLE, where=path_label(path), found=found, remedy=_REMEDY)
        self._stored.update(zip(by_index.values(), decoded, strict=True))


def padding_mask(stored: np.ndarray, frame: Frame, hounsfield: bool) -> np.ndarray | None:
    """True where a stored plane holds no measurement; None if it holds one everywhere.

    Args:
        stored: ``(row, col)`` stored values.
        frame: Its frame.
        hounsfield: The rescaled values are HU, so that values far below air, the same in at least three corners, mark
            the outside of the reconstruction circle even where no PixelPaddingValue says so.
    """
    mask = np.zeros(stored.shape, dtype=bool)
    if frame.padding is not None:
        mask |= (stored >= frame.padding[0]) & (stored <= frame.padding[1])
    if hounsfield and not frame.lut:
        corners = sorted(int(stored[r, c]) for r in (0, -1) for c in (0, -1))
        # Of four sorted values, three are the same only if the middle two and a neighbour are.
        same = corners[1] == corners[2] and corners[1] in (corners[0], corners[3])
        if same and corners[1] * frame.slope + frame.intercept <= _OUTSIDE_HU:
            mask |= stored == corners[1]
    return mask if mask.any() else None


def _rescale(stored: np.ndarray, frame: Frame, out: np.ndarray) -> None:
    """Stored values to real ones, written into `out` (row, col) float32."""
    if frame.lut:
        with quiet():
            out[:] = apply_modality_lut(stored, dcmread(frame.path, stop_before_pixels=True, force=True))
        return
    for rows in row_blocks(stored.shape):
        # In float64, as pydicom does it, then rounded once.
        out[rows] = stored[rows].astype(np.float64) * frame.slope + frame.intercept
