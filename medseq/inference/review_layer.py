"""One volume on the screen: single planes read when asked for, other planes from memory, bounded. No torch.

Planes of the acquisition are read one by one. Planes across it need the whole volume; one that is larger than the
budget is kept as means over blocks of pixels (`Layer.reduced`), which the screen says. Values under the cursor and of
regions always come from the file.
"""

import threading
from typing import Any

import numpy as np

from medseq.errors import InputError
from medseq.inference.review_cache import ByteCache
from medseq.inference.review_geometry import Geometry, Plane, PlaneLayout
from medseq.io.volume import VolumeReader

__all__ = ["WHOLE_BYTES", "Layer"]

# A volume up to this size is kept as it is for planes across the acquisition.
WHOLE_BYTES = 400 << 20


class Layer:
    """A volume that is looked at.

    Args:
        role: ``before``, ``after``, ``difference`` or ``uncertainty``.
        reader: The volume; read by one thread at a time.
        cache: Where planes and volumes are kept.
        key: Tells this volume from others in the cache.
        whole_bytes: See `WHOLE_BYTES`; default: that, or a third of the cache if it is smaller.
    """

    def __init__(
        self,
        role: str,
        reader: VolumeReader,
        cache: "ByteCache[Any]",
        key: str,
        whole_bytes: int | None = None,
    ) -> None:
        self.role, self.header, self.geometry = role, reader.header, Geometry(reader.header)
        self._reader, self._cache, self._key, self._lock = reader, cache, key, threading.Lock()
        size = 4 * int(np.prod(self.header.shape[:3]))
        # Before and after fit into the cache together.
        whole_bytes = whole_bytes or min(WHOLE_BYTES, cache.max_bytes // 3)
        self.reduced = max(1, int(np.ceil(np.sqrt(size / whole_bytes))))
        # Compressed NIfTI is read forwards only: a volume that fits is read once.
        self._at_once = self.header.source.kind == "nifti" and self.reduced == 1

    @property
    def frames(self) -> int:
        """Time points."""
        return self.header.shape[3] if len(self.header.shape) == 4 else 1

    def layout(self, plane: Plane) -> PlaneLayout:
        """How a plane lies on the screen."""
        return self.geometry.layouts[plane]

    def picture(self, plane: Plane, index: int, frame: int = 0) -> np.ndarray:
        """Values of a plane as it stands on the screen, for looking at; NaN where there is padding.

        Raises:
            InputError: No such slice or frame.
        """
        layout = self.layout(plane)
        self._require(layout, index, frame)
        if layout.axes[0] == 0:
            along = layout.shape[0] - 1 - index if layout.flips[0] else index
            return layout.turned(self._own_plane(along, frame))
        volume = self._volume(frame)
        along = layout.shape[0] - 1 - index if layout.flips[0] else index
        return layout.turned(
            np.take(volume, min(along // self.reduced, volume.shape[layout.axes[0]] - 1), layout.axes[0])
        )

    def values(self, plane: Plane, index: int, frame: int = 0) -> np.ndarray:
        """Exact values of a plane as it stands on the screen; NaN where there is padding."""
        layout = self.layout(plane)
        if layout.axes[0] == 0 or self.reduced == 1:
            return self.picture(plane, index, frame)
        self._require(layout, index, frame)
        along = layout.shape[0] - 1 - index if layout.flips[0] else index
        lines = [
            np.take(self._own_plane(k, frame, keep=False), along, layout.axes[0] - 1)
            for k in range(self.header.shape[0])
        ]
        return layout.turned(np.stack(lines))

    def value(self, voxel: tuple[float, float, float], frame: int = 0) -> float | None:
        """Value of the voxel ``[slice, row, col]`` nearest to a place; None outside and in padding."""
        nearest = [round(v) for v in voxel]
        if not all(0 <= n < size for n, size in zip(nearest, self.header.shape, strict=False)):
            return None
        value = float(self._own_plane(nearest[0], frame)[nearest[1], nearest[2]])
        return value if np.isfinite(value) else None

    def sample(self, frame: int = 0, planes: int = 5) -> np.ndarray:
        """Values of some planes spread over the volume, ``(n, row, col)``, for windows and limits."""
        count = self.header.shape[0]
        chosen = sorted({int((k + 0.5) * count / planes) for k in range(planes)})
        return np.stack([self._own_plane(k, frame) for k in chosen])

    def volume(self, frame: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """All voxels ``[slice, row, col]``, as means over blocks if `reduced`, and their affine.

        Raises:
            InputError: Uneven slices.
        """
        if self.header.affine is None:
            raise InputError("the slices are unevenly spaced", remedy="look at the stack, or run with --resample")
        self._require(self.layout("stack"), 0, frame)
        grid = np.diag([float(self.reduced), float(self.reduced), 1.0, 1.0])
        grid[:2, 3] = (self.reduced - 1) / 2
        return self._volume(frame), self.header.affine @ grid

    def _require(self, layout: PlaneLayout, index: int, frame: int) -> None:
        if not 0 <= index < layout.shape[0]:
            raise InputError("no such slice", found=index, wanted=f"0 to {layout.shape[0] - 1}")
        if not 0 <= frame < self.frames:
            raise InputError("no such time point", found=frame, wanted=f"0 to {self.frames - 1}")

    def _own_plane(self, k: int, frame: int, *, keep: bool = True) -> np.ndarray:
        if self._at_once:
            whole: np.ndarray = self._volume(frame)[k]
            return whole
        number = frame * self.header.shape[0] + k
        if not keep:
            return self._read(number, number + 1)[0]
        plane: np.ndarray = self._cache.get((self._key, "plane", number), lambda: self._read(number, number + 1)[0])
        return plane

    def _volume(self, frame: int) -> np.ndarray:
        volume: np.ndarray = self._cache.get((self._key, "volume", frame), lambda: self._load(frame))
        return volume

    def _load(self, frame: int) -> np.ndarray:
        slices, rows, cols = self.header.shape[:3]
        first = frame * slices
        if self._at_once:
            return self._read(first, first + slices)
        f = self.reduced
        out = np.empty((slices, -(-rows // f), -(-cols // f)), np.float32)
        for k in range(slices):
            plane = self._own_plane(k, frame, keep=f == 1 and slices <= 64)
            out[k] = plane if f == 1 else _block_means(plane, f)
        # Block means stand for all voxels of an axis across the stack alike.
        return out

    def _read(self, lo: int, hi: int) -> np.ndarray:
        with self._lock:
            planes, valid = self._reader.read(lo, hi), self._reader.valid(lo, hi)
        return planes if valid is None else np.where(valid, planes, np.float32(np.nan))


def _block_means(plane: np.ndarray, factor: int) -> np.ndarray:
    """Means over blocks of pixels; the last ones may be smaller."""
    rows, cols = (-(-side // factor) * factor for side in plane.shape)
    padded = np.pad(plane, ((0, rows - plane.shape[0]), (0, cols - plane.shape[1])), mode="edge")
    blocks = padded.reshape(rows // factor, factor, cols // factor, factor)
    return blocks.mean(axis=(1, 3), dtype=np.float32)
