"""Bags to files: the HDF5 layout that TRIDENT writes and CLAM reads, filled batch by batch and resumable.

    features (n, d) float16 or float32     name, encoder
    coords   (n, 2) int64, level-0 (x, y)  patch_size_level0, mpp, name, and what the caller adds

While patches arrive they go to a log beside the target, ``<name>.part`` (`medseq.io.bag_log`). The process may be
killed at any moment: whoever opens the writer again finds every whole append. The HDF5 file appears, complete, at
`commit`.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseq.errors import InputError, OutputError, ShapeError
from medseq.io.atomic import clear, discard, fsync, publish, written
from medseq.io.bag_log import BagLog

__all__ = ["BagWriter"]

_SHOWN = 5


class BagWriter:
    """Writes the bag of one slide.

    Args:
        path: ``.h5`` or ``.hdf5``.
        dim: Numbers a patch.
        encoder: Name of the patch encoder.
        mpp: Microns per pixel at which the patches are encoded.
        patch_size_level0: Side of a patch in pixels of level 0.
        slide_id: Pseudonym of the slide.
        patient_id: Pseudonym of the patient.
        attributes: Further attributes of `coords`: ``patch_size``, ``level0_magnification``, ``overlap``, a hash of the
            settings. A log is only continued with the same ones. Nothing that identifies a person.

    Raises:
        InputError: A size that is not positive.
        OutputError: Not an HDF5 name; an unfinished bag of other settings; a folder that cannot be written.
        RetryableError: Another process is writing the bag.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        dim: int,
        *,
        encoder: str,
        mpp: float | None,
        patch_size_level0: int,
        slide_id: str,
        patient_id: str,
        attributes: Mapping[str, str | int | float] | None = None,
    ) -> None:
        self.target = Path(path)
        if self.target.suffix.lower() not in (".h5", ".hdf5"):
            raise OutputError("not an HDF5 name", found=self.target.suffix or "no suffix", wanted=".h5 or .hdf5")
        sizes = {"dim": dim, "patch_size_level0": patch_size_level0, "mpp": 1.0 if mpp is None else mpp}
        wrong = {name: value for name, value in sizes.items() if not (math.isfinite(value) and value > 0)}
        if wrong:
            raise InputError("the sizes of a bag are positive", found=wrong)
        self.dim, self.encoder = int(dim), encoder
        self.slide_id, self.patient_id = slide_id, patient_id
        own = {"patch_size_level0": int(patch_size_level0), "mpp": mpp, "name": slide_id}
        self._attributes = {**(attributes or {}), **{name: value for name, value in own.items() if value is not None}}
        with written("the output folder"):
            self.target.parent.mkdir(parents=True, exist_ok=True)
        about = {"encoder": encoder, "slide_id": slide_id, "patient_id": patient_id, **self._attributes}
        self._log: BagLog | None = BagLog(self._part, self.dim, about)

    @property
    def done(self) -> int:
        """Patches that are safely there, of this and of earlier, killed processes."""
        return self._open().rows

    def coords(self) -> np.ndarray:
        """Corners of the patches that are safely there, ``(done, 2)``: what a resumed run need not encode again."""
        parts = [coords for _, coords in self._open().batches()]
        return np.concatenate([np.empty((0, 2), np.int64), *parts])

    def append(self, features: np.ndarray, coords: np.ndarray) -> None:
        """Add patches, all of them or, if the process dies, none.

        Args:
            features: ``(k, dim)``, float16 or float32, of one type in the whole bag.
            coords: ``(k, 2)`` integers, top-left corners ``(x, y)`` in pixels of level 0.

        Raises:
            ShapeError: Another width, type or number of coords.
            InputError: NaN or infinite features, with their rows.
            RetryableError: A full disk; what was there stays.
        """
        log = self._open()
        features, coords = np.asarray(features), np.asarray(coords)
        wanted = "float16 or float32" if log.dtype is None else log.dtype.name
        if features.ndim != 2 or features.shape[1] != self.dim or features.dtype.name not in wanted.split(" or "):
            raise ShapeError(
                "features do not fit the bag",
                found=f"{features.dtype} {features.shape}",
                wanted=f"{wanted} (k, {self.dim}) of '{self.encoder}'",
            )
        if coords.shape != (len(features), 2) or coords.dtype.kind not in "iu":
            raise ShapeError(
                "coords do not fit the features",
                found=f"{coords.dtype} {coords.shape}",
                wanted=f"integers ({len(features)}, 2)",
            )
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            rows = ", ".join(str(log.rows + row) for row in bad[:_SHOWN]) + (" …" if len(bad) > _SHOWN else "")
            raise InputError(
                "features are NaN or infinite",
                where=f"encoder '{self.encoder}'",
                found=f"{len(bad)} of {len(features)} patches: rows {rows}",
                remedy="check the encoder; float16 overflows at 65504",
            )
        if len(features):
            log.append(features, coords)

    def commit(self) -> Path:
        """Publish the bag and remove the log; returns the path.

        Raises:
            OutputError: No patches: an empty bag is an error, never a file.
            RetryableError: A full disk; the log stays, and a later commit continues from it.
        """
        log = self._open()
        if not log.rows:
            raise OutputError(
                "the bag holds no patches", where="the bag", remedy="look at the tissue mask of the slide"
            )
        partial = clear(self.target)
        with written("the bag"):
            self._write_h5(partial, log)
            fsync(partial)
        publish(partial, self.target)
        log.close()
        self._log = None
        discard(self._part)
        return self.target

    def close(self) -> None:
        """Let go of the log without committing: a later writer continues it. Nothing happens after a commit."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def abort(self) -> None:
        """Throw the unfinished bag away; nothing happens after a commit."""
        if self._log is not None:
            self.close()
            discard(self._part)

    @property
    def _part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    def _open(self) -> BagLog:
        if self._log is None:
            raise OutputError("the bag is closed", remedy="open a new writer")
        return self._log

    def _write_h5(self, path: Path, log: BagLog) -> None:
        import h5py

        with h5py.File(path, "w") as file:
            # Not in HDF5 chunks: rows lie behind each other, and any run of them is one read.
            features = file.create_dataset("features", (log.rows, self.dim), log.dtype)
            coords = file.create_dataset("coords", (log.rows, 2), "<i8")
            row = 0
            for some, where in log.batches():
                features[row : row + len(some)] = some
                coords[row : row + len(some)] = where
                row += len(some)
            features.attrs.update({"name": self.slide_id, "encoder": self.encoder})
            coords.attrs.update(self._attributes)
            file.attrs.update({"slide_id": self.slide_id, "patient_id": self.patient_id})
