"""Reconstructed images to files: HDF5 as the MR toolkits exchange it, and the header that NIfTI needs."""

import contextlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import OutputError, ShapeError
from medseq.io.atomic import clear, discard, fsync, publish, written
from medseq.io.kspace import KSpaceReader
from medseq.io.mrd_header import MRDHeader
from medseq.io.volume import VolumeHeader, slice_affines

__all__ = ["ReconstructionWriter", "centre_crop", "dicom_lacks", "recon_header"]


def centre_crop(images: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The middle of the last two axes; index ``n // 2`` stays the middle, so that the reader's affine holds.

    Raises:
        ShapeError: A crop larger than the image.
    """
    (rows, cols), (wanted_rows, wanted_cols) = images.shape[-2:], shape
    if not (0 < wanted_rows <= rows and 0 < wanted_cols <= cols):
        raise ShapeError("the image is smaller than the crop", found=(rows, cols), wanted=shape)
    row, col = rows // 2 - wanted_rows // 2, cols // 2 - wanted_cols // 2
    return images[..., row : row + wanted_rows, col : col + wanted_cols]


def recon_header(reader: KSpaceReader) -> VolumeHeader:
    """Header of the images of a reader, cropped to its `recon_shape`.

    Without an affine the slices are axis-aligned at the origin, with the pixel size of `fov_mm`, or 1 mm; slices 1 mm
    apart. The reader's remarks say so where it knows (``no-orientation``, ``uneven-spacing``).
    """
    rows, cols = reader.recon_shape
    affine = reader.affine
    if affine is None:
        row_mm, col_mm = (1.0, 1.0) if reader.fov_mm is None else (reader.fov_mm[0] / rows, reader.fov_mm[1] / cols)
        affine = np.diag([col_mm, row_mm, 1.0, 1.0])
    return VolumeHeader(
        shape=(reader.n, rows, cols),
        dtype=np.dtype("f4"),
        affine=affine,
        slice_affines=slice_affines(affine, reader.n),
        modality="MR",
        units="1",
        source=reader.source,
    )


def dicom_lacks(reader: KSpaceReader) -> list[str]:
    """What is missing before the images of a reader can be DICOM: they need a study and a place. Empty: nothing."""
    header = reader.source.header
    study = header.study if isinstance(header, MRDHeader) else {}
    uid = study.get("studyInstanceUID", "")
    needs = {
        "an ISMRMRD header": isinstance(header, MRDHeader),
        "studyInstanceUID": len(uid) <= 64 and re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", uid) is not None,
        "the place of evenly spaced slices": reader.affine is not None,
        "the package pydicom (medseq[dicom])": importlib.util.find_spec("pydicom") is not None,
    }
    return [name for name, there in needs.items() if not there]


class ReconstructionWriter:
    """A `VolumeWriter` for ``reconstruction``, float32 ``(slice, row, col)``, the dataset of fastMRI and direct.

    Complex planes are stored as they are in ``reconstruction_complex`` as well. The file appears, complete, at
    `commit`.

    Args:
        path: ``.h5`` or ``.hdf5``.
        attributes: Attributes of the file: acquisition, model; nothing that identifies a person.
    """

    def __init__(self, path: Path, *, attributes: dict[str, str | float] | None = None):
        self._target, self._attributes = Path(path), dict(attributes or {})
        self._partial: Path | None = None
        self._file: Any = None
        self._planes = 0
        if self._target.suffix.lower() not in (".h5", ".hdf5"):
            raise OutputError("not an HDF5 name", found=self._target.suffix or "no suffix", wanted=".h5 or .hdf5")

    def begin(self, header: VolumeHeader) -> None:
        """Make the partial file.

        Raises:
            OutputError: A 4-D volume; a folder that cannot be written.
        """
        import h5py

        if len(header.shape) != 3:
            raise OutputError("one file holds one volume", found=header.shape, wanted="(slice, row, col)")
        self.abort()
        self._header, self._planes = header, 0
        self._partial = clear(self._target)
        with written("the output file"):
            self._file = h5py.File(self._partial, "w")
            # A chunk a slice: whoever reads one slice does not read the others.
            self._file.create_dataset("reconstruction", header.shape, "f4", chunks=(1, *header.plane_shape))
            for name, value in self._attributes.items():
                self._file.attrs[name] = value

    def write(self, lo: int, planes: np.ndarray) -> None:
        """Append planes ``lo ..``; they must follow the ones written before.

        Raises:
            ShapeError: Planes out of order, of another size, or beyond the volume.
            RetryableError: A full disk.
        """
        file = self._started()[0]
        if lo != self._planes or planes.shape[1:] != self._header.plane_shape or lo + len(planes) > self._header.planes:
            raise ShapeError(
                "planes do not continue the volume",
                found=f"plane {lo}, shape {planes.shape}",
                wanted=f"plane {self._planes}, shape (n, {self._header.shape[1]}, {self._header.shape[2]})",
            )
        with written("the output file"):
            if np.iscomplexobj(planes):
                if "reconstruction_complex" not in file:
                    shape = self._header.shape
                    file.create_dataset("reconstruction_complex", shape, "c8", chunks=(1, *shape[1:]))
                file["reconstruction_complex"][lo : lo + len(planes)] = planes.astype(np.complex64)
            file["reconstruction"][lo : lo + len(planes)] = (
                np.abs(planes) if np.iscomplexobj(planes) else planes
            ).astype(np.float32)
        self._planes += len(planes)

    def commit(self) -> Sequence[Path]:
        """Publish the file; returns its path."""
        file, partial = self._started()
        if self._planes != self._header.planes:
            raise OutputError("the volume is not complete", found=f"{self._planes} planes", wanted=self._header.planes)
        with written("the output file"):
            file.close()
            fsync(partial)
        publish(partial, self._target)
        self._partial, self._file = None, None
        return [self._target]

    def abort(self) -> None:
        """Remove what was written; nothing happens after a commit."""
        if self._file is not None:
            # A full disk fails again here; the file is thrown away.
            with contextlib.suppress(OSError, RuntimeError):
                self._file.close()
        if self._partial is not None:
            discard(self._partial)
        self._partial, self._file = None, None

    def _started(self) -> tuple[Any, Path]:
        if self._file is None or self._partial is None:
            raise OutputError("nothing was begun", wanted="begin(header) before write and commit")
        return self._file, self._partial
