"""Uneven slices to an even grid: linear interpolation along the slice normal, plane by plane."""

from dataclasses import dataclass, replace

import numpy as np

from medseq.errors import ShapeError
from medseq.io.dicom_geometry import grid_tolerance
from medseq.io.source import SourceWarning
from medseq.io.volume import SourceRef, VolumeHeader, VolumeReader, slice_affines

__all__ = ["ResampledSource", "resample_uniform"]


@dataclass(frozen=True)
class ResampledSource:
    """Source header of a resampled volume: its remarks; there is no original grid to write back to."""

    warnings: tuple[SourceWarning, ...]


def resample_uniform(reader: VolumeReader) -> VolumeReader:
    """A reader with evenly spaced slices at the median distance of the source's.

    Each new plane is a weighted mean of its two neighbours; it is valid where both are. A reader whose slices are
    even already is returned as it is. The new volume has no DICOM source: it can be written as NIfTI, not as a
    derived series.

    Args:
        reader: A 3-D volume, slices in order.

    Raises:
        ShapeError: The slices do not lie along one line, so that interpolation would shift the anatomy.
    """
    header = reader.header
    if header.affine is not None:
        return reader
    origins = header.slice_affines[:, :3, 3]
    normal = header.slice_affines[0, :3, 2]
    along = (origins - origins[0]) @ normal
    line = (origins[-1] - origins[0]) / along[-1]
    off = np.linalg.norm(origins - origins[0] - along[:, None] * line, axis=1).max()
    # Linear interpolation between two slices assumes that they are not shifted sideways.
    allowed = grid_tolerance(min(header.spacing_mm[1:]))
    if off > allowed:
        raise ShapeError(
            "uneven slices that do not lie along one line cannot be resampled",
            found=f"{off:.3g} mm off the line",
            wanted=f"at most {allowed:.3g} mm",
            remedy="write DICOM, which keeps every slice where it is",
        )
    step = float(np.median(np.diff(along)))
    planes = int(np.floor(along[-1] / step + 1e-6)) + 1
    affine = header.slice_affines[0].copy()
    affine[:3, 2] = line * step
    text = f"slices were interpolated from uneven spacing to one every {step:.4g} mm"
    kept = tuple(w for w in getattr(header.source.header, "warnings", ()) if w.code != "uneven-spacing")
    source = SourceRef("memory", header.source.files, ResampledSource((*kept, SourceWarning("resampled", text))))
    even = replace(
        header,
        shape=(planes, *header.shape[1:]),
        dtype=np.dtype(np.float32),
        affine=affine,
        slice_affines=slice_affines(affine, planes),
        source=source,
    )
    return _Resampled(reader, even, along, step)


class _Resampled:
    def __init__(self, reader: VolumeReader, header: VolumeHeader, along: np.ndarray, step: float):
        self._reader, self._header = reader, header
        places = np.interp(np.arange(header.planes) * step, along, np.arange(len(along)))
        self._left = np.minimum(places.astype(int), len(along) - 2)
        self._weight = places - self._left

    @property
    def header(self) -> VolumeHeader:
        return self._header

    def read(self, lo: int, hi: int) -> np.ndarray:
        """See `VolumeReader.read`."""
        out = np.empty((hi - lo, *self._header.plane_shape), dtype=np.float32)
        for i in range(lo, hi):
            left, right = self._reader.read(int(self._left[i]), int(self._left[i]) + 2)
            out[i - lo] = left + (right - left) * self._weight[i]
        return out

    def valid(self, lo: int, hi: int) -> np.ndarray | None:
        """True where both neighbours are valid."""
        masks = [self._reader.valid(int(self._left[i]), int(self._left[i]) + 2) for i in range(lo, hi)]
        if all(mask is None for mask in masks):
            return None
        whole = np.ones(self._header.plane_shape, dtype=bool)
        return np.stack([whole if mask is None else mask.all(axis=0) for mask in masks])
