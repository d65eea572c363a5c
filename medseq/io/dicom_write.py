"""Derived DICOM series: one single-frame image a plane, integer pixels, all or nothing."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from medseq.errors import OutputError, ShapeError
from medseq.io.atomic import clear, discard, publish, written
from medseq.io.dicom_classic import classic_class
from medseq.io.dicom_derive import Provenance, derived_header, series_uid
from medseq.io.dicom_header import understood
from medseq.io.dicom_pixels import DicomReader, padding_mask
from medseq.io.dicom_regrid import RegriddedWriter, put_pixels, same_grid
from medseq.io.dicom_types import DicomSource, Frame
from medseq.io.dicom_widen import WideValues
from medseq.io.integers import integer_limits, to_stored
from medseq.io.volume import VolumeHeader

__all__ = ["DicomSeriesWriter"]

# A million units beyond 16 bits is no value any more, and no reason to keep it aside.
_WIDE = (-(1 << 20), 1 << 20)


class DicomSeriesWriter:
    """A `VolumeWriter` for a series derived from a DICOM source.

    The source's slope, intercept and bits are kept, so that the rounding error is at most half a stored unit. Values
    that do not fit the stored bits get all allocated bits; a series that does not fit those gets another sign or a
    moved intercept, the unit stays; only what spans more than 65536 units is clipped and counted. PET, whose
    slices have their own slopes, gets a larger slope instead. Padding keeps its stored value. A role other than
    ``result`` holds another quantity: it is written signed, with the source's slope, intercept 0 and no padding.
    A volume on another grid (super-resolution, resampling) becomes a series of new slices, see
    `medseq.io.dicom_regrid`.

    Args:
        folder: Final folder; it appears, complete, at `commit`. An earlier one is replaced.
        bundle_name: Name of the model.
        bundle_hash: Its hash; part of the UIDs.
        params_hash: Hash of the run's parameters; part of the UIDs.
        version: medseq version; part of the UIDs.
        role: What the images are: ``result``, ``difference`` …
        created_utc: Creation time of the run, ISO 8601; all new dates derive from it.
        description: DerivationDescription; one that names model and version by default.

    Attributes:
        clipped: Pixels that did not fit the integer range.
        coarse: Values are stored in larger steps than the source's, so that rounding is above half its unit.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bundle_name: str,
        bundle_hash: str,
        params_hash: str,
        version: str,
        role: str,
        created_utc: str,
        description: str | None = None,
    ):
        self._target = Path(folder)
        self._made = Provenance(bundle_name, bundle_hash, params_hash, version, role, created_utc, description)
        self._reader: DicomReader | None = None
        self._partial: Path | None = None
        self._names: list[str] = []
        self._open: tuple[Path, Dataset] | None = None
        self._regridded: RegriddedWriter | None = None
        self.clipped, self.coarse = 0, False

    def begin(self, header: VolumeHeader) -> None:
        """Take the header of an open DICOM stack and make the partial folder.

        Raises:
            OutputError: The volume does not come from DICOM on this grid, or its class cannot be written.
        """
        source = header.source.header
        if not isinstance(source, DicomSource):
            raise OutputError(
                "a derived DICOM series needs the DICOM slices that it derives from",
                found=f"a {header.source.kind} source of {header.planes} planes",
                wanted="a DICOM source",
                remedy="write NIfTI instead",
            )
        for frame in source.frames:
            if frame.index is not None:
                classic_class(frame.sop_class)
        if any(frame.lut for frame in source.frames):
            raise OutputError(
                "a modality look-up table cannot be turned round",
                where=f"series {source.label}",
                wanted="rescale slope and intercept",
                remedy="write NIfTI instead",
            )
        self.clipped, self.coarse, self._regridded = 0, False, None
        if not same_grid(header, source):
            self._regridded = RegriddedWriter(self._target, self._made)
            self._regridded.begin(header)
            return
        self._reader, self._source, self._header = DicomReader(header), source, header
        self._series = series_uid(source, self._made)
        self._partial, self._names, self.clipped = clear(self._target), [], 0
        self._wide = WideValues(self._partial)
        scales = {(frame.slope, frame.intercept) for frame in source.frames}
        self._one_scale = len(scales) == 1 and header.modality != "PT"
        with written("the output folder"):
            self._partial.mkdir()

    def write(self, lo: int, planes: np.ndarray) -> None:
        """Write planes ``lo ..``; they must follow the ones written before.

        Raises:
            OutputError: NaN or infinite values; a folder that cannot be written.
            RetryableError: A full disk; a source that cannot be read.
        """
        if self._regridded is not None:
            self._regridded.write(lo, planes)
            return
        reader, partial = self._started()
        if lo != len(self._names) or planes.shape[1:] != self._header.plane_shape:
            raise ShapeError(
                "planes do not continue the volume",
                found=f"plane {lo}, shape {planes.shape}",
                wanted=f"plane {len(self._names)}, shape (n, {self._header.shape[1]}, {self._header.shape[2]})",
            )
        width = max(4, len(str(self._header.planes)))
        for i, plane in enumerate(planes, start=lo):
            frame, stored = self._source.frames[i], reader.stored(i, i + 1)[0]
            name = f"{i + 1:0{width}d}.dcm"
            data = self._encode(plane, frame, stored, name)
            with written("the output folder"), open(partial / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._names.append(name)

    def commit(self) -> Sequence[Path]:
        """Publish the folder; returns its files in slice order."""
        if self._regridded is not None:
            paths = self._regridded.commit()
            self.clipped, self.coarse = self._regridded.clipped, self._regridded.coarse
            return paths
        _, partial = self._started()
        if len(self._names) != self._header.planes:
            raise OutputError(
                "the series is not complete", found=f"{len(self._names)} planes", wanted=f"{self._header.planes}"
            )
        frame = self._source.frames[0]
        if self._wide.settle(self._names, frame.slope, frame.intercept, f"series {self._source.label}"):
            self.clipped = 0
        publish(partial, self._target)
        self._partial, self._open = None, None
        return [self._target / name for name in self._names]

    def abort(self) -> None:
        """Remove what was written; nothing happens after a commit."""
        if self._regridded is not None:
            self._regridded.abort()
        if self._partial is not None:
            discard(self._partial)
            self._partial, self._open = None, None

    def _started(self) -> tuple[DicomReader, Path]:
        if self._reader is None or self._partial is None:
            raise OutputError("nothing was begun", wanted="begin(header) before write and commit")
        return self._reader, self._partial

    def _encode(self, plane: np.ndarray, frame: Frame, stored: np.ndarray, name: str) -> bytes:
        number = len(self._names)
        where = f"series {self._source.label}, slice {number + 1}"
        with understood(where, "the source header cannot be written back", remedy="write NIfTI instead"):
            header = derived_header(self._source_header(frame), frame, self._series, number + 1, self._made)
            if self._made.role == "result":
                mask = padding_mask(stored, frame, self._header.units == "HU")
                self._set_pixels(header, plane, frame, stored, mask, name, where)
            else:
                self._set_signed_pixels(header, plane, frame, where)
            buffer = io.BytesIO()
            dcmwrite(buffer, header, implicit_vr=False, little_endian=True, enforce_file_format=True)
            return buffer.getvalue()

    def _source_header(self, frame: Frame) -> Dataset:
        if frame.index is not None and self._open is not None and self._open[0] == frame.path:
            return self._open[1]
        dataset = dcmread(frame.path, stop_before_pixels=True, force=True)
        self._open = (frame.path, dataset) if frame.index is not None else None
        return dataset

    def _set_pixels(
        self,
        out: Dataset,
        plane: np.ndarray,
        frame: Frame,
        stored: np.ndarray,
        mask: np.ndarray | None,
        name: str,
        where: str,
    ) -> None:
        """Store a result on the source's integers."""
        pixels, bits, slope, intercept = frame.pixels, frame.pixels.bits_stored, frame.slope, frame.intercept
        if mask is not None:
            # Padding is not rounded: whatever stands there now is replaced by the stored value.
            plane = np.where(mask, intercept, plane)
        limits = integer_limits(pixels.dtype, bits)
        values, clipped = to_stored(plane, slope, intercept, pixels.dtype, limits, where)
        if clipped.any() and bits < pixels.bits_allocated:
            bits = pixels.bits_allocated
            limits = integer_limits(pixels.dtype)
            values, clipped = to_stored(plane, slope, intercept, pixels.dtype, limits, where)
        if clipped.any() and self._header.modality == "PT" and frame.padding is None and intercept == 0:
            reach = max(plane.max() / limits[1], plane.min() / limits[0] if limits[0] else 0.0)
            # The file holds a decimal string of 16 characters: what it says is what is used.
            out.RescaleSlope = format_number_as_ds(float(reach))
            self.coarse = True
            values, clipped = to_stored(plane, float(out.RescaleSlope), 0.0, pixels.dtype, limits, where)
        if mask is not None:
            values = np.where(mask, stored, values)
        wide = values
        if clipped.any() and self._one_scale:
            wide, _ = to_stored(plane, slope, intercept, np.dtype("i8"), _WIDE, where)
            wide = wide if mask is None else np.where(mask, stored, wide)
            self._wide.keep(name, wide)
        self._wide.seen(wide)
        self.clipped += int(clipped.sum())
        put_pixels(out, values, bits)

    def _set_signed_pixels(self, out: Dataset, plane: np.ndarray, frame: Frame, where: str) -> None:
        """Store another quantity than the source's: signed, on its slope, around 0."""
        bits = max(16, frame.pixels.bits_allocated)
        dtype = np.dtype(f"i{bits // 8}")
        values, clipped = to_stored(plane, frame.slope, 0.0, dtype, integer_limits(dtype), where)
        self.clipped += int(clipped.sum())
        if "RescaleSlope" in out or "RescaleIntercept" in out:
            out.RescaleSlope, out.RescaleIntercept = format_number_as_ds(frame.slope), "0"
        put_pixels(out, values, bits)
