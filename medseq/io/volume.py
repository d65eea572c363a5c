"""Value objects for images: what a volume is, how it is read in pieces and written in pieces.

Index order is ``[slice, row, col]`` everywhere; an affine maps ``(col, row, slice, 1)`` to RAS millimetres.
NIfTI is transposed once in `medseq.io.nifti`; DICOM's LPS is negated once in `medseq.io.dicom`.
A 4-D volume ``(slice, row, col, time)`` is streamed as planes, time-major: plane = time * slices + slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from medseq.errors import ShapeError

__all__ = ["Modality", "SourceRef", "Units", "Volume", "VolumeHeader", "VolumeReader", "VolumeWriter"]

Modality = Literal["CT", "MR", "PT", "NM", "OT"]
Units = Literal["HU", "SUVbw", "Bq/ml", "1"]


@dataclass(frozen=True)
class SourceRef:
    """Where a volume came from. Never printed: paths and headers may identify a person.

    Attributes:
        kind: ``dicom``, ``nifti``, ``kspace`` or ``memory``.
        files: Source files, in slice order for DICOM.
        header: What the writer needs to write the same geometry and identity back; opaque to everyone else.
    """

    kind: Literal["dicom", "nifti", "kspace", "memory"]
    files: tuple[Path, ...] = ()
    header: Any = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        return f"SourceRef({self.kind}, {len(self.files)} files)"


@dataclass(frozen=True)
class VolumeHeader:
    """Shape, geometry and meaning of a volume, without its pixels.

    Attributes:
        shape: ``(slice, row, col)`` or ``(slice, row, col, time)``.
        dtype: Stored dtype of the source; `VolumeReader.read` always returns float32 in `units`.
        affine: 4x4 float64, ``(col, row, slice, 1)`` -> RAS mm; None if the slices are unevenly spaced.
        slice_affines: ``(slices, 4, 4)`` float64, one exact in-plane affine a slice (column 2 is the unit normal).
        modality: CT, MR, PT, NM or OT (other).
        units: HU, SUVbw, Bq/ml or 1 (arbitrary).
        frame_of_reference: DICOM FrameOfReferenceUID, or None.
        source: Where it came from.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray | None
    slice_affines: np.ndarray
    modality: Modality
    units: Units
    # Not in the repr: whoever has the archive finds the patient by it.
    frame_of_reference: str | None = field(default=None, repr=False)
    source: SourceRef = SourceRef("memory")

    def __post_init__(self) -> None:
        if len(self.shape) not in (3, 4) or min(self.shape) < 1:
            raise ShapeError(
                "volume shape is not usable", found=self.shape, wanted="(slice, row, col[, time]), all >= 1"
            )
        if self.affine is not None and np.shape(self.affine) != (4, 4):
            raise ShapeError("affine has the wrong shape", found=np.shape(self.affine), wanted=(4, 4))
        if np.shape(self.slice_affines) != (self.shape[0], 4, 4):
            raise ShapeError(
                "one affine a slice is needed", found=np.shape(self.slice_affines), wanted=(self.shape[0], 4, 4)
            )

    @property
    def planes(self) -> int:
        """Number of planes that `VolumeReader.read` runs over: slices x time points."""
        return self.shape[0] * (self.shape[3] if len(self.shape) == 4 else 1)

    @property
    def plane_shape(self) -> tuple[int, int]:
        """``(row, col)``."""
        return self.shape[1], self.shape[2]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """``(slice, row, col)`` spacing in mm; the slice spacing of uneven slices is the median distance."""
        in_plane = np.linalg.norm(self.slice_affines[0, :3, :2], axis=0)
        if self.affine is not None:
            # Along the slice normal, so that a sheared (tilted) stack gives the true slice distance.
            normal = np.cross(self.affine[:3, 0], self.affine[:3, 1])
            length = np.linalg.norm(normal)
            step = abs(self.affine[:3, 2] @ normal) / length if length else float(np.linalg.norm(self.affine[:3, 2]))
        elif self.shape[0] > 1:
            step = float(np.median(np.linalg.norm(np.diff(self.slice_affines[:, :3, 3], axis=0), axis=1)))
        else:
            step = 1.0
        return float(step), float(in_plane[1]), float(in_plane[0])


@runtime_checkable
class VolumeReader(Protocol):
    """Reads a volume in pieces; memory is bounded by the piece."""

    @property
    def header(self) -> VolumeHeader: ...

    def read(self, lo: int, hi: int) -> np.ndarray:
        """Planes ``lo .. hi-1`` as ``(hi - lo, row, col)`` float32 in ``header.units``."""
        ...

    def valid(self, lo: int, hi: int) -> np.ndarray | None:
        """Boolean ``(hi - lo, row, col)``, False where the scanner stored padding; None if all are valid."""
        ...


@runtime_checkable
class VolumeWriter(Protocol):
    """Writes a volume in pieces; nothing is visible at its final place before `commit`."""

    def begin(self, header: VolumeHeader) -> None: ...

    def write(self, lo: int, planes: np.ndarray) -> None:
        """Planes ``lo ..`` as ``(n, row, col)`` in ``header.units``; planes come in order."""
        ...

    def commit(self) -> Sequence[Path]:
        """Flush, fsync and rename; returns the final paths."""
        ...

    def abort(self) -> None:
        """Remove everything written so far."""
        ...


@dataclass(frozen=True)
class Volume:
    """A volume in memory; also a `VolumeReader`.

    Attributes:
        header: Geometry and meaning.
        array: ``(slice, row, col[, time])`` in ``header.units``.
        mask: Boolean of the same shape, False where the scanner stored padding; None if all pixels are valid.
    """

    header: VolumeHeader
    array: np.ndarray
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, array in (("array", self.array), ("mask", self.mask)):
            if array is not None and array.shape != self.header.shape:
                raise ShapeError(f"{name} and header disagree", found=array.shape, wanted=self.header.shape)

    @classmethod
    def from_array(
        cls,
        array: np.ndarray,
        *,
        affine: np.ndarray | None = None,
        modality: Modality = "OT",
        units: Units = "1",
    ) -> "Volume":
        """Wrap an array ``(slice, row, col[, time])``; without an affine, 1 mm axis-aligned voxels at the origin."""
        affine = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
        header = VolumeHeader(
            shape=tuple(array.shape),
            dtype=array.dtype,
            affine=affine,
            slice_affines=slice_affines(affine, array.shape[0]),
            modality=modality,
            units=units,
        )
        return cls(header, array)

    def read(self, lo: int, hi: int) -> np.ndarray:
        """See `VolumeReader.read`."""
        return self._planes(self.array, lo, hi).astype(np.float32)

    def valid(self, lo: int, hi: int) -> np.ndarray | None:
        """See `VolumeReader.valid`."""
        return None if self.mask is None else self._planes(self.mask, lo, hi)

    @staticmethod
    def _planes(array: np.ndarray, lo: int, hi: int) -> np.ndarray:
        if array.ndim == 4:
            array = np.moveaxis(array, 3, 0).reshape(-1, *array.shape[1:3])
        return array[lo:hi]


def slice_affines(affine: np.ndarray, slices: int) -> np.ndarray:
    """One in-plane affine a slice from a volume affine: ``(slices, 4, 4)``, column 2 the unit slice normal."""
    out = np.repeat(np.asarray(affine, dtype=np.float64)[None], slices, axis=0)
    out[:, :3, 3] += np.arange(slices)[:, None] * affine[None, :3, 2]
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    length = np.linalg.norm(normal)
    out[:, :3, 2] = normal / length if length else (0.0, 0.0, 1.0)
    return out
